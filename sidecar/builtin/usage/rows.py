"""An outcome as a row: its columns, in the order in which they are written."""

from __future__ import annotations

import math
from operator import attrgetter
from typing import Any

from plugin_sdk import Outcome

Row = tuple[Any, ...]

LONGEST = 10**11  # seconds since 1970, beyond which no clock goes

# SQLite's types; PostgreSQL's are in `postgres`. NULL: the server did not tell.
_ASKED = {
    "started_s": "REAL NOT NULL",  # unix time
    "duration_s": "REAL NOT NULL",
    "queue_s": "REAL NOT NULL",
    "first_byte_s": "REAL",
    "principal": "TEXT NOT NULL",
    "key": "TEXT NOT NULL DEFAULT ''",
    "model": "TEXT NOT NULL",
    "variant": "TEXT NOT NULL",
    "mode": "TEXT NOT NULL",
    "path": "TEXT NOT NULL",
    "end": "TEXT NOT NULL",
    "status": "INTEGER NOT NULL",
    "code": "TEXT NOT NULL",
    "streamed": "BOOLEAN NOT NULL",
    "cold": "BOOLEAN NOT NULL",
}
_TOKENS = {
    "input_tokens": "INTEGER",
    "output_tokens": "INTEGER",
    "cached_tokens": "INTEGER",
    "reasoning_tokens": "INTEGER",
    "input_tokens_per_s": "REAL",
    "output_tokens_per_s": "REAL",
    "response_model": "TEXT",
}
_SENT = {
    "bytes_in": "INTEGER NOT NULL",
    "bytes_out": "INTEGER NOT NULL",
    "trace_id": "TEXT NOT NULL",
}
_OURS = {
    "node": "TEXT NOT NULL DEFAULT ''",
    "cost": "INTEGER",  # nanos of the currency; NULL: not known
    "currency": "TEXT NOT NULL DEFAULT ''",  # '' where there is no cost
}
COLUMNS = {**_ASKED, **_TOKENS, **_SENT, **_OURS}

_asked = attrgetter(*("end._value_" if name == "end" else name for name in _ASKED))  # `value` is slow
_tokens = attrgetter(*_TOKENS)
_sent = attrgetter(*_SENT)
_NOT_TOLD = (None,) * len(_TOKENS)


def row(outcome: Outcome, node: str = "", cost: int | None = None, currency: str = "") -> Row:
    """The values of an outcome, as COLUMNS has them. Raises AttributeError for what is none."""
    usage = outcome.usage
    told = _NOT_TOLD if usage is None else _tokens(usage)
    found: Row = (*_asked(outcome), *told, *_sent(outcome), node, cost, "" if cost is None else currency)
    return found


def storable(values: Row) -> Row:
    """What any database can hold: names and counts may come from tokens and servers that make up anything."""
    return tuple(map(_fit, values))


def _fit(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return max(-(2**63), min(value, 2**63 - 1))
    if isinstance(value, float) and not math.isfinite(value):
        return 0.0 if math.isnan(value) else math.copysign(LONGEST, value)
    return value
