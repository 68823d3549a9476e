"""W3C Trace Context: what a caller says, and what an upstream hears."""

from __future__ import annotations

import pytest

from plugin_sdk.messages import RawHeaders
from sidecar.mechanism.tracecontext import Caller, read_caller, read_state, retold

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
CALLER = Caller(TRACE, int(SPAN, 16), 1)


def parent(value: str) -> RawHeaders:
    return ((b"Host", b"x"), (b"TraceParent", value.encode("latin-1")))


@pytest.mark.parametrize(
    ("value", "flags"),
    [
        (f"00-{TRACE}-{SPAN}-01", 1),
        (f"00-{TRACE}-{SPAN}-00", 0),
        (f"00-{TRACE}-{SPAN}-03", 3),
        (f"01-{TRACE}-{SPAN}-01", 1),
        (f"cc-{TRACE}-{SPAN}-01-what-comes-later", 1),
    ],
)
def test_a_well_formed_parent_is_read(value: str, flags: int) -> None:
    assert read_caller(parent(value)) == Caller(TRACE, int(SPAN, 16), flags)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "nonsense",
        "00-0-0-0",
        "\xff\xfe",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01-",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-0g",
        f"ff-{TRACE}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01.more",
        f"00-{TRACE}-{SPAN}-01\n",
        f" 00-{TRACE}-{SPAN}-01",
    ],
)
def test_anything_else_is_no_parent(value: str) -> None:
    assert read_caller(parent(value)) is None


def test_two_parents_are_none() -> None:
    assert read_caller(parent(f"00-{TRACE}-{SPAN}-01") * 2) is None


def test_states_of_several_headers_are_one() -> None:
    assert read_state(((b"tracestate", b"a=1"), (b"X", b"y"), (b"Tracestate", b"b=2"))) == "a=1,b=2"


def test_a_state_that_is_no_text_is_not_exported() -> None:
    assert read_state(((b"tracestate", b"a=\xff"),)) == ""


def test_the_upstream_hears_of_our_span_and_of_the_callers_state() -> None:
    headers = (*parent(f"00-{TRACE}-{SPAN}-01"), (b"tracestate", b"a=1"), (b"X-Other", b"kept"))
    assert retold(headers, TRACE, 0xAB, 1, keep_state=True) == (
        (b"Host", b"x"),
        (b"tracestate", b"a=1"),
        (b"X-Other", b"kept"),
        (b"traceparent", f"00-{TRACE}-00000000000000ab-01".encode()),
    )


def test_the_state_of_another_trace_is_not_told_on() -> None:
    told = retold(((b"traceparent", b"nonsense"), (b"TraceState", b"a=1")), TRACE, 1, 3, keep_state=False)
    assert [name for name, _ in told] == [b"traceparent"]
