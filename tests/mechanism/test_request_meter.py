"""What is counted of requests, and that it cannot grow without bounds."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from plugin_sdk import End, Outcome, Usage
from sidecar.mechanism.metrics import Point, Spread, label_name
from sidecar.mechanism.request_meter import AT_ONCE, RequestMeter
from sidecar.mechanism.request_metrics import METRICS

USAGE = Usage(input_tokens=900, output_tokens=101, cached_tokens=700, reasoning_tokens=20)
WELL = Outcome(
    model="owl",
    variant="cpu",
    mode="chat",
    principal="team-a",
    status=200,
    duration_s=0.5,
    bytes_in=10,
    bytes_out=20,
    first_byte_s=0.4,
    usage=USAGE,
)
STREAM = msgspec.structs.replace(WELL, streamed=True, duration_s=1.4, first_byte_s=0.4)

Read = dict[str, dict[str, Any]]


def read(meter: RequestMeter) -> Read:
    """By metric and labels, values, and (count, sum) of histograms."""
    found: Read = {}
    for family in meter.families():
        for one in family.series:
            names = (label_name(name) for name in family.metric.labels)
            labels = ",".join(f"{name}={value}" for name, value in zip(names, one.labels, strict=True) if value)
            value = one.value if isinstance(one, Point) else (sum(one.counts), pytest.approx(one.sum))
            assert labels not in found.setdefault(family.metric.name, {}), "a series that comes twice"
            found[family.metric.name][labels] = value
    return found


def counted(*outcomes: Outcome, by_principal: bool = False, most: int = 100) -> Read:
    meter = RequestMeter(most)
    meter.by_principal = by_principal
    for outcome in outcomes:
        meter.count(outcome, "chat")
    return read(meter)


WHOSE = "gen_ai_operation_name=chat,gen_ai_provider_name=sidecar,gen_ai_request_model=owl"


def test_a_request_is_counted_by_what_became_of_it() -> None:
    failed = msgspec.structs.replace(WELL, end=End.UPSTREAM_FAILED, status=502, code="upstream_failed", usage=None)
    found = counted(WELL, WELL, failed, msgspec.structs.replace(WELL, cold=True))
    requests = found["sidecar.requests"]
    begun = "model=owl,variant=cpu,mode=chat,gen_ai_operation_name=chat"
    assert requests == {
        f"{begun},end=ok,http_response_status_code=200,cold=false": 2,
        f"{begun},end=upstream_failed,http_response_status_code=502,error_type=upstream_failed,cold=false": 1,
        f"{begun},end=ok,http_response_status_code=200,cold=true": 1,
    }
    assert found["gen_ai.server.request.duration"] == {WHOSE: (3, 1.5), f"{WHOSE},error_type=upstream_failed": (1, 0.5)}


def test_an_error_of_the_server_is_one_by_its_status() -> None:
    found = counted(msgspec.structs.replace(WELL, status=429))
    assert list(found["gen_ai.server.request.duration"]) == [f"{WHOSE},error_type=429"]


def test_the_wait_is_told_by_itself_and_taken_off_what_the_server_took() -> None:
    found = counted(WELL, msgspec.structs.replace(WELL, queue_s=0.3))
    assert found["sidecar.queue.duration"] == {"model=owl": (1, 0.3)}
    assert found["gen_ai.server.request.duration"] == {WHOSE: (2, 1.0)}
    assert found["gen_ai.client.operation.duration"] == {WHOSE: (2, 0.7)}


def test_the_buckets_of_both_durations_are_those_of_their_times() -> None:
    meter = RequestMeter()
    meter.count(msgspec.structs.replace(WELL, duration_s=5.0, queue_s=4.985), "chat")
    spreads = {family.metric.name: next(iter(family.series), None) for family in meter.families()}
    for name, bucket in (("gen_ai.server.request.duration", 9), ("gen_ai.client.operation.duration", 1)):
        spread = spreads[name]
        assert isinstance(spread, Spread)
        assert [index for index, count in enumerate(spread.counts) if count] == [bucket]
        assert min(spread.counts) == 0


def test_a_request_that_no_server_was_asked_for_has_no_operation() -> None:
    refused = Outcome(model="owl", mode="chat", end=End.REFUSED, status=401, code="unknown_key", duration_s=0.1)
    found = counted(refused)
    assert "gen_ai.client.operation.duration" not in found
    assert found["gen_ai.server.request.duration"] == {f"{WHOSE},error_type=unknown_key": (1, 0.1)}


def test_streams_tell_when_they_began_and_how_fast_they_went_on() -> None:
    found = counted(STREAM, WELL)
    assert found["gen_ai.server.time_to_first_token"] == {WHOSE: (1, 0.4)}
    assert found["gen_ai.server.time_per_output_token"] == {WHOSE: (1, 0.01)}


@pytest.mark.parametrize(
    "change",
    [
        {"end": End.CLIENT_GONE, "code": "client_gone"},
        {"end": End.UPSTREAM_FAILED, "code": "upstream_failed"},
        {"status": 500},
        {"first_byte_s": None, "usage": None},
    ],
)
def test_streams_that_went_wrong_do_not(change: dict[str, Any]) -> None:
    found = counted(msgspec.structs.replace(STREAM, **change))
    assert "gen_ai.server.time_to_first_token" not in found
    assert "gen_ai.server.time_per_output_token" not in found


@pytest.mark.parametrize("usage", [None, Usage(input_tokens=5, output_tokens=1), Usage(input_tokens=5)])
def test_one_token_has_no_time_between_tokens(usage: Usage | None) -> None:
    assert "gen_ai.server.time_per_output_token" not in counted(msgspec.structs.replace(STREAM, usage=usage))


def test_tokens_are_told_by_kind() -> None:
    found = counted(WELL, WELL)
    kinds = {"input": 1800, "output": 202, "cached": 1400, "reasoning": 40}
    assert found["sidecar.tokens"] == {f"model=owl,gen_ai_token_type={kind}": sum_ for kind, sum_ in kinds.items()}
    usage = found["gen_ai.client.token.usage"]
    assert usage == {f"{WHOSE},gen_ai_token_type=input": (2, 1800), f"{WHOSE},gen_ai_token_type=output": (2, 202)}


def test_bytes_are_told_by_direction() -> None:
    assert counted(WELL, STREAM)["sidecar.body.size"] == {"model=owl,direction=in": 20, "model=owl,direction=out": 40}


def test_principals_are_told_apart_only_if_that_is_asked_for() -> None:
    other = msgspec.structs.replace(WELL, principal="team-b")
    assert len(counted(WELL, other)["sidecar.requests"]) == 1
    found = counted(WELL, other, by_principal=True)
    assert [label.rpartition("principal=")[2] for label in found["sidecar.requests"]] == ["team-a", "team-b"]
    assert found["sidecar.tokens"]["model=owl,gen_ai_token_type=input,principal=team-b"] == 900
    assert found["gen_ai.server.request.duration"] == {WHOSE: (2, 1.0)}


def test_retries_are_told_by_model() -> None:
    meter = RequestMeter()
    meter.retried("owl")
    meter.retried("owl")
    assert read(meter)["sidecar.retries"] == {"model=owl": 2}


def test_what_is_never_the_same_twice_is_counted_together() -> None:
    many = [msgspec.structs.replace(STREAM, model=f"m-{number}", queue_s=0.1) for number in range(500)]
    found = counted(*many, most=10)
    for name, series in found.items():
        assert len(series) <= 10 * 4 + 4, name
        assert any(labels.endswith("otel_metric_overflow=true") for labels in series), name
    assert found["sidecar.requests"]["otel_metric_overflow=true"] == 490
    assert sum(found["sidecar.requests"].values()) == 500
    tokens = found["sidecar.tokens"]
    assert sum(value for labels, value in tokens.items() if "gen_ai_token_type=input" in labels) == 500 * 900


def test_many_are_added_up_in_steps_that_hold_nobody_up() -> None:
    meter = RequestMeter()
    meter.by_principal = True
    for number in range(3 * AT_ONCE):
        meter.count(msgspec.structs.replace(WELL, principal=f"p-{number}"), "chat")
    *paused, sums = meter.steps()
    assert paused == [None, None]
    assert sums is not None
    for _ in range(2):  # two who ask at the same time share them
        durations = next(sums.families())
        assert [sum(one.counts) for one in durations.series if isinstance(one, Spread)] == [3 * AT_ONCE]


def test_totals_of_models_are_those_of_the_metrics() -> None:
    meter = RequestMeter()
    for outcome in (
        STREAM,
        STREAM,
        msgspec.structs.replace(STREAM, status=503),
        msgspec.structs.replace(WELL, model="other"),
    ):
        meter.count(outcome, "chat")
    totals = meter.by_model()
    assert set(totals) == {STREAM.model, "other"}
    assert (totals[STREAM.model].requests, totals["other"].requests) == (3, 1)
    assert STREAM.usage is not None
    assert totals[STREAM.model].output == 3 * STREAM.usage.output_tokens
    assert totals[STREAM.model].input == 3 * STREAM.usage.input_tokens


def test_all_that_is_told_is_listed() -> None:
    meter = RequestMeter()
    assert [family.metric for family in meter.families()] == list(METRICS)
