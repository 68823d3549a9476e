"""Checks of each kind. Each raises Fault with what is wrong and the remedy."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from plugin_sdk.errors import NotReady, PluginError, Reject
from plugin_sdk.kinds import Filter, Plugin, Route, Stats
from plugin_sdk.messages import DeviceStatus, Endpoint, ModelInfo, Outcome, Principal, Request, Target, Usage
from plugin_sdk.reports import UsageReport
from plugin_sdk.testing import samples
from plugin_sdk.testing.common import Deaf
from plugin_sdk.testing.harness import COMPLETION, Harness
from plugin_sdk.testing.subject import Fault, Live, Subject, raised

WORD = re.compile(r"caller-\d{4}-of-the-contract")
PATH = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*")
PROBES = 8
LEAST_TOKEN = 6  # characters: shorter ones are found in any text
SHOWN = 20

Check = Callable[[Subject], Awaitable[None]]


def checks_of(plugin: type[Plugin[Any]]) -> tuple[Check, ...]:
    """The checks that concern a plugin of this kind, and with these hooks."""
    if issubclass(plugin, Filter) and (plugin.on_chunk, plugin.on_event) == (Filter.on_chunk, Filter.on_event):
        return (fifty_at_once_are_not_mixed_up,)
    if issubclass(plugin, Route) and plugin.models is not Route.models:
        return (*CHECKS["route"], models_are_listed_and_found)
    if issubclass(plugin, Stats):
        return (*CHECKS["stats"], *(check for name, check in _OF_STATS.items() if _overrides(plugin, name)))
    return CHECKS.get(plugin.kind, ())


# --- devices --------------------------------------------------------------------------------------------------------


async def memory_adds_up_and_ids_are_stable(subject: Subject) -> None:
    """0 <= used <= total, and the same devices under the same names whoever asks, also at once."""
    async with subject.alive() as live:
        first = await _probe(live)
        for device in first:
            _check_memory(device)
        ids = [device.id for device in first]
        if len(set(ids)) != len(ids):
            raise Fault(f"several devices have the id {ids[0]!r}: give each one of its own, a UUID or a serial number")
        for again in await asyncio.gather(*(_probe(live) for _ in range(PROBES))):
            if sorted(device.id for device in again) != sorted(ids):
                remedy = "an id must be the same at each probe, or the memory of running servers is lost sight of"
                raise Fault(f"ids were {ids}, then {[device.id for device in again]}: {remedy}")


async def _probe(live: Live) -> list[DeviceStatus]:
    try:
        found = await live.call("probe")
    except PluginError:
        return []
    except Exception as error:
        remedy = "raise PluginError with what a person should know, or return [] where there is no such device"
        raise raised("probe", error, remedy) from error
    devices = found if isinstance(found, list) else [found]
    for device in devices:
        if not isinstance(device, DeviceStatus):
            raise Fault(f"probe gave a {type(device).__name__}: return a DeviceStatus, or a list of them")
    return devices


def _check_memory(device: DeviceStatus) -> None:
    used = device.total_mb - device.free_mb if device.used_mb is None else device.used_mb
    if device.problem:
        return  # it cannot be read, and says so
    if not (0 <= used <= device.total_mb and 0 <= device.free_mb <= device.total_mb):
        figures = f"total_mb={device.total_mb} free_mb={device.free_mb} used_mb={device.used_mb}"
        raise Fault(f"a device cannot have {figures}: figures are MB of 2^20 bytes, and used is at most the total")


# --- auth -----------------------------------------------------------------------------------------------------------


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
        raise Fault(f"of {samples.CALLERS} callers at once some are taken for others: {_NO_SHARING}")


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


# --- filters --------------------------------------------------------------------------------------------------------


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
            raise Fault(f"of {samples.CALLERS} requests at once some have got what is another's: {_NO_SHARING}")


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


# --- routes ---------------------------------------------------------------------------------------------------------


async def requests_go_to_a_target(subject: Subject) -> None:
    """One of those that there are, a complete one of its own, or None; also if there are none."""
    async with subject.alive() as live:
        for targets in (samples.TARGETS, samples.TARGETS[-1:], ()):
            found = await asyncio.gather(*(_resolved(live, subject, n, targets) for n in range(samples.CALLERS)))
            for number, target in enumerate(found):
                if set(WORD.findall(repr(target))) - {samples.caller(number)}:
                    raise Fault(f"of {samples.CALLERS} requests at once some go where another should: {_NO_SHARING}")


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
                    raise raised(f"finished({target.name!r}, {_shown(outcome)})", error, remedy) from error


# --- stats ----------------------------------------------------------------------------------------------------------


async def any_outcome_can_be_recorded(subject: Subject) -> None:
    """Empty, huge and ugly ones, fifty at once, and while what it writes to cannot be reached."""
    async with subject.alive() as live:
        for outcome in samples.OUTCOMES:
            await _record(live, outcome)
        await asyncio.gather(*(_record(live, samples.OUTCOMES[0]) for _ in range(samples.CALLERS)))


async def several_outcomes_can_be_recorded_at_once(subject: Subject) -> None:
    """The same ones, by what is called in place of `record`."""
    async with subject.alive() as live:
        outcomes = list(samples.OUTCOMES)
        await _recorded(live.call("record_many", outcomes), f"record_many of {len(outcomes)} outcomes")


async def servers_can_be_told_of_again_and_again(subject: Subject) -> None:
    """None at all, the same ones once more, and such as have ended."""
    async with subject.alive() as live:
        for servers in ((), samples.SERVERS[:1], samples.SERVERS, samples.SERVERS):
            try:
                await live.call("loaded", list(servers))
            except Exception as error:
                remedy = "expect that there may be none, and that the same ones come again"
                raise raised(f"loaded of {len(servers)} servers", error, remedy) from error


async def reports_have_what_was_asked_for(subject: Subject) -> None:
    """A UsageReport whose rows have a value for each name in `by`; or Reject, or PluginError."""
    async with subject.alive() as live:
        for query in samples.QUERIES:
            try:
                found = await live.call("report", query)
            except (Reject, PluginError):
                continue
            except Exception as error:
                remedy = 'raise Reject(400, "...") for what it cannot tell, and PluginError if there is nothing to read'
                raise raised(f"report({ascii(query)[:160]})", error, remedy) from error
            if not isinstance(found, UsageReport):
                raise Fault(f"report gave a {type(found).__name__}: return a UsageReport")
            for row in found.rows:
                if len(row.group) != len(query.by):
                    raise Fault(f"report by {query.by} gave a row of {row.group}: give a value for each name in `by`")


async def _record(live: Live, outcome: Outcome) -> None:
    await _recorded(live.call("record", outcome), f"record({_shown(outcome)})")


async def _recorded(call: Awaitable[Any], what: str) -> None:
    try:
        await call
    except Exception as error:
        remedy = "count what cannot be written (self.metrics.count), and expect fields that are empty or out of range"
        raise raised(what, error, remedy) from error


def _overrides(plugin: type[Stats[Any]], name: str) -> bool:
    return getattr(plugin, name) is not getattr(Stats, name)


_OF_STATS: dict[str, Check] = {
    "record_many": several_outcomes_can_be_recorded_at_once,
    "loaded": servers_can_be_told_of_again_and_again,
    "report": reports_have_what_was_asked_for,
}


def _shown(outcome: Outcome) -> str:
    return ascii(outcome)[:160]


# --- interfaces -----------------------------------------------------------------------------------------------------


async def endpoints_are_well_formed(subject: Subject) -> None:
    """Absolute paths without queries, each once, with a method and an operation."""
    endpoints: Any = getattr(subject.plugin, "endpoints", ())
    if not isinstance(endpoints, tuple) or not endpoints:
        raise Fault('it has no endpoints: endpoints = (Endpoint("/v1/NAME", "NAME"),)')
    for one in endpoints:
        if not isinstance(one, Endpoint) or not PATH.fullmatch(one.path):
            raise Fault(f'{one!r} is no endpoint: expected Endpoint("/v1/NAME", "NAME"), a path without query')
        if not one.operation or not one.method.isalpha() or not one.method.isupper():
            raise Fault(f'{one!r} needs an operation, such as "chat", and a method such as "POST"')
    if len({(one.method, one.path) for one in endpoints}) != len(endpoints):
        raise Fault("an endpoint stands there twice: name each path once")


async def usage_survives_garbage(subject: Subject) -> None:
    """Bodies that are cut off, of another shape, or no text at all: then there is no usage to read."""
    async with subject.alive() as live:
        for tail in samples.TAILS:
            for streamed in (True, False):
                try:
                    found = await live.call("usage", tail, streamed, on_loop=True)
                except Exception as error:
                    remedy = "return None for what cannot be read"
                    raise raised(f"usage({tail[:SHOWN]!r}, streamed={streamed})", error, remedy) from error
                if found is not None and not isinstance(found, Usage):
                    raise Fault(f"usage gave a {type(found).__name__}: return a Usage, or None")


async def errors_stand_on_one_line(subject: Subject) -> None:
    """Also inside a stream; and requests are refused by Reject alone."""
    bodies = (b"", b"\xff", b"[]", b"null", b'{"model": 7}')
    async with subject.alive() as live:
        error = await live.call("error", 503, "busy", 'try "again"\nlater', on_loop=True)
        if not isinstance(error, bytes) or b"\n" in error:
            raise Fault("error must return bytes on one line: encode it with msgspec.json.encode")
        event = await live.call("error_event", error, on_loop=True)
        if not isinstance(event, bytes) or not event.endswith(b"\n\n"):
            raise Fault("error_event must return bytes that end an event, with an empty line")
        for body in bodies:
            try:
                await live.call("validate", msgspec.structs.replace(subject.request, body=body), on_loop=True)
            except Reject:
                continue
            except Exception as raised_by:
                raise raised(f"validate of the body {body!r}", raised_by, "raise Reject(400, reason)") from raised_by


async def servers_that_fail_are_not_ready(subject: Subject) -> None:
    """False, NotReady or OSError while the server does not answer as it should."""
    async with subject.alive() as live:
        for method in ("ready", "alive"):
            try:
                found = await live.call(method, Deaf())
            except (NotReady, OSError):
                continue
            except Exception as error:
                raise raised(
                    f"{method} of a server that answers 503", error, "raise NotReady with the reason"
                ) from error
            if found is not False:
                remedy = "return False, or raise NotReady with the reason"
                raise Fault(f"{method} gave {found!r} for a server that answers 503: {remedy}")


_NO_SHARING = "keep what is a request's in local variables or exchange.state, not in self or in the module"
_NOT_BY_PIECE = "Override on_event, which gets whole events, or hold back in exchange.state what may be incomplete"

CHECKS: dict[str, tuple[Check, ...]] = {
    "device": (memory_adds_up_and_ids_are_stable,),
    "auth": (anybody_is_admitted_or_rejected, tokens_are_never_told, fifty_callers_at_once_are_told_apart),
    "filter": (cuts_of_the_stream_do_not_matter, fifty_at_once_are_not_mixed_up),
    "route": (requests_go_to_a_target, finished_takes_any_outcome),
    "stats": (any_outcome_can_be_recorded,),
    "interface": (
        endpoints_are_well_formed,
        usage_survives_garbage,
        errors_stand_on_one_line,
        servers_that_fail_are_not_ready,
    ),
}
