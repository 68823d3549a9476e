"""Counts what becomes of requests. `count` is on the path of each of them, and takes about a microsecond.

Time to the first token is the time to the first byte of a stream, as clients see it: the wait for a server included.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from plugin_sdk import End, Outcome
from sidecar.mechanism.metrics import MOST_SERIES, Family, Histogram, Labels, Point, Spread, Sums
from sidecar.mechanism.request_metrics import (
    BYTES,
    CLIENT_DURATION,
    EACH_TOKEN,
    FIRST_TOKEN,
    QUEUE_WAIT,
    REQUESTS,
    RETRIES,
    SERVER_DURATION,
    TOKEN_USAGE,
    TOKENS,
)

PROVIDER = "sidecar"
FIRST_ERROR = 400  # of HTTP's statuses

_SECONDS = SERVER_DURATION.bounds
_FIRST = FIRST_TOKEN.bounds
_EACH = EACH_TOKEN.bounds
_TOKENS = TOKEN_USAGE.bounds
_QUEUED = QUEUE_WAIT.bounds

_Key = tuple[str, str, str, str, str, int, str, bool, str]


class _Slot:
    """Requests that ended alike, told apart by as much as any metric does; the metrics add up those that they do not.

    operations: what is to be added to `durations` for the time without the wait. first, each: of streams, if they went
    well.
    """

    __slots__ = (
        *("bytes_in", "bytes_out", "durations", "durations_s", "operations", "operations_s", "queue"),
        *("inputs", "outputs", "input", "output", "cached", "reasoning", "first", "each"),
    )

    def __init__(self, well: bool) -> None:
        self.bytes_in = self.bytes_out = 0
        self.durations = [0] * (len(_SECONDS) + 1)
        self.operations: list[int] | None = None
        self.durations_s = self.operations_s = 0.0
        self.inputs: list[int] | None = None
        self.outputs = [0] * (len(_TOKENS) + 1)
        self.input = self.output = self.cached = self.reasoning = 0
        self.queue: Histogram | None = None
        self.first = Histogram(_FIRST) if well else None
        self.each = Histogram(_EACH)


class Total:
    """Of one model: requests that have ended, and the tokens of those that told them."""

    __slots__ = ("input", "output", "requests")

    def __init__(self) -> None:
        self.requests = self.input = self.output = 0


class RequestMeter:
    """by_principal: whether requests and tokens are told apart by who has asked."""

    def __init__(self, most: int = MOST_SERIES) -> None:
        self.by_principal = False
        self._most = most
        self._slots: dict[_Key, _Slot] = {}
        self._retries = Sums(1, most)

    def count(self, outcome: Outcome, operation: str) -> None:
        """A request has ended. operation: of its endpoint."""
        key = (
            outcome.model,
            outcome.variant,
            outcome.mode,
            operation,
            outcome.end._value_,  # an Enum's hash is slow
            outcome.status,
            outcome.code,
            outcome.cold,
            outcome.principal if self.by_principal else "",
        )
        slot = self._slots.get(key) or self._slot(key)
        slot.bytes_in += outcome.bytes_in
        slot.bytes_out += outcome.bytes_out
        took_s = outcome.duration_s
        slot.durations[bisect_left(_SECONDS, took_s)] += 1
        slot.durations_s += took_s
        if outcome.queue_s:
            _count_wait(slot, took_s, outcome.queue_s)
        usage = outcome.usage
        if usage is not None:
            counts = slot.inputs
            if counts is None:
                counts = slot.inputs = [0] * (len(_TOKENS) + 1)
            tokens = usage.input_tokens
            counts[bisect_left(_TOKENS, tokens)] += 1
            slot.input += tokens
            tokens = usage.output_tokens
            slot.outputs[bisect_left(_TOKENS, tokens)] += 1
            slot.output += tokens
            if usage.cached_tokens or usage.reasoning_tokens:
                slot.cached += usage.cached_tokens
                slot.reasoning += usage.reasoning_tokens
        if outcome.streamed and slot.first is not None:
            _count_stream(slot.first, slot.each, outcome)

    def retried(self, model: str) -> None:
        """A request is tried once more."""
        self._retries.add((model,))

    def by_model(self) -> dict[str, Total]:
        """Totals alone, for whoever asks every second: nothing is made of histograms."""
        totals: dict[str, Total] = {}
        for key, slot in list(self._slots.items()):
            total = totals.get(key[0]) or totals.setdefault(key[0], Total())
            total.requests += sum(slot.durations)
            total.input += slot.input
            total.output += slot.output
        return totals

    def families(self) -> Iterator[Family]:
        """As it stands."""
        slots = list(self._slots.items())
        yield Family(SERVER_DURATION, _durations(slots))
        yield Family(CLIENT_DURATION, _operations(slots))
        yield Family(FIRST_TOKEN, _of_streams(slots, "first"))
        yield Family(EACH_TOKEN, _of_streams(slots, "each"))
        yield Family(TOKEN_USAGE, _token_usage(slots))
        yield Family(QUEUE_WAIT, _queues(slots))
        yield Family(REQUESTS, _requests(slots))
        yield Family(TOKENS, _tokens(slots))
        yield Family(BYTES, _bytes(slots))
        yield Family(RETRIES, self._retries.points())

    def _slot(self, key: _Key) -> _Slot:
        """A new one; that of all the rest if there are too many."""
        well = _is_well(key)
        if len(self._slots) >= self._most:
            key = _WELL_REST if well else _REST
        return self._slots.setdefault(key, _Slot(well))


_REST: _Key = ("", "", "", "", "", 0, "", False, "")  # no request has no end
_WELL_REST: _Key = ("", "", "", "", "", 200, "", False, "")
_Slots = list[tuple[_Key, _Slot]]


def _count_wait(slot: _Slot, took_s: float, waited_s: float) -> None:
    if slot.queue is None:
        slot.queue = Histogram(_QUEUED)
    slot.queue.add(waited_s)
    if slot.operations is None:
        slot.operations = [0] * (len(_SECONDS) + 1)
    slot.operations[bisect_left(_SECONDS, took_s)] -= 1
    slot.operations[bisect_left(_SECONDS, took_s - waited_s)] += 1
    slot.operations_s -= waited_s


def _count_stream(first: Histogram, each: Histogram, outcome: Outcome) -> None:
    first_s = outcome.first_byte_s
    if first_s is None:
        return
    first.counts[bisect_left(_FIRST, first_s)] += 1
    first.sum += first_s
    tokens = outcome.usage.output_tokens if outcome.usage is not None else 0
    if tokens > 1:
        each.add((outcome.duration_s - first_s) / (tokens - 1))


# --- what the metrics tell of slots -------------------------------------------------------------------------------


class _Merged:
    """Histograms, added up by labels."""

    def __init__(self) -> None:
        self._held: dict[Labels, tuple[list[int], float]] = {}

    def add(self, labels: Labels, counts: Sequence[int], total: float) -> None:
        held, so_far = self._held.get(labels, (None, 0.0))
        merged = list(counts) if held is None else [one + other for one, other in zip(held, counts, strict=True)]
        self._held[labels] = (merged, so_far + total)

    def spreads(self) -> Iterator[Spread]:
        return (Spread(labels, tuple(counts), total) for labels, (counts, total) in self._held.items())


def _is_rest(key: _Key) -> bool:
    return not key[4]


def _overflow(key: _Key) -> str:
    return "true" if _is_rest(key) else ""


def _told(key: _Key) -> Labels:
    model, variant, mode, operation, end, status, code, cold, principal = key
    if _is_rest(key):
        return ("",) * 9 + ("true",)
    return (model, variant, mode, operation, end, str(status or ""), code, "true" if cold else "false", principal, "")


def _whose(key: _Key) -> Labels:
    """Operation, provider and model."""
    return (key[3], PROVIDER, key[0]) if not _is_rest(key) else ("", "", "")


def _error(key: _Key) -> str:
    """What the conventions call the type of an error; "" of what went well."""
    return "" if _is_well(key) or _is_rest(key) else key[6] or str(key[5])


def _is_well(key: _Key) -> bool:
    return key[4] == End.OK.value and key[5] < FIRST_ERROR


def _requests(slots: _Slots) -> Iterator[Point]:
    sums: dict[Labels, int] = {}
    for key, slot in slots:
        labels = _told(key)
        sums[labels] = sums.get(labels, 0) + sum(slot.durations)
    return (Point(labels, value) for labels, value in sums.items())


def _durations(slots: _Slots) -> Iterator[Spread]:
    merged = _Merged()
    for key, slot in slots:
        merged.add((*_whose(key), _error(key), _overflow(key)), slot.durations, slot.durations_s)
    return merged.spreads()


def _operations(slots: _Slots) -> Iterator[Spread]:
    """Of those that a server was asked for."""
    merged = _Merged()
    for key, slot in slots:
        if key[1] or _is_rest(key):
            labels = (*_whose(key), _error(key), _overflow(key))
            merged.add(labels, slot.durations, slot.durations_s)
            if slot.operations is not None:
                merged.add(labels, slot.operations, slot.operations_s)
    return merged.spreads()


def _of_streams(slots: _Slots, name: str) -> Iterator[Spread]:
    merged = _Merged()
    for key, slot in slots:
        found: Histogram | None = getattr(slot, name)
        if found is not None and any(found.counts):
            merged.add((*_whose(key), _overflow(key)), found.counts, found.sum)
    return merged.spreads()


def _token_usage(slots: _Slots) -> Iterator[Spread]:
    merged = _Merged()
    for key, slot in slots:
        if slot.inputs is not None:
            merged.add((*_whose(key), "input", _overflow(key)), slot.inputs, slot.input)
            merged.add((*_whose(key), "output", _overflow(key)), slot.outputs, slot.output)
    return merged.spreads()


def _queues(slots: _Slots) -> Iterator[Spread]:
    merged = _Merged()
    for key, slot in slots:
        if slot.queue is not None:
            merged.add((key[0], _overflow(key)), slot.queue.counts, slot.queue.sum)
    return merged.spreads()


def _tokens(slots: _Slots) -> Iterator[Point]:
    sums: dict[Labels, int] = {}
    for key, slot in slots:
        for kind in ("input", "output", "cached", "reasoning"):
            if slot.inputs is not None:
                labels = (key[0], kind, key[-1], _overflow(key))
                sums[labels] = sums.get(labels, 0) + getattr(slot, kind)
    return (Point(labels, value) for labels, value in sums.items())


def _bytes(slots: _Slots) -> Iterator[Point]:
    sums: dict[Labels, int] = {}
    for key, slot in slots:
        for direction, amount in (("in", slot.bytes_in), ("out", slot.bytes_out)):
            labels = (key[0], direction, _overflow(key))
            sums[labels] = sums.get(labels, 0) + amount
    return (Point(labels, value) for labels, value in sums.items())
