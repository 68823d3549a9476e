"""OTEL_TRACES_SAMPLER, against the SDK's own samplers."""

from __future__ import annotations

import random
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import sampling as sdk
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from sidecar.mechanism.sampling import NEVER, SamplerError, sampler_of
from sidecar.mechanism.tracecontext import Caller

KINDS = ["always_on", "always_off", "traceidratio"]


def sdk_keeps(name: str, caller: Caller) -> bool:
    sampler: Any = sdk._KNOWN_SAMPLERS[name]  # what the SDK makes of the same variable
    if callable(sampler):
        sampler = sampler(0.3)
    number = int(caller.trace_id, 16)
    context = SpanContext(number, caller.span_id, is_remote=True, trace_flags=TraceFlags(caller.flags))
    parent = trace.set_span_in_context(NonRecordingSpan(context), Context())
    return bool(sampler.should_sample(parent, number, "x").decision is sdk.Decision.RECORD_AND_SAMPLE)


@pytest.mark.parametrize("name", [*KINDS, *(f"parentbased_{kind}" for kind in KINDS)])
def test_every_sampler_keeps_what_the_sdks_keeps(name: str) -> None:
    sampler = sampler_of({"OTEL_TRACES_SAMPLER": name, "OTEL_TRACES_SAMPLER_ARG": "0.3"})
    seeded = random.Random(7)  # noqa: S311 - ids that are the same in every run
    for number in range(200):
        caller = Caller(f"{seeded.getrandbits(128) | 1:032x}", 5, number % 2)
        assert sampler.keeps(caller) == sdk_keeps(name, caller), caller


def test_by_default_everything_is_kept_but_what_the_caller_does_not_keep() -> None:
    sampler = sampler_of({})
    assert sampler.bound == 1 << 64
    assert sampler.keeps(Caller("f" * 32, 1, 1))
    assert not sampler.keeps(Caller("f" * 32, 1, 0))


def test_a_ratio_without_an_argument_is_all_of_it() -> None:
    assert sampler_of({"OTEL_TRACES_SAMPLER": "traceidratio"}).bound == 1 << 64


def test_only_what_can_keep_nothing_is_never() -> None:
    assert NEVER.never
    assert sampler_of({"OTEL_TRACES_SAMPLER": "always_off"}).never
    assert not sampler_of({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}).never


@pytest.mark.parametrize("name", ["always", "parentbased_jaeger_remote", "parentbased_", "xray"])
def test_a_sampler_that_is_not_there_is_named_with_those_that_are(name: str) -> None:
    with pytest.raises(SamplerError, match=f"no sampler {name}; known: always_on, .*parentbased_traceidratio"):
        sampler_of({"OTEL_TRACES_SAMPLER": name})


@pytest.mark.parametrize("ratio", ["-0.1", "1.1", "half", "nan", "inf"])
def test_a_ratio_is_from_0_to_1(ratio: str) -> None:
    with pytest.raises(SamplerError, match="is not a ratio"):
        sampler_of({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": ratio})
