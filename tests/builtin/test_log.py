"""The line that is logged for each request."""

from __future__ import annotations

import logging

import pytest

from plugin_sdk import End, Outcome, Usage
from plugin_sdk.kinds import is_inline
from sidecar.builtin.log import Log


def line(caplog: pytest.LogCaptureFixture, outcome: Outcome) -> str:
    caplog.clear()
    with caplog.at_level(logging.INFO, "sidecar.plugins.audit"):
        Log(name="audit").record(outcome)
    [record] = caplog.records
    assert record.name == "sidecar.plugins.audit"
    return record.getMessage()


def test_a_request_is_one_line_of_pairs(caplog: pytest.LogCaptureFixture) -> None:
    outcome = Outcome(
        model="qwen",
        variant="one-gpu",
        path="/v1/chat/completions",
        principal="team-a",
        status=200,
        cold=True,
        duration_s=1.23456,
        first_byte_s=0.5,
        queue_s=0.25,
        usage=Usage(input_tokens=7, output_tokens=4),
        trace_id="0af7",
    )
    assert line(caplog, outcome) == (
        "path=/v1/chat/completions model=qwen variant=one-gpu principal=team-a end=ok status=200 code=- cold=True "
        "duration_s=1.235 first_byte_s=0.500 queue_s=0.250 tokens=7+4 trace_id=0af7"
    )


def test_what_did_not_happen_is_a_dash(caplog: pytest.LogCaptureFixture) -> None:
    outcome = Outcome(model="", end=End.REFUSED, status=401, code="missing_api_key")
    assert line(caplog, outcome) == (
        "path= model=- variant=- principal=- end=refused status=401 code=missing_api_key cold=False "
        "duration_s=0.000 first_byte_s=- queue_s=0.000 tokens=- trace_id=-"
    )


def test_where_nobody_wants_to_read_it_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "sidecar.plugins.audit"):
        Log(name="audit").record(Outcome(model="m"))
    assert not caplog.records


@pytest.mark.parametrize(
    "name", ["a\nprincipal=root", "a principal=root", "a\u2028b", "a\x1b[2K", "'a'", '"a"', "a\\n", "\ud800"]
)
def test_no_name_can_pretend_to_be_a_line_or_a_pair(name: str, caplog: pytest.LogCaptureFixture) -> None:
    said = line(caplog, Outcome(model="m", principal=name, path="/v1/x"))
    assert said.startswith(f"path=/v1/x model=m variant=- principal={name!a} end=ok ")
    assert said.isascii()
    assert said.isprintable()


def test_names_in_other_letters_stay_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    assert " principal=jürgen " in line(caplog, Outcome(model="m", principal="jürgen"))


def test_an_answer_without_tokens_is_not_one_whose_tokens_are_unknown(caplog: pytest.LogCaptureFixture) -> None:
    assert " tokens=0+0 " in line(caplog, Outcome(model="m", usage=Usage()))


def test_it_runs_on_the_loop() -> None:
    assert is_inline(Log.record)
