"""What the metrics of requests tell: slots, added up by the labels that each metric has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sidecar.mechanism.metrics import Family, Labels, Point, Spread, Sums
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
from sidecar.mechanism.request_slots import Key, Slot, is_rest, is_well

PROVIDER = "sidecar"


class RequestSums:
    """Slots are added one by one, so that whoever adds thousands can do something else in between."""

    def __init__(self, retries: Sums) -> None:
        self._durations, self._operations = _Merged(), _Merged()
        self._first, self._each = _Merged(), _Merged()
        self._token_usage, self._queues = _Merged(), _Merged()
        self._requests, self._tokens, self._bytes = _Added(), _Added(), _Added()
        self._retries = retries

    def add(self, key: Key, slot: Slot) -> None:
        """One more."""
        rest = is_rest(key)
        model, over = key[0], "true" if rest else ""
        whose = ("", "", "") if rest else (key[3], PROVIDER, model)
        self._add_durations(key, slot, (*whose, _error(key), over))
        self._add_streams(slot, (*whose, over))
        if slot.queue is not None:
            self._queues.add((model, over), slot.queue.counts, slot.queue.sum)
        self._requests.add(_told(key), sum(slot.durations))
        self._bytes.add((model, "in", over), slot.bytes_in)
        self._bytes.add((model, "out", over), slot.bytes_out)
        if slot.inputs is not None:
            self._token_usage.add((*whose, "input", over), slot.inputs, slot.input)
            self._token_usage.add((*whose, "output", over), slot.outputs, slot.output)
            for kind in ("input", "output", "cached", "reasoning"):
                self._tokens.add((model, kind, key[-1], over), getattr(slot, kind))

    def families(self) -> Iterator[Family]:
        """Of all that was added. May be called again."""
        yield Family(SERVER_DURATION, self._durations.spreads())
        yield Family(CLIENT_DURATION, self._operations.spreads())
        yield Family(FIRST_TOKEN, self._first.spreads())
        yield Family(EACH_TOKEN, self._each.spreads())
        yield Family(TOKEN_USAGE, self._token_usage.spreads())
        yield Family(QUEUE_WAIT, self._queues.spreads())
        yield Family(REQUESTS, self._requests.points())
        yield Family(TOKENS, self._tokens.points())
        yield Family(BYTES, self._bytes.points())
        yield Family(RETRIES, self._retries.points())

    def _add_durations(self, key: Key, slot: Slot, labels: Labels) -> None:
        self._durations.add(labels, slot.durations, slot.durations_s)
        if key[1] or is_rest(key):  # a server was asked
            self._operations.add(labels, slot.durations, slot.durations_s)
            if slot.operations is not None:
                self._operations.add(labels, slot.operations, slot.operations_s)

    def _add_streams(self, slot: Slot, labels: Labels) -> None:
        for merged, found in ((self._first, slot.first), (self._each, slot.each)):
            if found is not None and any(found.counts):
                merged.add(labels, found.counts, found.sum)


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


class _Added:
    """Numbers, added up by labels."""

    def __init__(self) -> None:
        self._held: dict[Labels, int] = {}

    def add(self, labels: Labels, amount: int) -> None:
        self._held[labels] = self._held.get(labels, 0) + amount

    def points(self) -> Iterator[Point]:
        return (Point(labels, value) for labels, value in self._held.items())


def _told(key: Key) -> Labels:
    model, variant, mode, operation, end, status, code, cold, principal = key
    if is_rest(key):
        return ("",) * 9 + ("true",)
    return (model, variant, mode, operation, end, str(status or ""), code, "true" if cold else "false", principal, "")


def _error(key: Key) -> str:
    """What the conventions call the type of an error; "" of what went well."""
    return "" if is_well(key) or is_rest(key) else key[6] or str(key[5])
