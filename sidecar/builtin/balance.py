"""Which of several servers a request goes to: in turn, to the least busy, by weight, or in the manifest's order.

One that has failed a few times in a row is left out for a while, and then tried with a single request.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal

from plugin_sdk import Config, Duration, End, Outcome, Request, Route, Target, inline

Policy = Literal["round_robin", "least_busy", "weighted", "failover"]


class Settings(Config):
    """How to choose, and when not to.

    policy: `round_robin` in turn; `least_busy` the fewest requests for its weight; `weighted` in turn, as often as the
    weight says; `failover` the first that can. max_failures: in a row, after which a server is left out; 0 = never.
    out_for: how long.
    """

    policy: Policy = "least_busy"
    max_failures: int = 3
    out_for: Duration = Duration(10)

    def __post_init__(self) -> None:
        if self.max_failures < 0:
            raise ValueError("max_failures is 0 (never) or more")


class Server:
    """What is remembered of a target. current: its place in the smooth weighted round robin."""

    __slots__ = ("chosen_at", "current", "failures", "out_until", "tried_at")

    def __init__(self) -> None:
        self.current = 0
        self.chosen_at = 0  # a count, not a time
        self.failures = 0
        self.out_until = 0.0
        self.tried_at: float | None = None  # when a single request was sent to see whether it is well again


class Servers:
    """Those of one model, and the choice among them. Knows no clock: `now` is given, in seconds."""

    def __init__(self) -> None:
        self._known: dict[str, Server] = {}
        self._count = 0

    def choose(self, targets: Sequence[Target], config: Settings, now: float) -> Target | None:
        """One of those that are ready; None if none is. If all are left out, the one whose time is up first."""
        self._forget(targets)
        ready = [target for target in targets if target.ready]
        if not ready:
            return None
        healthy = [target for target in ready if self._may(self._server(target), config, now)]
        if not healthy:
            return min(ready, key=lambda target: self._server(target).out_until)
        target = self._pick(healthy, config.policy)
        server = self._server(target)
        self._count += 1
        server.chosen_at = self._count
        if config.max_failures and server.failures >= config.max_failures:
            server.tried_at = now
        return target

    def finished(self, name: str, end: End, status: int, config: Settings, now: float) -> None:
        """Learn from how a request ended."""
        server = self._known.get(name)
        if server is None:
            return
        if end is End.UPSTREAM_FAILED or (end is End.OK and status >= 500):
            server.failures += 1
            server.out_until = now + config.out_for
        elif end is End.OK:
            server.failures = 0
        # A client that left, or a refusal, says nothing about the server.
        server.tried_at = None

    def _may(self, server: Server, config: Settings, now: float) -> bool:
        """Whether it is well, or it is time to try it."""
        if not config.max_failures or server.failures < config.max_failures:
            return True
        being_tried = server.tried_at is not None and now < server.tried_at + config.out_for
        return now >= server.out_until and not being_tried

    def _pick(self, targets: Sequence[Target], policy: Policy) -> Target:
        if policy == "failover":
            return targets[0]
        if policy == "least_busy":
            return min(targets, key=lambda one: (one.in_flight / max(1, one.weight), self._server(one).chosen_at))
        return self._in_turn(targets, weighted=policy == "weighted")

    def _in_turn(self, targets: Sequence[Target], *, weighted: bool) -> Target:
        """Smooth weighted round robin, as nginx has it: 5, 1, 1 give a a b a c a a, not a a a a a b c."""
        weights = {one.name: max(0, one.weight) if weighted else 1 for one in targets}
        if not any(weights.values()):
            weights = dict.fromkeys(weights, 1)
        for one in targets:
            self._server(one).current += weights[one.name]
        chosen = max(targets, key=lambda one: (weights[one.name] > 0, self._server(one).current))
        self._server(chosen).current -= sum(weights.values())
        return chosen

    def _server(self, target: Target) -> Server:
        found = self._known.get(target.name)
        if found is None:
            found = self._known[target.name] = Server()
        return found

    def _forget(self, targets: Sequence[Target]) -> None:
        """Drop those that are no targets any more."""
        if len(self._known) > len(targets):
            names = {target.name for target in targets}
            self._known = {name: server for name, server in self._known.items() if name in names}


class Balance(Route[Settings]):
    """Spread the requests of a model over the servers that are ready.

    If none is ready it leaves the choice to the manifest, which has one started.
    """

    reads_body = False

    clock: Callable[[], float] = staticmethod(time.monotonic)

    async def open(self) -> None:
        self._models: dict[str, Servers] = {}

    @inline
    def resolve(self, request: Request, targets: tuple[Target, ...]) -> Target | None:
        """One of the targets that are ready, or None."""
        if not targets:
            return None
        servers = self._models.get(request.model)
        if servers is None:
            servers = self._models[request.model] = Servers()
        return servers.choose(targets, self.config, self.clock())

    @inline
    def finished(self, target: Target, outcome: Outcome) -> None:
        """Take note of how the server did."""
        servers = self._models.get(outcome.model)
        if servers is not None:
            servers.finished(target.name, outcome.end, outcome.status, self.config, self.clock())
