"""The spans of one request: a server span by the GenAI semantic conventions, and a child for each stage.

Whether a request is traced is decided first. If it is not, next to nothing is done for it: its headers go on as they
are, and only the id of the caller's trace is known. If it is, its spans are plain values until it has ended; then they
are handed over whole. (opentelemetry.io/docs/specs/semconv/gen-ai)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from random import getrandbits
from typing import Protocol

from opentelemetry.trace import SpanKind
from opentelemetry.util.types import AttributeValue

from plugin_sdk import End, Outcome
from plugin_sdk.messages import RawHeaders
from sidecar.mechanism.sampling import NEVER, Sampler
from sidecar.mechanism.spans import NO_STAGE, AnyStage, MutedStage, NoStage, Now, Origin, Stage
from sidecar.mechanism.tracecontext import RANDOM, SAMPLED, Pair, read_caller, read_state, retold

Offer = Callable[[Sequence[Stage]], None]


class Cold(Protocol):
    """A target that may have been started for the request. cold: unix seconds from start to ready."""

    @property
    def model(self) -> str: ...
    @property
    def variant(self) -> str: ...
    @property
    def cold(self) -> tuple[float, float] | None: ...


class Untraced:
    """A request that is not traced. id: of the caller's trace, or ""."""

    __slots__ = ("id",)
    span_id = ""

    def __init__(self, trace_id: str) -> None:
        self.id = trace_id

    def asks_for(self, model: str, operation: str = "") -> None:
        """Nothing."""

    def begin(
        self,
        name: str,  # noqa: ARG002 - nothing of it is recorded
        kind: SpanKind = SpanKind.INTERNAL,  # noqa: ARG002 - nothing of it is recorded
        parent: AnyStage | None = None,  # noqa: ARG002 - nothing of it is recorded
    ) -> NoStage:
        """A stage that records nothing."""
        return NO_STAGE

    def stage(self, name: str, kind: SpanKind = SpanKind.INTERNAL) -> NoStage:  # noqa: ARG002 - nothing of it is recorded
        """A stage that records nothing, nor what plugins do in it."""
        return NO_STAGE

    def cold_start(self, target: Cold, parent: AnyStage) -> None:
        """Nothing."""

    def carry(self, headers: Sequence[Pair], stage: AnyStage) -> Sequence[Pair]:  # noqa: ARG002 - nothing of it is recorded
        """The headers as they are."""
        return headers

    def end(self, outcome: Outcome) -> None:
        """Nothing."""


class Unsampled(Untraced):
    """A request that is not traced, where others are: then its plugins' spans must not be, either."""

    __slots__ = ()

    def stage(self, name: str, kind: SpanKind = SpanKind.INTERNAL) -> NoStage:  # noqa: ARG002 - nothing of it is recorded
        """A stage that records nothing, nor what plugins do in it."""
        return MutedStage()


UNTRACED = Untraced("")
UNSAMPLED = Unsampled("")


class RequestTrace:
    """A request that is traced."""

    __slots__ = ("_now", "_offer", "_operation", "_origin", "_root", "_said", "_spans", "id")

    def __init__(self, origin: Origin, operation: str, said: dict[str, AttributeValue], offer: Offer, now: Now) -> None:
        self.id = origin.trace_id
        self._origin = origin
        self._operation = operation
        self._offer = offer
        self._now = now
        self._said = said
        self._root = Stage(origin, origin.parent_id, operation, SpanKind.SERVER, now)
        self._root.attributes = said
        self._spans = [self._root]

    @property
    def span_id(self) -> str:
        """Of the server span, as it is written."""
        return f"{self._root.span_id:016x}"

    def asks_for(self, model: str, operation: str = "") -> None:
        """The model that the client named, and the operation if that tells it from others on the same path."""
        if operation:
            self._operation = self._said["gen_ai.operation.name"] = operation
        self._root.name = f"{self._operation} {model}"
        self._said["gen_ai.request.model"] = model

    def begin(self, name: str, kind: SpanKind = SpanKind.INTERNAL, parent: AnyStage | None = None) -> Stage:
        """A child span, from now until its `end`; of the server span if it has no other parent."""
        stage = Stage(self._origin, (parent or self._root).span_id, name, kind, self._now)
        self._spans.append(stage)
        return stage

    stage = begin  # for `with`, where plugins are called

    def cold_start(self, target: Cold, parent: AnyStage) -> None:
        """The start that the request waited for, as a span with the times at which it happened."""
        if target.cold is None:
            return
        stage = self.begin("cold start", parent=parent)
        stage.started_ns, stage.ended_ns = (int(moment * 1e9) for moment in target.cold)
        stage.attributes = {"sidecar.model": target.model, "sidecar.variant": target.variant}

    def carry(self, headers: Sequence[Pair], stage: AnyStage) -> Sequence[Pair]:
        """The headers for the upstream: with this stage as the parent, in place of the caller's."""
        origin = self._origin
        return retold(headers, origin.trace_id, stage.span_id, origin.flags, keep_state=origin.parent_id != 0)

    def end(self, outcome: Outcome) -> None:
        """Close the server span with what came of it, and hand everything over. Only the first call counts."""
        root = self._root
        if root.ended_ns:
            return
        _tell(self._said, outcome)
        if outcome.status >= 500 or (outcome.code and outcome.end is not End.OK):
            root.fail(outcome.code or str(outcome.status))
        root.end()
        for stage in self._spans:
            if not stage.ended_ns:
                stage.ended_ns = root.ended_ns
        self._offer(self._spans)


AnyTrace = RequestTrace | Untraced


class Traces:
    """Begins traces. offer: what becomes of the spans of each, all at once; it must not block."""

    def __init__(self, sampler: Sampler = NEVER, offer: Offer | None = None, now: Now = time.time_ns) -> None:
        self._never = sampler.never or offer is None
        self._sampler = sampler
        self._bound = 0 if self._never else sampler.bound
        self._offer = offer or _to_nobody
        self._now = now
        self._untraced = UNTRACED if self._never else UNSAMPLED

    def begin(self, headers: RawHeaders, operation: str, method: str, path: str) -> AnyTrace:
        """The trace of one request. headers: as they came; `traceparent` may say that it is part of another's."""
        caller = read_caller(headers)
        if caller is not None:
            if self._never or not self._sampler.keeps(caller):
                return type(self._untraced)(caller.trace_id)
            state = read_state(headers)
            origin = Origin(caller.trace_id, caller.span_id, SAMPLED | (caller.flags & RANDOM), state)
        else:
            low = getrandbits(64)
            if low >= self._bound:
                return self._untraced
            origin = Origin(f"{getrandbits(64):016x}{low:016x}", 0, SAMPLED | RANDOM, "")
        said: dict[str, AttributeValue] = {
            "gen_ai.operation.name": operation,
            "http.request.method": method,
            "url.path": path,
        }
        return RequestTrace(origin, operation, said, self._offer, self._now)


def _to_nobody(spans: Sequence[Stage]) -> None:
    """There is nobody."""


def _tell(said: dict[str, AttributeValue], outcome: Outcome) -> None:
    said["http.response.status_code"] = outcome.status
    said["sidecar.end"] = outcome.end.value
    said["sidecar.cold"] = outcome.cold
    if outcome.model:
        said["sidecar.model"] = outcome.model
    if outcome.variant:
        said["sidecar.variant"] = outcome.variant
    if outcome.principal:
        said["sidecar.principal"] = outcome.principal
    usage = outcome.usage
    if usage is None:
        return
    said["gen_ai.usage.input_tokens"] = usage.input_tokens
    said["gen_ai.usage.output_tokens"] = usage.output_tokens
    if usage.response_model:
        said["gen_ai.response.model"] = usage.response_model
