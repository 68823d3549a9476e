"""Counts what becomes of requests. `count` is on the path of each of them, and takes about a microsecond.

Time to the first token is the time to the first byte of a stream, as clients see it: the wait for a server included.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from plugin_sdk import Outcome
from sidecar.mechanism.metrics import MOST_SERIES, Family, Histogram, Sums
from sidecar.mechanism.request_metrics import FIRST_TOKEN, QUEUE_WAIT, SERVER_DURATION, TOKEN_USAGE
from sidecar.mechanism.request_slots import REST, WELL_REST, Key, Slot, is_well
from sidecar.mechanism.request_sums import RequestSums

AT_ONCE = 25  # slots, which are added up in well under a millisecond

_SECONDS = SERVER_DURATION.bounds
_FIRST = FIRST_TOKEN.bounds
_TOKENS = TOKEN_USAGE.bounds


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
        self._slots: dict[Key, Slot] = {}
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

    def steps(self) -> Iterator[RequestSums | None]:
        """How it stands, as the last of some steps; between them whoever asks may do something else."""
        sums = RequestSums(self._retries)
        for index, (key, slot) in enumerate(list(self._slots.items())):
            if index and index % AT_ONCE == 0:
                yield None
            sums.add(key, slot)
        yield sums

    def families(self) -> Iterator[Family]:
        """As it stands, without a pause."""
        return next(filter(None, self.steps())).families()

    def _slot(self, key: Key) -> Slot:
        """A new one; that of all the rest if there are too many."""
        well = is_well(key)
        if len(self._slots) >= self._most:
            key = WELL_REST if well else REST
        return self._slots.setdefault(key, Slot(well))


def _count_wait(slot: Slot, took_s: float, waited_s: float) -> None:
    if slot.queue is None:
        slot.queue = Histogram(QUEUE_WAIT.bounds)
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
