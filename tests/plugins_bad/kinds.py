"""Wrong in what their kinds require."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Sequence
from typing import Any, cast

from plugin_sdk import (
    Auth,
    Device,
    DeviceStatus,
    Endpoint,
    Event,
    Exchange,
    Filter,
    Interface,
    LoadedServer,
    ModelInfo,
    Outcome,
    Principal,
    Reject,
    Reply,
    Request,
    Route,
    Stats,
    Target,
    Upstream,
    Usage,
    UsageQuery,
    UsageReport,
    UsageRow,
    inline,
)

_COUNT = itertools.count()


class MoreThanAll(Device):
    """More is used than there is."""

    provides = "bad"

    def probe(self) -> DeviceStatus:
        return DeviceStatus(total_mb=100, free_mb=50, used_mb=200)


class BytesForMegabytes(Device):
    """Free memory in another unit than the total."""

    provides = "bad"

    def probe(self) -> DeviceStatus:
        return DeviceStatus(total_mb=100, free_mb=50 << 20)


class NewIds(Device):
    """Another name at each probe."""

    provides = "bad"

    def probe(self) -> DeviceStatus:
        return DeviceStatus(total_mb=100, free_mb=50, id=f"gpu-{next(_COUNT)}")


class SameIds(Device):
    """Two devices of one name."""

    provides = "bad"

    def probe(self) -> list[DeviceStatus]:
        return [DeviceStatus(total_mb=100, free_mb=50)] * 2


class DeviceAsDict(Device):
    """Not what probe returns."""

    provides = "bad"

    def probe(self) -> DeviceStatus:
        return {"total_mb": 100}  # type: ignore[return-value] # that is what is wrong


class LogsTheToken(Auth):
    """Says who was refused, all too well."""

    def authenticate(self, request: Request) -> Principal:
        self.log.debug("refused %s", request.bearer_token)
        raise Reject(401, "no")


class PrintsTheToken(Auth):
    """As one does while looking for an error."""

    def authenticate(self, request: Request) -> Principal:
        print(dict(request.headers.raw))
        raise Reject(401, "no")


class NamesTheToken(Auth):
    """Whoever has a token goes by it."""

    def authenticate(self, request: Request) -> Principal:
        return Principal(request.bearer_token)


class RaisesKeyError(Auth):
    """Takes it for granted that a token is known."""

    def authenticate(self, request: Request) -> Principal:
        return {"sk-1": Principal("ada")}[request.bearer_token]


class AdmitsNone(Auth):
    """Returns nothing for whom it does not know."""

    def authenticate(self, request: Request) -> Principal:
        return None  # type: ignore[return-value] # that is what is wrong


class MixesCallers(Auth):
    """Keeps the caller in a place that all share."""

    async def authenticate(self, request: Request) -> Principal:
        self.token = request.bearer_token
        await asyncio.sleep(0)
        if self.token.startswith("caller"):
            raise Reject(401, "no")
        return Principal("ada")


class SeesPieces(Filter):
    """Looks for a word in pieces that may cut it in two."""

    @inline
    def on_chunk(self, exchange: Exchange, chunk: bytes) -> bytes:
        return chunk.replace(b"[DONE]", b"[OVER]")


class MixesStreams(Filter):
    """Holds back a request's text in a place that all share."""

    held = b""

    async def on_chunk(self, exchange: Exchange, chunk: bytes) -> bytes:
        out, self.held = self.held, chunk
        await asyncio.sleep(0)
        return out


class EventAsDict(Filter):
    """Not what on_event returns."""

    @inline
    def on_event(self, exchange: Exchange, event: Event) -> Event | None:
        return cast(Any, json.loads(event.data)) if event.is_json else None


class NeedsTargets(Route):
    """Takes it for granted that there are targets."""

    @inline
    def resolve(self, request: Request, targets: tuple[Target, ...]) -> Target:
        return targets[0]


class NamesATarget(Route):
    """Not what resolve returns."""

    @inline
    def resolve(self, request: Request, targets: tuple[Target, ...]) -> Target | None:
        return targets[0].name if targets else None  # type: ignore[return-value] # that is what is wrong


class HalfATarget(Route):
    """A target of its own that cannot be reached."""

    @inline
    def resolve(self, request: Request, targets: tuple[Target, ...]) -> Target | None:
        return Target(name="mine", base_url="127.0.0.1:8000")


class ModelsAsText(Route):
    """Not what models returns."""

    def resolve(self, request: Request, targets: tuple[Target, ...]) -> Target | None:
        return None

    def models(self) -> list[ModelInfo]:
        return ["qwen"]  # type: ignore[list-item] # that is what is wrong


class ModelsTwice(ModelsAsText):
    """Two models of one name."""

    def models(self) -> list[ModelInfo]:
        return [ModelInfo(name="qwen"), ModelInfo(name="llama", aliases=("qwen",))]


class ModelsNowhere(ModelsAsText):
    """A model that it knows nothing about."""

    def models(self) -> list[ModelInfo]:
        return [ModelInfo(name="qwen")]


class KnowsItsTargets(Route):
    """Takes it for granted that a target is one of those that it has seen."""

    def resolve(self, request: Request, targets: tuple[Target, ...]) -> Target | None:
        return None

    def finished(self, target: Target, outcome: Outcome) -> None:
        {"a": 0, "b": 0}[target.name] += 1


class NeedsUsage(Stats):
    """Takes it for granted that the server counted."""

    async def record(self, outcome: Outcome) -> None:
        self.metrics.count("tokens", cast(Usage, outcome.usage).output_tokens)


class NeedsItsSink(Stats):
    """Lets the request's statistics fail with the network."""

    async def record(self, outcome: Outcome) -> None:
        await self.http.post("http://stats.example/", json={"model": outcome.model})


class NeedsUsageOfEach(Stats):
    """Is careful with one outcome, and not with several."""

    def record(self, outcome: Outcome) -> None:
        self.record_many([outcome] if outcome.usage else [])

    def record_many(self, outcomes: Sequence[Outcome]) -> None:
        self.metrics.count("tokens", sum(cast(Usage, outcome.usage).output_tokens for outcome in outcomes))


class CountsServersOnce(Stats):
    """Takes each server for a new one."""

    known: set[str]

    def record(self, outcome: Outcome) -> None:
        """Nothing of interest."""

    def loaded(self, servers: Sequence[LoadedServer]) -> None:
        self.known = getattr(self, "known", set())
        for server in servers:
            if server.id in self.known:
                raise KeyError(server.id)
            self.known.add(server.id)


class ReportsATable(Stats):
    """Has a shape of its own."""

    def record(self, outcome: Outcome) -> None:
        """Nothing of interest."""

    def report(self, query: UsageQuery) -> UsageReport:
        return cast(UsageReport, {"rows": []})


class ReportsAllInOne(ReportsATable):
    """Does not look at what is asked for."""

    def report(self, query: UsageQuery) -> UsageReport:
        return UsageReport(rows=(UsageRow(requests=1),))


class ReportsWhatItKnows(ReportsATable):
    """Knows two things, and takes it for granted that nobody asks for another."""

    def report(self, query: UsageQuery) -> UsageReport:
        known = {"model": "qwen", "day": "2026-11-25"}
        return UsageReport(rows=(UsageRow(group=tuple(known[name] for name in query.by)),))


class NoEndpoints(Interface):
    """A mode without a path."""

    provides = "bad"


class RelativePath(Interface):
    """Not a path that a client can ask for."""

    provides = "bad"
    endpoints = (Endpoint("v1/bad?x=1", "bad"),)


class TrustsBodies(Interface):
    """Takes it for granted that a body is JSON."""

    provides = "bad"
    endpoints = (Endpoint("/v1/bad", "bad"),)

    def usage(self, tail: bytes, streamed: bool) -> Usage | None:
        return Usage(input_tokens=json.loads(tail)["tokens"])


class TrustsRequests(Interface):
    """Takes it for granted that a body is an object."""

    provides = "bad"
    endpoints = (Endpoint("/v1/bad", "bad"),)

    def validate(self, request: Request) -> None:
        if "model" not in json.loads(request.body):
            raise Reject(400, "no model")


class LinesInErrors(Interface):
    """An error that breaks a stream."""

    provides = "bad"
    endpoints = (Endpoint("/v1/bad", "bad"),)

    def error(self, status: int, code: str, message: str, param: str | None = None) -> bytes:
        return message.encode()


class AlwaysReady(Interface):
    """Does not look at what the server says."""

    provides = "bad"
    endpoints = (Endpoint("/v1/bad", "bad"),)

    async def ready(self, upstream: Upstream) -> bool:
        reply: Reply = await upstream.get("/health")
        return reply.status > 0


class AlwaysAlive(AlwaysReady):
    """Looks once."""

    async def ready(self, upstream: Upstream) -> bool:
        return (await upstream.get("/health")).status == 200

    async def alive(self, upstream: Upstream) -> bool:
        return True
