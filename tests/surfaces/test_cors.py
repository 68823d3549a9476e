"""Which pages may read answers."""

from __future__ import annotations

import pytest

from sidecar.surfaces.dataplane.cors import Cors

HERE, THERE = b"https://app.example", b"https://evil.example"


@pytest.mark.parametrize(
    ("origins", "origin", "told"),
    [
        (("https://app.example",), HERE, b"allow-origin: https://app.example\r\nvary: Origin\r\n"),
        (("https://app.example",), THERE, b""),
        (("https://app.example",), b"", b""),
        (("*", "https://app.example"), THERE, b"allow-origin: *\r\n"),
        (("*",), b"", b"allow-origin: *\r\n"),
    ],
)
def test_an_answer_says_who_may_read_it(origins: tuple[str, ...], origin: bytes, told: bytes) -> None:
    cors = Cors(origins)
    lines = cors.lines("POST", ((b"Origin", origin),) if origin else ())
    assert (b"access-control-allow-origin" in lines) == cors.allows(origin) == bool(told)
    assert told in lines
    assert (b"vary: Origin" in lines) == ("*" not in origins)


def test_only_a_question_before_a_request_is_answered() -> None:
    asked = ((b"Origin", HERE), (b"Access-Control-Request-Method", b"POST"))
    cors = Cors(("https://app.example",))
    answer = cors.asked_before("OPTIONS", asked)
    assert answer is not None
    assert (answer.status, answer.body_for(None)) == (204, b"")
    assert b"allow-headers" not in cors.lines("OPTIONS", asked)
    assert cors.asked_before("POST", asked) is None
    assert cors.asked_before("OPTIONS", asked[:1]) is None
    assert cors.asked_before("OPTIONS", asked[1:]) is None
