"""What the writer does with a database that it has: prices, loaded hours, sums and their retention."""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING

import msgspec

from plugin_sdk import End, LoadedServer, Outcome, Usage
from plugin_sdk.config import convert
from sidecar.builtin.usage import tables
from sidecar.builtin.usage.prices import PriceList, Prices
from sidecar.builtin.usage.rows import Row, row, storable
from sidecar.builtin.usage.settings import Price, Settings

if TYPE_CHECKING:
    from sidecar.builtin.usage.writer import Database

PRUNE_ROWS = 5_000  # in one go, so that others get their turn
FILL_ROWS = 500
DONE = -1
TOKENS = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens")


class Books:
    """To be used by one thread, once its database is connected."""

    def __init__(self, database: Database, config: Settings) -> None:
        self._database = database
        self._config = config
        self._opened_s = time.time()
        self._list = PriceList(config.prices)
        self._told = False  # whether the list was written down by us: then a later one may be another's
        self._since_s, self._filled = self._opened_s, DONE  # until when its days of the past have been looked at
        self._prices = Prices([(self._opened_s, self._list)])

    def row(self, outcome: Outcome) -> Row:
        """An outcome with its cost."""
        return row(outcome, self._config.node, self._list.cost(outcome), self._config.currency)

    def open(self) -> None:
        """Take up the prices that were in force before, and write down those that are now, if they are others."""
        told = msgspec.json.encode(self._config.prices).decode()
        with self._database.transaction():
            before = self._database.run(tables.PRICED, (self._config.node,))
            if (before[-1][1] != told and not self._told) if before else self._config.prices:
                since_s = max([self._opened_s, *(found[0] + 0.001 for found in before)])
                self._database.run(tables.PRICE, (self._config.node, since_s, told))
                before.append((since_s, told, 0))
        self._told = True
        lists = [(found[0], PriceList(_prices(found[1]))) for found in before[:-1]]
        self._since_s, self._filled = (before[-1][0], before[-1][2]) if before else (self._opened_s, DONE)
        self._prices = Prices([*lists, (self._since_s, self._list)])

    def see(self, servers: Sequence[LoadedServer]) -> None:
        """Add for how long each was loaded since it was seen the last time."""
        node = self._config.node
        with self._database.transaction():
            first_ms = round(min(server.since_s for server in servers) * 1000)
            until: dict[str, int] = dict(self._database.run(tables.SEEN, (node, first_ms)))
            added: list[Row] = []
            for server in servers:
                since_ms, until_ms = round(server.since_s * 1000), round(server.until_s * 1000)
                begin_ms = max(since_ms, until.get(server.id, since_ms))
                if until_ms > begin_ms or server.ended:
                    added += self._loaded(server, begin_ms / 1000, until_ms / 1000)
                    names = storable((node, server.id, server.model, server.variant))
                    self._database.run(tables.SEE, (*names, since_ms, max(until_ms, begin_ms), server.ended))
            self._database.run_many(tables.ADD, added)

    def tidy(self) -> bool:
        """Forget what is older than it has to be kept, a part at a time. False: there is more to do."""
        return self._fill() and self._prune() and self._fold()

    def _loaded(self, server: LoadedServer, since_s: float, until_s: float) -> list[Row]:
        model, variant = storable((server.model, server.variant))
        rows = []
        for piece in self._prices.loaded(model, since_s, until_s):
            currency = "" if piece.cost is None else self._config.currency
            key = (piece.hour_s, self._config.node, "", "", model, variant, "", currency)
            sums = dict.fromkeys(tables.SUMS, 0) | {"loaded_ms": piece.loaded_ms, "cost": piece.cost or 0}
            rows.append((*key, *sums.values()))
        return rows

    def _fill(self) -> bool:
        """Give a cost to requests that have none, where the list has a price since a day before it was first seen."""
        first_s = self._list.first_dated_s(self._since_s)
        if self._filled == DONE or first_s == inf:
            return True
        config, requests = self._config, self._database.requests
        with self._database.transaction():
            asked = (self._filled, config.node, first_s, FILL_ROWS)
            found = self._database.run(tables.UNPRICED.format(requests=requests), asked)
            costs = [(cost, config.currency, one[0]) for one in found if (cost := self._cost(one)) is not None]
            if costs:
                some, ids = tables.some(requests, len(costs)), [one[2] for one in costs]
                self._database.run(tables.sum_up(some, self._database.hour, "-"), ids)
                self._database.run_many(tables.FILL.format(requests=requests), costs)
                self._database.run(tables.sum_up(some, self._database.hour), ids)
            filled = found[-1][0] if len(found) == FILL_ROWS else DONE
            if filled == DONE:  # not before: all sums are looked at
                self._database.run(tables.EMPTY)
            self._database.run(tables.FILLED, (filled, config.node, self._since_s))
        self._filled = filled
        return filled == DONE

    def _cost(self, one: Row) -> int | None:
        _, model, started_s, end, status, *tokens = one
        told = None if tokens[0] is None else Usage(**dict(zip(TOKENS, tokens, strict=True)))
        return self._list.cost(Outcome(model=model, started_s=started_s, end=End(end), status=status, usage=told))

    def _prune(self) -> bool:
        if self._config.retention <= 0:
            return True
        oldest_s = time.time() - self._config.retention
        prune = tables.PRUNE.format(requests=self._database.requests)
        with self._database.transaction():
            return self._database.changed(prune, (oldest_s, PRUNE_ROWS)) < PRUNE_ROWS

    def _fold(self) -> bool:
        """Sums of hours become sums of days when the rows are gone, a day at a time."""
        now_s = time.time()
        kept_s, history_s = self._config.retention, self._config.history
        if kept_s > 0 and not self._fold_a_day(int(now_s - kept_s) // tables.DAY_S * tables.DAY_S):
            return False
        if kept_s > 0:
            self._database.run(tables.FORGET_ENDED, (round((now_s - kept_s) * 1000),))
        if history_s > 0:
            self._database.run(tables.FORGET, (int(now_s - history_s),))
            self._database.run(tables.FORGET_SERVERS, (round((now_s - history_s) * 1000),))
        return True

    def _fold_a_day(self, before_s: int) -> bool:
        """The oldest that is not yet. Whether there is none."""
        with self._database.transaction():
            [[first_s]] = self._database.run(tables.UNFOLDED, (before_s,))
            if first_s is None:
                return True
            day_s = first_s // tables.DAY_S * tables.DAY_S
            hours = self._database.run(tables.FOLDED, (day_s, day_s + tables.DAY_S))
            self._database.run_many(tables.ADD, [(day_s, *rest) for _, *rest in hours])
        return False


def _prices(text: str) -> tuple[Price, ...]:
    return tuple(convert(price, Price) for price in msgspec.json.decode(text))
