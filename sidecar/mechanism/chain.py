"""A model's plugin chain, compiled once: which calls to make, with their deadlines and what to do when they fail.

A stage that cannot run is still a stage: an auth plugin that is missing, broken, slow or wrong refuses the request.
"""

from __future__ import annotations

from collections.abc import Sequence

from plugin_sdk import ANONYMOUS, Outcome, Principal, Request, Route, Target
from sidecar.mechanism import results
from sidecar.mechanism.calls import direct
from sidecar.mechanism.filters import Filters, Passage
from sidecar.mechanism.hooks import Hook, UnavailableError, overrides, unavailable
from sidecar.mechanism.instance import Instance
from sidecar.mechanism.listing import lists_models

__all__ = ["Chain", "Instance", "Routed"]


class Chain:
    """The stages of one model, in the manifest's order.

    has_auth, has_route: there is somebody to be asked who is calling, and where a request goes. auth_inline,
    route_inline: none of them waits for anything. supplies: there may be models that no manifest declares.
    wants_usage: somebody is told of outcomes. reads_body: somebody has to see the bodies of requests.
    """

    def __init__(self, instances: Sequence[Instance]) -> None:
        self._auths = [Guard(instance) for instance in instances if instance.kind == "auth"]
        self._sinks = [instance.sink for instance in instances if instance.sink is not None]
        self._routes = [Router(instance) for instance in instances if instance.kind == "route"]
        self._suppliers = [router for router in self._routes if router.supplies]
        self._filters = [instance for instance in instances if instance.kind == "filter"]
        self.has_auth = bool(self._auths)
        self.auth_inline = all(auth.inline for auth in self._auths)
        self.has_route = bool(self._routes)
        self.route_inline = all(router.inline for router in self._routes)
        self.supplies = bool(self._suppliers)
        self.wants_usage = bool(self._sinks or self._filters or self._routes)
        seeing = [instance for instance in instances if instance.kind in ("auth", "route", "filter")]
        self.reads_body = any(instance.plugin is None or instance.plugin.reads_body for instance in seeing)
        self._compiled: dict[tuple[str, bool], Filters] = {}

    async def authenticate(self, request: Request) -> Principal:
        """Who is calling: each auth plugin must admit the caller, the last one names it. Raises Reject."""
        principal = ANONYMOUS
        for auth in self._auths:
            principal = await auth(request)
        return principal

    def authenticate_now(self, request: Request) -> Principal:
        """The same at once, where `auth_inline`. Raises Reject."""
        principal = ANONYMOUS
        for auth in self._auths:
            principal = auth.now(request)
        return principal

    def passage(self, mode: str, most_bytes: int, *, events: bool = True) -> Passage | None:
        """A request's way through the filters; None without any. events: whether the mode's answers can be parsed."""
        filters = self.filters(mode, events=events)
        return Passage(filters, most_bytes) if filters is not None else None

    def filters(self, mode: str, *, events: bool = True) -> Filters | None:
        """Those on the way of all requests; None without any."""
        if not self._filters:
            return None
        compiled = self._compiled.get((mode, events))
        if compiled is None:
            compiled = self._compiled[mode, events] = Filters(self._filters, mode, events=events)
        return compiled if compiled.steps else None

    async def resolve(self, request: Request, targets: tuple[Target, ...]) -> Routed | None:
        """Where the first route plugin that knows sends the request; None leaves it to the manifest. Raises Reject."""
        for router in self._routes:
            target = await router.resolve(request, targets)
            if target is not None:
                return Routed(router, target)
        return None

    async def supply(self, request: Request) -> Routed | None:
        """Where the first route plugin with models of its own that knows the model sends the request.

        None: there is no such model. Raises Reject; also if nobody knows it, and one that might have known has failed.
        """
        failed: UnavailableError | None = None
        for router in self._suppliers:
            try:
                target = await router.supply(request)
            except UnavailableError as error:
                failed = failed or error
                continue
            if target is not None:
                return Routed(router, target)
        if failed is not None:
            raise failed
        return None

    def record(self, outcome: Outcome) -> None:
        """Tell the stats plugins, some time soon."""
        for sink in self._sinks:
            sink.put(outcome)


class Guard:
    """One auth plugin, failing closed: clients learn that it failed, the log says how. inline: it waits for nothing."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._authenticate = Hook(instance, "authenticate", results.principal) if not instance.problem else None
        self.inline = self._authenticate is None or self._authenticate.inline

    async def __call__(self, request: Request) -> Principal:
        """Who is calling. Raises Reject."""
        call = self._authenticate
        if call is None:
            raise unavailable(self._instance, "is not available")
        principal = await call(request)
        return principal if principal is not None else self._unnamed(call)

    def now(self, request: Request) -> Principal:
        """The same at once, where it is inline. Raises Reject."""
        call = self._authenticate
        if call is None:
            raise unavailable(self._instance, "is not available")
        principal = call.now(request)
        return principal if principal is not None else self._unnamed(call)

    def _unnamed(self, call: Hook[Principal]) -> Principal:
        """Raises Reject: nobody was named, so nobody may pass."""
        call.failed(results.expected("a Principal", None))
        raise unavailable(self._instance, "failed")


class Router:
    """One route plugin. One that cannot be used leaves it to the next, unless its on_error says "deny"."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        usable = not instance.problem and isinstance(instance.plugin, Route)
        self._resolve = Hook(instance, "resolve", results.target) if usable else None
        self._finished = overrides(instance.plugin, Route, "finished")
        self.inline = self._resolve is None or self._resolve.inline
        self.supplies = lists_models(instance)
        self._supply = Hook(instance, "resolve", results.own_target, deny=True) if usable and self.supplies else None

    async def resolve(self, request: Request, targets: tuple[Target, ...]) -> Target | None:
        """One of the targets, one of its own, or None. Raises Reject."""
        if self._resolve is not None:
            return await self._resolve(request, targets)
        if self._instance.on_error == "deny":
            raise unavailable(self._instance, "is not available")
        return None

    async def supply(self, request: Request) -> Target | None:
        """Where its own model is; None if it has no such model. Raises Reject."""
        if self._supply is None or self._instance.out:
            raise unavailable(self._instance, "is not available")
        return await self._supply(request, ())

    def finished(self, target: Target, outcome: Outcome) -> None:
        """Tell it what became of a request. Never raises."""
        plugin = self._instance.plugin
        if not self._finished or not isinstance(plugin, Route):
            return
        try:
            result: object = direct(plugin.finished, target, outcome, marker=self._instance.marker)
            if result is not None:
                raise results.expected("a plain method that returns None", result)
        except Exception as error:  # noqa: BLE001 - taken note of; the request is over
            self._instance.went_wrong("finished", error)


class Routed:
    """A choice, and who made it."""

    def __init__(self, router: Router, target: Target) -> None:
        self._router = router
        self.target = target

    def finished(self, outcome: Outcome) -> None:
        """Tell whoever chose what became of it."""
        self._router.finished(self.target, outcome)
