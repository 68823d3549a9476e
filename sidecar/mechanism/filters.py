"""A model's filters, compiled once for each mode; and one request's passage through them.

`on_request` runs in the manifest's order, all that concerns the answer in the reverse order, so that the first filter
has the first and the last word. Hooks that nobody overrides are not called, and without any that see the body its bytes
are never touched.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

import msgspec

from plugin_sdk import Exchange, Filter, Headers, Outcome, Reject, Request, Response
from plugin_sdk.messages import RawHeaders, amended, with_headers
from sidecar.mechanism import results
from sidecar.mechanism.bodies import Body, Chunks, Events, RefusedError
from sidecar.mechanism.calls import at_once
from sidecar.mechanism.hooks import Hook, overrides, unavailable
from sidecar.mechanism.instance import Instance

log = logging.getLogger(__name__)


class Steps:
    """One filter's hooks; None for those that it does not override. refuses: it cannot run, and is to be a guard."""

    def __init__(self, instance: Instance, why_not: str) -> None:
        self.instance = instance
        self.refuses = why_not
        usable = instance.plugin if not why_not else None

        def hook(name: str, checked: Any, **more: Any) -> Hook[Any] | None:
            return Hook(instance, name, checked, **more) if overrides(usable, Filter, name) else None

        self.on_request: Hook[Request | Response] | None = hook(
            "on_request", results.request_or_response, before=attrgetter("request")
        )
        self.on_response: Hook[Response | Headers] | None = hook(
            "on_response", results.head_or_headers, before=attrgetter("response")
        )
        self.on_chunk: Hook[bytes] | None = hook("on_chunk", results.chunk)
        self.on_event: Hook[list[Any]] | None = hook("on_event", results.events)
        self.on_end: Hook[None] | None = hook("on_end", results.nothing, refuses=False)


class Filters:
    """The filters of one model for one mode."""

    def __init__(self, instances: Sequence[Instance], mode: str, *, events: bool) -> None:
        self.steps: list[Steps] = []
        for instance in instances:
            why_not = instance.problem or cannot_run(instance, mode, events=events)
            if why_not and instance.on_error != "deny":
                log.info("the filter %s is left out of mode %s: %s", instance.name, mode, why_not)
            else:
                self.steps.append(Steps(instance, why_not))
        self.see_body = any(steps.on_chunk or steps.on_event for steps in self.steps)
        self.answer_inline = all(_inline((steps.on_response, steps.on_chunk, steps.on_event)) for steps in self.steps)
        # A filter may give an answer, which passes those before it.
        self.inline = self.answer_inline and _inline(steps.on_request for steps in self.steps)
        self.end_inline = _inline(steps.on_end for steps in self.steps)
        self.want_end = any(steps.on_end for steps in self.steps)
        self.see_answer = self.see_body or any(steps.on_response for steps in self.steps)


class Passage:
    """One request's way through the filters. answered_by: the filter that answered in the server's place.

    most_bytes: of a body that has to be held whole.

    inline, answer_inline, end_inline: no hook of all, of those for the answer, or at the end, waits for anything. Then
    `request_now`, `response_now` and `end_now` do the same as those without "now", in a plain call.
    """

    __slots__ = (
        "_answered",
        "_begun",
        "_bodies",
        "_filters",
        "_held",
        "_most_bytes",
        "answer_inline",
        "answered_by",
        "end_inline",
        "inline",
        "sees_answer",
        "sees_body",
    )

    def __init__(self, filters: Filters, most_bytes: int) -> None:
        self.sees_body = filters.see_body
        self.sees_answer = filters.see_answer
        self.inline = filters.inline
        self.answer_inline = filters.answer_inline
        self.end_inline = filters.end_inline
        self.answered_by = ""
        self._filters = filters
        self._most_bytes = most_bytes
        self._begun: list[tuple[Steps, Exchange]] = []
        self._answered = self._begun  # those that see the answer
        self._bodies: Sequence[Body] = ()
        self._held = False

    async def request(self, request: Request) -> Request | Response:
        """What becomes of the request: it, another, or a whole answer, which needs no further way. Raises Reject."""
        for steps in self._filters.steps:
            exchange = Exchange(request)
            self._begun.append((steps, exchange))
            if steps.refuses:
                raise _refusal(steps)
            result = await steps.on_request(exchange) if steps.on_request is not None else None
            if isinstance(result, Response):
                return await self._given(steps, result)
            if result is not None:
                request = exchange.request = amended(request, result)
        return request

    def request_now(self, request: Request) -> Request | Response:
        """The same at once. Raises Reject."""
        for steps in self._filters.steps:
            exchange = Exchange(request)
            self._begun.append((steps, exchange))
            if steps.refuses:
                raise _refusal(steps)
            result = steps.on_request.now(exchange) if steps.on_request is not None else None
            if result is None:
                continue
            if isinstance(result, Response):
                return at_once(self._given(steps, result))
            request = exchange.request = amended(request, result)
        return request

    async def _given(self, steps: Steps, answer: Response) -> Response:
        """What the filters before make of an answer that one has given in the server's place: it is like any other."""
        self.answered_by = steps.instance.name
        self._answered = self._begun[:-1]
        encoding = answer.headers.get("content-encoding").lower()
        head = await self.response(
            msgspec.structs.replace(answer, body=b""), "" if encoding == "identity" else encoding
        )
        body = answer.body
        if self.sees_body:
            try:
                before = await self.chunk(body)
            except RefusedError as error:
                raise error.reject from None
            body = before + await self.finish()
        return msgspec.structs.replace(head, body=body)

    async def response(self, head: Response, encoding: str) -> Response:
        """What becomes of the head of the answer. encoding: of its body, "" for none. Raises Reject."""
        for steps, exchange in reversed(self._answered):
            exchange.response = head
            result = await steps.on_response(exchange) if steps.on_response is not None else None
            if isinstance(result, Headers):
                head = with_headers(head, result.raw)
            elif result is not None:
                head = exchange.response = _changed(head, result)
        if self.sees_body:
            self._compile(head, encoding)
        return head

    def response_now(self, head: Response, encoding: str) -> Response:
        """The same at once. Raises Reject."""
        head, added = self.changed_now(head, encoding)
        return with_headers(head, added) if added else head

    def changed_now(self, head: Response, encoding: str) -> tuple[Response, RawHeaders]:
        """The same, with headers that are still to take the place of those of the same names. Raises Reject."""
        added: RawHeaders = ()
        for steps, exchange in reversed(self._answered):
            if added:
                head, added = with_headers(head, added), ()
            exchange.response = head
            result = steps.on_response.now(exchange) if steps.on_response is not None else None
            if result is None:
                continue
            if isinstance(result, Headers):
                added = result.raw
            else:
                head = exchange.response = _changed(head, result)
        if self.sees_body:
            self._compile(head, encoding)
        return head, added

    @property
    def holds(self) -> bool:
        """Whether the body is kept until it is whole, so that its head can wait as well."""
        return self._held

    async def chunk(self, chunk: bytes) -> bytes:
        """What becomes of a piece of the body; b"" if nothing, or nothing yet. Raises Reject, RefusedError."""
        refused: RefusedError | None = None
        for body in self._bodies:
            if not chunk:
                break
            try:
                chunk = await body.feed(chunk)
            except RefusedError as error:
                chunk, refused = error.before, refused or error
        if refused is not None:
            raise RefusedError(chunk, refused.reject)
        return chunk

    async def finish(self) -> bytes:
        """What comes at the end of the body. Raises Reject."""
        carried = b""
        for body in self._bodies:
            try:
                before = await body.feed(carried) if carried else b""
            except RefusedError as error:
                raise error.reject from None
            carried = before + await body.finish()
        return carried

    async def end(self, outcome: Outcome) -> None:
        """Tell each filter whose turn had come, the last one first, how it ended."""
        for steps, exchange in reversed(self._begun):
            if steps.on_end is not None:
                await steps.on_end(exchange, outcome)

    def end_now(self, outcome: Outcome) -> None:
        """The same at once."""
        for steps, exchange in reversed(self._begun):
            if steps.on_end is not None:
                steps.on_end.now(exchange, outcome)

    @property
    def has_end(self) -> bool:
        """Whether anybody wants to know how it ends."""
        return self._filters.want_end and bool(self._begun)

    def _compile(self, head: Response, encoding: str) -> None:
        """The stages of the body. Filters on events that follow one another share what was parsed."""
        bodies: list[Body] = []
        for steps, exchange in reversed(self._answered):
            hook = steps.on_chunk or steps.on_event
            if hook is None or hook.instance.out:
                continue
            if encoding:  # it was asked not to be; what cannot be read cannot be guarded
                hook.failed(ValueError(f"the server's answer is encoded ({encoding}), so that it cannot be read"))
            elif steps.on_chunk is not None:
                bodies.append(Chunks(steps.on_chunk, exchange))
            elif steps.on_event is not None:
                if not (bodies and isinstance(bodies[-1], Events)):
                    bodies.append(Events(head.streamed, self._most_bytes))
                last = bodies[-1]
                if isinstance(last, Events):
                    last.add(steps.on_event, exchange)
        self._bodies = bodies
        self._held = not head.streamed and any(isinstance(body, Events) for body in bodies)


def _refusal(steps: Steps) -> Reject:
    """What a request is told that comes to a guard which cannot run."""
    log.error("the filter %s cannot run: %s", steps.instance.name, steps.refuses)
    return unavailable(steps.instance, "is not available")


def _changed(head: Response, result: Response) -> Response:
    """The head as a filter has changed it; but what the server sends is a stream or not, whatever a filter says."""
    return result if result.streamed is head.streamed else msgspec.structs.replace(result, streamed=head.streamed)


def _inline(hooks: Iterable[Hook[Any] | None]) -> bool:
    return all(hook is None or hook.inline for hook in hooks)


def cannot_run(instance: Instance, mode: str, *, events: bool) -> str:
    """Why a filter cannot run on a mode; "" if it can. events: whether the mode's answers can be parsed."""
    plugin = instance.loaded.cls if instance.loaded is not None else None
    if plugin is None or not issubclass(plugin, Filter):
        return ""
    return unfit(plugin, mode, events=events)


def unfit(plugin: type[Filter[Any]], mode: str, *, events: bool) -> str:
    """Why a class of filters cannot run on a mode; "" if it can."""
    if plugin.modes and mode not in plugin.modes:
        return f"it runs on mode {', '.join(plugin.modes)} only"
    if not events and plugin.on_event is not Filter.on_event:
        return f"it sees events, and mode {mode} has none that can be parsed"
    return ""
