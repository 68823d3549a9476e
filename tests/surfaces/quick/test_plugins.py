"""What plugins see of requests whose head comes again, and make of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from plugin_sdk import Exchange, Headers, Principal, Request
from plugin_sdk import Response as Answer
from sidecar.mechanism.sampling import ALWAYS
from tests.surfaces.quick.harness import (
    ANSWERS,
    CALLER,
    EVENTS,
    LAST,
    WAS_QUICK,
    WATCHED,
    Case,
    observed,
    other,
    same_quick_or_not,
    slowly,
)
from tests.surfaces.quick.plugins import DOES, KNOWN, rejects
from tests.surfaces.world import STREAM, World, answers, ask, chunk, inside, message, status


def fails(_: Exchange) -> None:
    raise ValueError("no")


def with_header(exchange: Exchange) -> Request:
    request = exchange.request
    return msgspec.structs.replace(request, headers=Headers((*request.headers.raw, (b"X-Mine", b"1"))))


def without_headers(exchange: Exchange) -> Request:
    return msgspec.structs.replace(exchange.request, headers=Headers(exchange.request.headers.raw[:2]))


def answered(exchange: Exchange, **changed: Any) -> Answer:
    assert exchange.response is not None
    return msgspec.structs.replace(exchange.response, **changed)


def with_answers_header(exchange: Exchange) -> Answer:
    assert exchange.response is not None
    return answered(exchange, headers=Headers((*exchange.response.headers.raw, (b"X-Mine", b"1"), (b"Upgrade", b"x"))))


FORM = (
    b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\ncounted\r\n'
    b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n--b--\r\n'
)


def into_a_form(exchange: Exchange) -> Request:
    headers = Headers((*exchange.request.headers.raw, (b"Content-Type", b"multipart/form-data; boundary=b")))
    return msgspec.structs.replace(exchange.request, headers=headers, body=FORM)


def replaced(**changed: Any) -> Callable[[Exchange], Request]:
    return lambda exchange: msgspec.structs.replace(exchange.request, **changed)


FILTERS: dict[str, tuple[str, Callable[[Exchange], Any]]] = {
    "rejects": ("inner.on_request", rejects),
    "rejects at once": ("outer.on_request", rejects),
    "answers": ("inner.on_request", lambda _: Answer(status=202, headers=Headers(((b"X-Mine", b"1"),)), body=b"mine")),
    "answers with nothing": ("outer.on_request", lambda _: Answer(status=204)),
    "fails": ("inner.on_request", fails),
    "returns nonsense": ("inner.on_request", lambda _: 7),
    "adds a header": ("inner.on_request", with_header),
    "takes headers away": ("outer.on_request", without_headers),
    "changes the body": ("inner.on_request", replaced(body=b'{"model": "watched", "y": [2]}')),
    "changes the model": ("inner.on_request", replaced(body=b'{"model": "another"}')),
    "makes no JSON of it": ("inner.on_request", replaced(body=b"{")),
    "makes a form of it": ("inner.on_request", into_a_form),
    "changes the path": ("inner.on_request", replaced(path="/v1/elsewhere")),
    "asks something": ("outer.on_request", replaced(query="a=1&b=2")),
    "changes the path to what cannot be sent": ("inner.on_request", replaced(path="/\u20ac")),
    "changes the method": ("inner.on_request", replaced(method="PUT")),
    "rejects the answer": ("inner.on_response", rejects),
    "fails on the answer": ("outer.on_response", fails),
    "changes the status": ("inner.on_response", lambda exchange: answered(exchange, status=418)),
    "adds a header to the answer": ("inner.on_response", with_answers_header),
    "takes the answer's headers away": ("outer.on_response", lambda exchange: answered(exchange, headers=Headers())),
    "gives headers alone": ("outer.on_response", lambda _: Headers(((b"X-Mine", b"1"), (b"X-Mine", b"2")))),
    "gives headers that there are": (
        "inner.on_response",
        lambda _: Headers(((b"CONTENT-TYPE", b"a/b"), (b"X-Mine", b"1"))),
    ),
    "gives headers of the framing": (
        "outer.on_response",
        lambda _: Headers(((b"Content-Length", b"1"), (b"Connection", b"close"), (b"X-Mine", b"1"))),
    ),
    "gives headers that break the line": ("outer.on_response", lambda _: Headers(((b"X-Mine", b"1\r\nX-Yours: 2"),))),
    "says that there is no body": ("inner.on_response", lambda exchange: answered(exchange, status=204)),
    "says that there is a body": ("inner.on_response", lambda exchange: answered(exchange, status=200)),
    "calls it a stream": ("inner.on_response", lambda exchange: answered(exchange, streamed=True)),
    "fails at the end": ("inner.on_end", fails),
}
SOME = ("whole", "in two parts", "events one by one", "500", "204")


@pytest.mark.parametrize("kind", FILTERS)
@pytest.mark.parametrize("line", [b"X-Nobody: asks", CALLER])
def test_what_a_filter_does_is_the_same(here: World, kind: str, line: bytes) -> None:
    hook, does = FILTERS[kind]
    request = ask(WATCHED, b"Authorization: Bearer key", line)
    for answer in SOME[: 4 if "status" in kind else 5] if "response" in hook else SOME[:1]:
        pieces = ANSWERS[answer]
        case = Case(
            does=answers(pieces) if isinstance(pieces, bytes) else slowly(*pieces),
            request=request,
            before=lambda: DOES.update({hook: does}),
            traces=ALWAYS,
        )
        plain = same_quick_or_not(here, case)
        assert len(plain.outcomes) == 1
        ends = [entry[0] for entry in plain.plugins if len(entry) == 2 and entry[0] != "auth"]
        alone = kind in ("rejects at once", "answers with nothing", "fails at the end")  # the first, or the last
        assert ends == (["outer"] if alone else ["inner", "outer"])


def test_a_request_of_which_a_filter_takes_the_model_away_leaves_no_connection_behind(here: World) -> None:
    case = Case(request=ask(b'{"model": "counted"}'), traces=ALWAYS)
    case.before = lambda: DOES.update({"outer.on_request": replaced(body=b"{}")})
    plain = same_quick_or_not(here, case)
    assert b'"model_missing"' in plain.client


def test_a_model_that_is_renamed_after_a_filter_has_made_a_form_of_it_is_the_same(here: World) -> None:
    case = Case(request=ask(b'{"model": "counted"}'), before=lambda: DOES.update({"outer.on_request": into_a_form}))
    plain = same_quick_or_not(here, case)
    assert plain.server[0][1] == FORM.replace(b"counted", b"inner")


def test_a_stream_that_a_filter_asks_for_tells_its_usage_all_the_same(here: World) -> None:
    """The body that counts is the one that is sent."""
    streams = replaced(body=b'{"model": "counted", "stream": true}')
    case = Case(
        does=answers(STREAM, *map(chunk, EVENTS), LAST),
        request=ask(b'{"model": "counted"}'),
        before=lambda: DOES.update({"outer.on_request": streams}),
    )
    plain = same_quick_or_not(here, case)
    assert b'"include_usage":true' in plain.server[0][1]


def test_a_key_that_is_none_any_more_is_refused(here: World) -> None:
    for line in (b"X-Nobody: asks", CALLER):
        case = Case(
            request=ask(WATCHED, b"Authorization: Bearer key", line), before=KNOWN.clear, breaks=True, traces=ALWAYS
        )

        async def scenario(case: Case = case) -> None:
            found = []
            for warm in (other(case.request), case.request):
                KNOWN.update(key=Principal("team", {"key": "first"}))
                found.append(await observed(here, case, [warm], 0))
            assert len(WAS_QUICK) == 1
            assert msgspec.structs.asdict(found[0]) == msgspec.structs.asdict(found[1])
            assert b'"invalid_key"' in found[1].client

        here.run(scenario())


def test_errors_have_the_shape_of_the_mode_that_was_asked(here: World) -> None:
    """Another mode has the same path, and comes first there."""
    for hook in ("outer.on_request", "outer.on_response"):
        case = Case(
            request=ask(b'{"model": "sorts"}', b"Authorization: Bearer key", path=b"/v1/sort"),
            before=lambda hook=hook: DOES.update({hook: rejects}),  # type: ignore[misc] # bound at once
        )
        plain = same_quick_or_not(here, case)
        assert b'{"sorting": "forbidden"}' in plain.client


def test_methods_of_one_path_are_each_their_own(here: World) -> None:
    post = ask(b'{"model": "sorts"}', b"Authorization: Bearer key", path=b"/v1/sort")
    same_quick_or_not(here, Case(request=post))
    plain = same_quick_or_not(here, Case(request=post.replace(b"POST", b"PUT")), quick=False)
    assert plain.outcomes[0][1] == "resort"


@inside
async def test_limits_count_each_request(w: World) -> None:
    reader, writer = await w.connect()
    codes = []
    for _ in range(5):
        writer.write(ask(b'{"model": "limited"}'))
        head, _ = await message(reader)
        codes.append(status(head))
    assert codes == [200, 200, 200, 429, 429]
    assert len(WAS_QUICK) == 4
