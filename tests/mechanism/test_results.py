"""What plugins return and raise: what is good passes as it is, and all else is told to its author, not to clients."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from plugin_sdk import Headers, Principal, Reject, Request, Response, Secret, Target
from sidecar.mechanism import results

KEY = Secret("sk-1")


class Bare(Reject):
    """Never calls Reject's own `__init__`."""

    status = 401

    def __init__(self) -> None:
        """Set nothing."""


def changed(**attributes: Any) -> Reject:
    """A refusal whose attributes were set afterwards."""
    error = Reject(401, "no")
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


@pytest.mark.parametrize(
    "error",
    [
        Reject(401, "say the wörd"),
        Reject(429, "later", retry_after_s=0.5, headers={"X-Left": "0"}),
        Reject(429, "later", retry_after_s=-1),  # it was over while it was being worked out
    ],
)
def test_a_refusal_that_can_be_told_passes(error: Reject) -> None:
    assert results.reject(error) is error


UNTELLABLE: list[Any] = [
    (Bare(), "Bare has no message: its __init__ must call that of Reject"),
    (changed(status=200), "status from 400 to 599, got 200"),
    (changed(status="401"), "status from 400 to 599, got '401'"),
    (changed(message=ValueError("x")), "the message of a Reject as text, got ValueError"),
    (changed(message="\ud800"), "surrogates not allowed"),
    (changed(code=401), "the code of a Reject as text, got int"),
    (changed(retry_after_s=math.inf), "as a number of seconds, got inf"),
    (changed(retry_after_s=math.nan), "as a number of seconds, got nan"),
    (changed(retry_after_s="5"), "as a number of seconds, got str"),
    (changed(headers=[("x", "y")]), "whose headers are a mapping, got list"),
    (changed(headers={"x-left": 5}), "the header 'x-left' as text, got int"),
    (changed(headers={5: "x"}), "the name of a header as text, got int"),
    (changed(headers={"x-a": "b\r\nx-injected: 1"}), "a header without line breaks, got b'x-a'"),
    (changed(headers={"x a": "b"}), "a header without line breaks, got b'x a'"),
    (changed(headers={"Content-Length": "5"}), "no header of the connection, got 'Content-Length'"),
]


@pytest.mark.parametrize(("error", "why"), UNTELLABLE)
def test_a_refusal_that_nobody_could_be_told_is_a_fault(error: Reject, why: str) -> None:
    with pytest.raises((TypeError, ValueError)) as told:
        results.reject(error)
    assert why in str(told.value)


BAD_PRINCIPALS: list[Any] = [
    ("guest", "a Principal, got str"),
    (Principal(None), "whose id is text, got NoneType"),  # type: ignore[arg-type] # what untyped plugins do
    (Principal(7), "whose id is text, got int"),  # type: ignore[arg-type] # as above
    (Principal(""), "with an id, got an empty one"),
    (Principal("\udcff"), "surrogates not allowed"),
    (Principal("x", None), "attributes are a mapping, got NoneType"),  # type: ignore[arg-type] # as above
    (Principal("x", ["a"]), "attributes are a mapping, got list"),  # type: ignore[arg-type] # as above
]


@pytest.mark.parametrize(("result", "why"), BAD_PRINCIPALS)
def test_a_caller_without_a_name_is_a_fault(result: Any, why: str) -> None:
    with pytest.raises((TypeError, ValueError)) as told:
        results.principal(result)
    assert why in str(told.value)


def test_a_target_with_all_that_it_may_have_passes() -> None:
    full = Target(
        name="a", base_url="https://h:1/v2", model="org/m", api_key=KEY, timeout_s=3, weight=2, ready=False, in_flight=1
    )
    for target in (full, Target(name="cold", base_url="", ready=False)):
        assert results.target(target) is target


def target(**more: Any) -> Target:
    return Target(**({"name": "a", "base_url": "http://h:1"} | more))


BAD_TARGETS: list[Any] = [
    (target(name=None), "the name of a Target as text"),
    (target(base_url=b"http://h"), "the base_url of a Target as text"),
    (target(base_url="http://h/\r\nx: 1"), "line breaks"),
    (target(base_url="http://h/?x=1"), "line breaks"),
    (target(base_url="h:1"), 'leads nowhere: expected "http://HOST:PORT"'),
    (target(base_url="unix:s"), "the absolute path of a socket"),
    (target(base_url="http://h:port"), "Port could not be cast"),
    (target(model=5), "the model of a Target as text, got int"),
    (target(model="\ud800"), "surrogates not allowed"),
    (target(api_key="sk-x"), "the api_key of a Target as a Secret, got str"),
    (target(api_key=Secret("sk-x\r\nx: 1")), "as text without line breaks"),
    (target(timeout_s="3"), "the timeout_s of a Target as a number of seconds, got str"),
    (target(timeout_s=0), "a timeout_s above 0, got 0"),
    (target(timeout_s=math.nan), "as a number of seconds, got nan"),
    (target(weight="1"), "the weight of a Target as a whole number"),
    (target(in_flight=None), "the in_flight of a Target as a whole number"),
    (target(ready=1), "expected True or False, got int"),
]


@pytest.mark.parametrize(("result", "why"), BAD_TARGETS)
def test_a_target_that_no_request_could_go_to_is_a_fault(result: Any, why: str) -> None:
    with pytest.raises((TypeError, ValueError)) as told:
        results.target(result)
    assert why in str(told.value)
    assert "sk-x" not in str(told.value)


CAME = Request(method="POST", path="/v1/x", headers=Headers(((b"host", b"a"), (b"x-odd", b"b"))), body=b"{}")
HEAD = Response(headers=CAME.headers)


def test_a_message_is_good_that_came_or_was_made_of_what_came() -> None:
    more = Headers((*CAME.headers.raw[1:], (b"x-new", b"1")))
    for request in (CAME, msgspec.structs.replace(CAME, headers=more, query="a=b")):
        assert results.request_or_response(request, CAME) is request
    for response in (HEAD, Response(status=299, headers=more)):
        assert results.response(response, HEAD) is response
        assert results.response(response) is response


def test_a_head_may_be_answered_with_headers_alone() -> None:
    alone = Headers(((b"x-new", b"1"),))
    assert results.head_or_headers(alone, HEAD) is alone
    assert results.head_or_headers(HEAD, HEAD) is HEAD
    for bad in (b"x-new: 1", ((b"x-new", b"1"),), {"x-new": "1"}):
        with pytest.raises(TypeError, match="a Response, Headers or None"):
            results.head_or_headers(bad, HEAD)


@pytest.mark.parametrize(("before", "after"), [(200, 204), (200, 304), (204, 200), (304, 502)])
def test_a_status_cannot_say_otherwise_of_whether_there_is_a_body(before: int, after: int) -> None:
    with pytest.raises(ValueError, match=f"a status that has a body if the answer has one, got {after}"):
        results.head_or_headers(Response(status=after), Response(status=before))
    other = Response(status=304)
    assert results.head_or_headers(other, Response(status=204)) is other


@pytest.mark.parametrize(
    "pair", [(b"x", b"1\r\ny: 2"), (b"x", b"\0"), (b"x y", b"1"), (b"", b"1"), (b"x", "1"), (b"x",), 5]
)
def test_what_is_new_in_a_message_has_to_be_good(pair: Any) -> None:
    headers = Headers((*CAME.headers.raw, pair))
    with pytest.raises((TypeError, ValueError)):
        results.request_or_response(msgspec.structs.replace(CAME, headers=headers), CAME)
    with pytest.raises((TypeError, ValueError)):
        results.response(Response(headers=headers), HEAD)
    with pytest.raises((TypeError, ValueError)):
        results.head_or_headers(Headers((pair,)), HEAD)
