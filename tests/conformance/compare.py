"""Whether what came out on one side of the sidecar means what went in on the other, as h11 reads both.

A sidecar may always refuse what is not good, and may be stricter than h11; it may never pass on another meaning.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.conformance.judge import Message, Pairs, final, requests, responses, strict_head
from tests.conformance.upstream import Exchange, head_of
from tests.conformance.world import HOP_BY_HOP, OWN, end_to_end

FAILED = b'"upstream_failed"'


def wrong_with_requests(sent: bytes, exchanges: Sequence[Exchange], errors: Sequence[str]) -> str:
    """What is wrong with what reached the upstream of the bytes of one client; "" if nothing is."""
    if errors:
        return f"what arrived is no HTTP: {errors[0]}"
    meant = list(requests(sent).messages)
    for exchange in exchanges:
        if exchange.whole and (why := strict_head(head_of(exchange.raw))):
            return f"what arrived can be misread: {why}"
        arrived = exchange.message()
        while meant and not _same_request(meant[0], arrived):
            meant.pop(0)
        if not meant:
            return f"nobody sent {arrived}"
        meant.pop(0)
    return ""


def wrong_with_good_requests(sent: bytes, exchanges: Sequence[Exchange], received: bytes) -> str:
    """What a client may complain about that has sent nothing but good requests."""
    judged = requests(sent)
    answers = responses(received, [one.method for one in judged.messages], eof=judged.closed)
    good = [one for one in answers.messages if one.whole and one.status == 200]
    if good and good[-1].values(b"connection") == [b"close"] and len(good) == len(answers.messages) == len(exchanges):
        return ""  # what follows may be sent again on another connection
    if len(exchanges) != len(judged.messages):
        return f"{len(exchanges)} of {len(judged.messages)} requests arrived"
    return "" if len(good) == len(judged.messages) else f"the answers were {answers.messages}"


def wrong_with_response(sent: bytes, received: bytes, *, reset: bool, good: bool) -> str:
    """What is wrong with a client's answer to a POST, given its server's bytes; "" if nothing is."""
    meant, got = _only(sent), _only(received, reset)
    if got is None:
        return f"the client got nothing that it could read: {received!r}"
    if got.whole and got.status == 502 and FAILED in got.body:
        return "a good answer was taken for a failure" if good else ""
    if meant is None:
        return f"there was no answer, but the client got {got}" if got.whole else ""
    if (got.status, _fields(got)) != (meant.status, _fields(meant)):
        return f"the head was {meant}, but the client got {got}"
    if got.whole and meant.whole:
        same = (got.body, _lower(got.trailers)) == (meant.body, _lower(meant.trailers))
        return "" if same else f"the body was {meant}, but the client got {got}"
    if got.whole:
        return f"the answer was cut off, but the client got the whole {got}"
    if good:
        return f"a good answer was cut off: {got}"
    return "" if meant.body.startswith(_before_error(got)) else f"of {meant} the client got {got}"


def _same_request(meant: Message, arrived: Message) -> bool:
    if (meant.method, _path(meant.target), _fields(meant)) != (arrived.method, arrived.target, _fields(arrived)):
        return False
    if arrived.whole:
        return meant.whole and meant.body == arrived.body
    return meant.body.startswith(arrived.body)


def _path(target: bytes) -> bytes:
    """RFC 9112, 3.2.2: the absolute form is made the origin's; a fragment is no part of it."""
    if target.lower().startswith(b"http://"):
        _, slash, path = target[7:].partition(b"/")
        target = slash + path
    return target.partition(b"#")[0]


def _fields(message: Message) -> Pairs:
    """The headers that must be on the other side, but for their case."""
    named = {token.strip().lower() for value in message.values(b"connection") for token in value.split(b",")} - {
        b"host",
        b"content-length",
        b"transfer-encoding",
    }
    own = (OWN if message.method else HOP_BY_HOP | {b"content-length"}) | named
    return _lower(end_to_end(message.headers, frozenset(own)))


def _lower(pairs: Pairs) -> Pairs:
    return tuple((name.lower(), value) for name, value in pairs)


def _only(data: bytes, reset: bool = False) -> Message | None:
    judged = responses(final(data))
    if not judged.messages:
        return None
    message = judged.messages[0]
    framed = message.values(b"content-length") or message.values(b"transfer-encoding")
    if reset and not framed and message.status not in (204, 304):
        return Message(status=message.status, headers=message.headers, body=message.body, whole=False)
    return message


def _before_error(got: Message) -> bytes:
    """The server's bytes of a stream that the sidecar has ended with an error event, which line ends may precede."""
    return got.body.rpartition(b'data: {"error"')[0].rstrip(b"\n") if FAILED in got.body else got.body
