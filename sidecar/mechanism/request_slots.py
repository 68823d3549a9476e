"""Requests that ended alike, counted together: told apart by as much as any metric of requests tells apart."""

from __future__ import annotations

from plugin_sdk import End
from sidecar.mechanism.metrics import Histogram
from sidecar.mechanism.request_metrics import EACH_TOKEN, FIRST_TOKEN, SERVER_DURATION, TOKEN_USAGE

FIRST_ERROR = 400  # of HTTP's statuses

# Model, variant, mode, operation, end, status, code, cold, principal.
Key = tuple[str, str, str, str, str, int, str, bool, str]
REST: Key = ("", "", "", "", "", 0, "", False, "")  # of those that there are too many of; no request has no end
WELL_REST: Key = ("", "", "", "", "", 200, "", False, "")


class Slot:
    """operations: what is to be added to `durations` for the time without the wait. first, each: of streams, if they
    went well.
    """

    __slots__ = (
        *("bytes_in", "bytes_out", "durations", "durations_s", "operations", "operations_s", "queue"),
        *("inputs", "outputs", "input", "output", "cached", "reasoning", "first", "each"),
    )

    def __init__(self, well: bool) -> None:
        self.bytes_in = self.bytes_out = 0
        self.durations = [0] * (len(SERVER_DURATION.bounds) + 1)
        self.operations: list[int] | None = None
        self.durations_s = self.operations_s = 0.0
        self.inputs: list[int] | None = None
        self.outputs = [0] * (len(TOKEN_USAGE.bounds) + 1)
        self.input = self.output = self.cached = self.reasoning = 0
        self.queue: Histogram | None = None
        self.first = Histogram(FIRST_TOKEN.bounds) if well else None
        self.each = Histogram(EACH_TOKEN.bounds)


def is_rest(key: Key) -> bool:
    """Whether it stands for many that are not told apart any more."""
    return not key[4]


def is_well(key: Key) -> bool:
    """Whether the request went well."""
    return key[4] == End.OK.value and key[5] < FIRST_ERROR
