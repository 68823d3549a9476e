"""Checks of filters and routes. Each raises Fault with what is wrong and the remedy."""

from __future__ import annotations

import asyncio
import contextlib
import re

import msgspec

from plugin_sdk.errors import Reject
from plugin_sdk.messages import ModelInfo, Request, Target
from plugin_sdk.testing import samples
from plugin_sdk.testing.harness import COMPLETION, Harness
from plugin_sdk.testing.subject import NO_SHARING, SHOWN, Fault, Live, Subject, raised, shown

WORD = re.compile(r"caller-\d{4}-of-the-contract")

_NOT_BY_PIECE = "Override on_event, which gets whole events, or hold back in exchange.state what may be incomplete"


async def cuts_of_the_stream_do_not_matter(subject: Subject) -> None:
    """The same comes out wherever the body is cut into pieces, at any byte: networks cut where they like."""
    whole = msgspec.json.encode(COMPLETION)
    stream = subject.stream
    async with subject.alive() as live:
        expected, again = await _body(live, subject, [stream]), await _body(live, subject, [stream])
        if expected != again:
            raise Fault(
                "the same stream gives something else the second time: keep in exchange.state what is a request's"
            )
        cuts = [[stream[:at], stream[at:]] for at in range(1, len(stream))]
        for pieces in [*cuts, [stream[at : at + 1] for at in range(len(stream))]]:
            if await _body(live, subject, pieces) != expected:
                where = f"after byte {len(pieces[0])}: ...{pieces[0][-SHOWN:]!r} | {pieces[1][:SHOWN]!r}..."
                raise Fault(f"another body comes out if the stream is cut {where}. {_NOT_BY_PIECE}")
        await _body(live, subject, [whole])


async def _body(live: Live, subject: Subject, pieces: list[bytes]) -> bytes:
    answer = await _harness(live).send(subject.request, upstream=pieces)
    if answer.sent is None:
        raise Fault(f"it answers the request itself ({answer.status}): give contract(..., request=...) one that passes")
    return answer.body


async def fifty_at_once_are_not_mixed_up(subject: Subject) -> None:
    """Nothing of one request gets into another that is on its way at the same time."""
    alone, again = await _alone(subject), await _alone(subject)
    async with subject.alive() as live:
        together = await asyncio.gather(*(_marked(live, subject, number) for number in range(samples.CALLERS)))
    for number, found in enumerate(together):
        foreign = set(WORD.findall(found)) - {samples.caller(number)}
        if foreign or (alone[number] == again[number] != found):
            raise Fault(f"of {samples.CALLERS} requests at once some have got what is another's: {NO_SHARING}")


async def _alone(subject: Subject) -> list[str]:
    async with subject.alive() as live:
        return [await _marked(live, subject, number) for number in range(samples.CALLERS)]


async def _marked(live: Live, subject: Subject, number: int) -> str:
    word = samples.caller(number)
    answer = await _harness(live).send(samples.marked(subject.request, word), upstream=samples.stream(word))
    sent = answer.sent.body if answer.sent is not None else b""
    return b"\n".join([b"%d" % answer.status, answer.body, sent]).decode("utf-8", "replace")


def _harness(live: Live) -> Harness:
    harness = Harness(live.plugin)
    harness.host = live.host
    return harness


async def requests_go_to_a_target(subject: Subject) -> None:
    """One of those that there are, a complete one of its own, or None; also if there are none."""
    async with subject.alive() as live:
        for targets in (samples.TARGETS, samples.TARGETS[-1:], ()):
            found = await asyncio.gather(*(_resolved(live, subject, n, targets) for n in range(samples.CALLERS)))
            for number, target in enumerate(found):
                if set(WORD.findall(repr(target))) - {samples.caller(number)}:
                    raise Fault(f"of {samples.CALLERS} requests at once some go where another should: {NO_SHARING}")


async def _resolved(live: Live, subject: Subject, number: int, targets: tuple[Target, ...]) -> Target | None:
    try:
        return await _target_of(live, samples.marked(subject.request, samples.caller(number)), targets)
    except Reject:
        return None


async def _target_of(live: Live, request: Request, targets: tuple[Target, ...]) -> Target | None:
    """What resolve gives. Raises Reject if the plugin does."""
    try:
        target = await live.call("resolve", request, targets)
    except Reject:
        raise
    except Exception as error:
        remedy = "return None for what it does not know, and expect that there may be no targets"
        raise raised(f"resolve with {len(targets)} targets", error, remedy) from error
    if target is not None and not isinstance(target, Target):
        raise Fault(f"resolve gave a {type(target).__name__}: return one of the targets, a Target of your own, or None")
    if (
        target is not None
        and target not in targets
        and not target.base_url.startswith(("http://", "https://", "unix:/"))
    ):
        raise Fault(
            f'resolve gave a target of its own with the base_url "{target.base_url}": it needs "http://HOST:PORT"'
        )
    return target


async def models_are_listed_and_found(subject: Subject) -> None:
    """A list of ModelInfo, each name once, and `resolve` says where each of them is."""
    async with subject.alive() as live:
        try:
            found = await live.call("models")
        except Exception as error:
            raise raised("models", error, "return [] where there are none") from error
        if not isinstance(found, list) or not all(isinstance(one, ModelInfo) for one in found):
            raise Fault(f"models gave {ascii(found)[:80]}: return a list with ModelInfo(name=...) for each")
        names = [name for one in found for name in (one.name, *one.aliases)]
        for name in names:
            if not isinstance(name, str) or not name or names.count(name) > 1:
                raise Fault(f"models gave the name {name!r} {names.count(name)} times: each model needs one of its own")
        for one in found[:SHOWN]:
            request = msgspec.structs.replace(subject.request, model=one.name, requested_model=one.name)
            with contextlib.suppress(Reject):
                if await _target_of(live, request, ()) is None:
                    raise Fault(f"resolve gave None for {one.name!r}, which models lists: give the Target where it is")


async def finished_takes_any_outcome(subject: Subject) -> None:
    """Of its own targets and of those that are gone meanwhile."""
    gone = Target(name="gone", base_url="http://127.0.0.1:9")
    async with subject.alive() as live:
        for outcome in samples.OUTCOMES:
            for target in (samples.TARGETS[0], gone):
                try:
                    await live.call("finished", target, outcome, on_loop=True)
                except Exception as error:
                    remedy = "expect targets that are gone, and fields that are empty or out of range"
                    raise raised(f"finished({target.name!r}, {shown(outcome)})", error, remedy) from error
