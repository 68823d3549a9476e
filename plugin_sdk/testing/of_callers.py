"""Checks of auth plugins. Each raises Fault with what is wrong and the remedy."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from plugin_sdk.errors import Reject
from plugin_sdk.messages import Principal, Request
from plugin_sdk.testing import samples
from plugin_sdk.testing.subject import NO_SHARING, SHOWN, Fault, Live, Subject, raised

LEAST_TOKEN = 6  # characters: shorter ones are found in any text


async def anybody_is_admitted_or_rejected(subject: Subject) -> None:
    """A Principal or a Reject, whatever the token is."""
    async with subject.alive() as live:
        if subject.request is not samples.REQUEST:
            try:
                await live.call("authenticate", subject.request)
            except Reject as reject:
                raise Fault(f"the request= of its contract is rejected ({reject}): give one that is admitted") from None
        for token in (subject.request.bearer_token, samples.TOKEN, *samples.TOKENS):
            await _verdict(live, samples.with_token(subject.request, token))


async def tokens_are_never_told(subject: Subject) -> None:
    """Neither logged nor printed, nor in the name of the principal, which logs and statistics have."""
    tokens = [token for token in (subject.request.bearer_token, samples.TOKEN) if len(token) >= LEAST_TOKEN]
    with _heard() as heard:
        async with subject.alive() as live:
            said = [
                (await _verdict(live, samples.with_token(subject.request, token)), "what it answers")
                for token in tokens
            ]
    for text, where in [*heard(), *said]:
        if any(token in text for token in tokens):
            raise Fault(f"the token stands in {where}: name the principal, or a few characters of the token's hash")


async def fifty_callers_at_once_are_told_apart(subject: Subject) -> None:
    """Each is who he is alone, also when others are asked about at the same time."""
    tokens = [
        samples.caller(number) if number % 2 else subject.request.bearer_token for number in range(samples.CALLERS)
    ]
    requests = [samples.with_token(subject.request, token) for token in tokens]
    async with subject.alive() as live:
        alone = [await _verdict(live, request) for request in requests]
    async with subject.alive() as live:
        together = await asyncio.gather(*(_verdict(live, request) for request in requests))
    if alone != together:
        raise Fault(f"of {samples.CALLERS} callers at once some are taken for others: {NO_SHARING}")


async def _verdict(live: Live, request: Request) -> str:
    try:
        principal = await live.call("authenticate", request)
    except Reject as reject:
        return f"refused: {reject.status} {reject.code} {reject.message}"
    except Exception as error:  # noqa: BLE001 - a fault of the plugin's, whatever it is; its cause may tell the token
        token = request.bearer_token[:SHOWN]
        remedy = 'raise Reject(401, "...") for whom you do not know'
        raise raised(f"authenticate of the token {token!r}", error, remedy) from None
    if not isinstance(principal, Principal):
        raise Fault(f"authenticate gave a {type(principal).__name__}: return a Principal, or raise Reject")
    return f"admitted: {principal.id}"


@contextmanager
def _heard() -> Iterator[Callable[[], list[tuple[str, str]]]]:
    """All that is logged or printed meanwhile, and where."""
    handler, root, printed = _Lines(), logging.getLogger(), io.StringIO()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            yield lambda: [*((line, "the log") for line in handler.lines), (printed.getvalue(), "what it prints")]
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))
