"""The tables, and what is done with them in SQL that SQLite and PostgreSQL understand alike.

requests: a row for each. usage_totals: sums for each hour, which reports are made of; once the rows of a day are gone,
for the day. They are written in one transaction with what they are the sums of. usage_servers: until when each server
was seen loaded. usage_prices: which list of prices came into force when.
"""

from __future__ import annotations

from sidecar.builtin.usage.prices import MOST_NANOS, MOST_TOKENS
from sidecar.builtin.usage.rows import COLUMNS, LONGEST

VERSION = 3
DAY_S = 86_400

KEY = ("start_s", "node", "principal", "key", "model", "variant", "mode", "currency")
_TOKENS = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens")


def _count(condition: str) -> str:
    return f"SUM(CASE WHEN {condition} THEN 1 ELSE 0 END)"


def _sum(column: str, most: int) -> str:
    """What is beyond all bounds counts as nothing, or one server's nonsense would spoil the sum for all time."""
    return f"SUM(CASE WHEN {column} BETWEEN 0 AND {most} THEN {column} ELSE 0 END)"


# Of each sum, what it is made of in `requests`. All are whole numbers.
SUMS = {
    "requests": "COUNT(*)",
    "failed": _count("\"end\" = 'upstream_failed' OR (\"end\" = 'ok' AND status >= 400)"),
    "refused": _count("\"end\" = 'refused'"),
    "cancelled": _count("\"end\" = 'client_gone'"),
    "cold": _count("cold"),
    "unpriced": _count("cost IS NULL AND \"end\" = 'ok' AND status < 400"),
    **{name: _sum(name, MOST_TOKENS) for name in _TOKENS},
    "bytes_in": _sum("bytes_in", 10**13),
    "bytes_out": _sum("bytes_out", 10**13),
    "busy_ms": "SUM(CASE WHEN duration_s BETWEEN 0 AND 1e7 THEN CAST(duration_s * 1000 AS BIGINT) ELSE 0 END)",
    "loaded_ms": "0",
    "cost": _sum("cost", MOST_NANOS),
}

_QUOTED = {name: f'"{name}"' for name in COLUMNS}  # because END is a word of SQL
NAMES = ", ".join(_QUOTED.values())
_KEY = ", ".join(f'"{name}"' for name in KEY)  # because KEY is one, too
_SUM_NAMES = ", ".join(SUMS)
_NUMBERS = ", ".join(str(number + 1) for number in range(len(KEY)))

TOTALS = (
    "CREATE TABLE usage_totals (start_s BIGINT NOT NULL, "
    + ", ".join(f'"{name}" TEXT NOT NULL' for name in KEY[1:])
    + ", "
    + ", ".join(f"{name} BIGINT NOT NULL" for name in SUMS)
    + f", PRIMARY KEY ({_KEY}))"
)
SERVERS = (
    "CREATE TABLE usage_servers (node TEXT NOT NULL, id TEXT NOT NULL, model TEXT NOT NULL, variant TEXT NOT NULL, "
    "since_ms BIGINT NOT NULL, until_ms BIGINT NOT NULL, ended BOOLEAN NOT NULL, PRIMARY KEY (node, id))"
)
PRICES = (
    "CREATE TABLE usage_prices (node TEXT NOT NULL, since_s {real} NOT NULL, prices TEXT NOT NULL, "
    "filled BIGINT NOT NULL DEFAULT 0, PRIMARY KEY (node, since_s))"
)

_ADD_UP = (
    "ON CONFLICT (" + _KEY + ") DO UPDATE SET " + ", ".join(f"{n} = usage_totals.{n} + excluded.{n}" for n in SUMS)
)
ADD = (
    f"INSERT INTO usage_totals ({_KEY}, {_SUM_NAMES}) "  # noqa: S608 - constants alone, as all that follow
    f"VALUES ({', '.join('?' * (len(KEY) + len(SUMS)))}) {_ADD_UP}"
)


def sum_up(source: str, hour: str, sign: str = "") -> str:
    """Add rows to the sums. source: a table, with a condition. hour: SQL for the hour of `started_s`. sign: or `-`."""
    start = f"CASE WHEN started_s BETWEEN 0 AND {LONGEST} THEN {hour} ELSE 0 END"
    names = ", ".join(_QUOTED[name] for name in KEY[1:])
    sums = ", ".join(f"{sign}({how})" for how in SUMS.values())
    return (
        f"INSERT INTO usage_totals ({_KEY}, {_SUM_NAMES}) "  # noqa: S608 - as above
        f"SELECT {start}, {names}, {sums} FROM {source} GROUP BY {_NUMBERS} {_ADD_UP}"
    )


PRUNE = "DELETE FROM {requests} WHERE id IN (SELECT id FROM {requests} WHERE started_s < ? ORDER BY started_s LIMIT ?)"
UNFOLDED = "SELECT MIN(start_s) FROM usage_totals WHERE start_s < ? AND start_s <> start_s / 86400 * 86400"
FOLDED = f"DELETE FROM usage_totals WHERE start_s > ? AND start_s < ? RETURNING {_KEY}, {_SUM_NAMES}"  # noqa: S608 - as above
FORGET = "DELETE FROM usage_totals WHERE start_s < ?"
FORGET_ENDED = "DELETE FROM usage_servers WHERE until_ms < ? AND ended"
FORGET_SERVERS = "DELETE FROM usage_servers WHERE until_ms < ?"
SEEN = "SELECT id, until_ms FROM usage_servers WHERE node = ? AND until_ms >= ?"
SEE = (
    "INSERT INTO usage_servers (node, id, model, variant, since_ms, until_ms, ended) VALUES (?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (node, id) DO UPDATE SET model = excluded.model, until_ms = excluded.until_ms, ended = excluded.ended"
)
PRICED = "SELECT since_s, prices, filled FROM usage_prices WHERE node = ? ORDER BY since_s"
PRICE = "INSERT INTO usage_prices (node, since_s, prices) VALUES (?, ?, ?)"
FILLED = "UPDATE usage_prices SET filled = ? WHERE node = ? AND since_s = ?"
UNPRICED = (
    'SELECT id, model, started_s, "end", status, input_tokens, output_tokens, cached_tokens, reasoning_tokens '
    "FROM {requests} WHERE id > ? AND node = ? AND started_s >= ? AND cost IS NULL ORDER BY id LIMIT ?"
)
FILL = "UPDATE {requests} SET cost = ?, currency = ? WHERE id = ?"
EMPTY = "DELETE FROM usage_totals WHERE currency = '' AND requests = 0 AND loaded_ms = 0"


def some(requests: str, count: int) -> str:
    """So many of the requests, by their ids."""
    return f"{requests} WHERE id IN ({', '.join('?' * count)})"
