"""Counts what happens to servers, and how long it takes: for metrics, over the whole life of the sidecar."""

from __future__ import annotations

from sidecar.mechanism.metrics import Histogram, Spreads, Sums

LOAD_BOUNDS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0)
ROUND_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Tallies:
    """starts: servers started; restarts: those of them that came after a failure; adoptions: taken over while running.
    failures: that did not come up, or died, by reason; stops: that were told to leave, by reason. All by model and
    variant. loads: seconds from spawn to ready. rounds: seconds that rounds of the reconciler took.
    """

    def __init__(self) -> None:
        self.starts = Sums(2)
        self.restarts = Sums(2)
        self.adoptions = Sums(2)
        self.failures = Sums(3)
        self.stops = Sums(3)
        self.loads = Spreads(2, LOAD_BOUNDS_S)
        self.rounds = Histogram(ROUND_BOUNDS_S)

    def started(self, model: str, variant: str, *, adopted: bool, again: bool) -> None:
        """A server has begun. again: the one before it has failed."""
        (self.adoptions if adopted else self.starts).add((model, variant))
        if again and not adopted:
            self.restarts.add((model, variant))

    def loaded(self, model: str, variant: str, seconds: float) -> None:
        """A server that was started has become ready."""
        self.loads.of((model, variant)).add(seconds)

    def failed(self, model: str, variant: str, reason: str) -> None:
        """A server did not come up, or died."""
        self.failures.add((model, variant, reason))

    def stopped(self, model: str, variant: str, reason: str) -> None:
        """A server is told to leave, or is cleared away after it has failed."""
        self.stops.add((model, variant, reason))
