"""The measurements, by name, in the order of the table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from tests.benchmarks.dataplane.bench import Bench
from tests.benchmarks.dataplane.cases.leaving import cancels, idle_close
from tests.benchmarks.dataplane.cases.memory import memory, stalled
from tests.benchmarks.dataplane.cases.plain import json, prompt, traced
from tests.benchmarks.dataplane.cases.streams import many, sse
from tests.benchmarks.dataplane.rows import Row

Case = Callable[[Bench], Iterable[Row]]

CASES: Mapping[str, Case] = {
    "json": json,
    "sse": sse,
    "traced": traced,
    "prompt": prompt,
    "stalled": stalled,
    "cancels": cancels,
    "idle-close": idle_close,
    "many": many,
    "memory": memory,
}
