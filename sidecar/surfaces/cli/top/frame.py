"""What `sidecar top` shows at one moment: an answer of the sidecar, rates from those before it, and recent events."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import msgspec

from sidecar.control.events import Event
from sidecar.surfaces.top_api import TopModel, TopReport

WINDOW_S = 10.0  # over which rates are taken: requests are counted when they end, and so come in bursts
EVENTS = 200


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """Of one model, for a second: requests that have ended, and their tokens."""

    requests: float = 0.0
    tokens_in: float = 0.0
    tokens_out: float = 0.0


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """rates: by model; empty in the first frame. events: the newest last. restarted: this is another sidecar."""

    report: TopReport
    rates: dict[str, Rates] = {}
    events: tuple[Event, ...] = ()
    restarted: bool = False

    def rates_of(self, model: str) -> Rates:
        """Of one model; none if they are not known yet."""
        return self.rates.get(model, Rates())


class Film:
    """Makes frames of the answers as they come."""

    def __init__(self) -> None:
        self._before: deque[TopReport] = deque()
        self._events: deque[Event] = deque(maxlen=EVENTS)
        self.last_event = 0

    def add(self, report: TopReport, events: Iterable[Event] = ()) -> Frame:
        """The next frame."""
        restarted = bool(self._before) and self._before[-1].pid != report.pid
        if restarted:
            self._before.clear()  # its counts begin anew
        self._events.extend(events)
        self.last_event = max(self.last_event, self._events[-1].seq if self._events else 0)
        since = self._oldest(report.clock)
        self._before.append(report)
        return Frame(
            report=report,
            rates=_rates(since, report) if since is not None else {},
            events=tuple(self._events),
            restarted=restarted,
        )

    def _oldest(self, now: float) -> TopReport | None:
        while len(self._before) > 1 and now - self._before[1].clock >= WINDOW_S:
            self._before.popleft()
        return self._before[0] if self._before else None


def _rates(before: TopReport, now: TopReport) -> dict[str, Rates]:
    seconds = now.clock - before.clock
    counted = {model.name: model for model in before.models}
    if seconds <= 0:
        return {}
    return {model.name: _rate(counted.get(model.name), model, seconds) for model in now.models}


def _rate(before: TopModel | None, now: TopModel, seconds: float) -> Rates:
    if before is None:
        return Rates()
    return Rates(
        requests=(now.requests - before.requests) / seconds,
        tokens_in=(now.tokens_in - before.tokens_in) / seconds,
        tokens_out=(now.tokens_out - before.tokens_out) / seconds,
    )
