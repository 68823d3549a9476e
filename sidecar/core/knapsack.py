"""The cheapest set of items that covers some deficits, in whole numbers of any size: a covering knapsack.

A Pareto dynamic programme (Nemhauser and Ullmann, 1969): items are decided one after the other, and of all partial sets
only those are kept that no other one beats, that is, costs no more and leaves no more uncovered. A partial set is also
dropped when what is undecided cannot complete it for less than the best set known costs, by the fractional optimum of
each deficit (Dantzig, 1957).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from math import inf, lcm
from operator import ge

import msgspec

NARROW = 64  # partial sets kept for each item once the work is used up
BEATEN_BY = 32  # how many partial sets another one is compared with where there are several deficits


class Item(msgspec.Struct, frozen=True):
    """cost: above 0. frees: what it gives to each deficit."""

    cost: int
    frees: tuple[int, ...]


class Work:
    """How many partial sets, times their deficits, may still be looked at.

    When nothing is left, only the most promising are: results are good then, but not proven the best.
    """

    def __init__(self, left: int) -> None:
        self.left = left


State = tuple[int, tuple[int, ...]]  # the cost of a partial set, and what it leaves uncovered of each deficit


def cover(items: Sequence[Item], deficits: Sequence[int], work: Work, below: int | None = None) -> int | None:
    """The least cost of items that give each deficit (above 0) at least its size; None if there is none `below`."""
    items, deficits = _essential(items, deficits)
    if any(sum(item.frees[row] for item in items) < deficit for row, deficit in enumerate(deficits)):
        return None
    ordered = sorted(items, key=lambda item: _ratio(item.cost, _share(item, deficits)))
    known = min(_greedy(ordered, deficits), _greedy(sorted(items, key=lambda item: item.cost), deficits))
    found = _decide(ordered, tuple(deficits), known if below is None else min(known, below), work)
    return None if below is not None and found >= below else found


def _decide(items: list[Item], deficits: tuple[int, ...], best: int, work: Work) -> int:
    """The least cost, or `best` if there is nothing below it.

    Those that are dearest for what they give are decided first, so that the best are left to complete a set.
    """
    rows = _Rows(items, len(deficits))
    states: list[State] = [(0, deficits)]
    for place in range(len(items) - 1, -1, -1):
        item = items[place]
        with_item: list[State] = []
        for cost, lacks in states:
            left = tuple([max(0, lack - freed) for lack, freed in zip(lacks, item.frees, strict=True)])
            if any(left):
                with_item.append((cost + item.cost, left))
            else:
                best = min(best, cost + item.cost)
        work.left -= len(states) * len(deficits)
        bounds = [(bound, state) for state in states + with_item if (bound := rows.bound(state, place)) < best]
        if work.left < 0:
            bounds = sorted(bounds)[:NARROW]
        states = _unbeaten(sorted(state for _, state in bounds))
    return best


class _Rows:
    """For each deficit, the items by what they cost for what they give it: at full cost, and at a share of it, that is,
    divided by the number of deficits to which the item gives. Shares add up over the deficits; full costs do not.
    """

    def __init__(self, items: list[Item], rows: int) -> None:
        spread = [sum(map(bool, item.frees)) for item in items]
        self.scale = lcm(*spread)
        shares = [item.cost * self.scale // count for item, count in zip(items, spread, strict=True)]
        self.full = [
            _by_ratio([item.cost for item in items], [item.frees[row] for item in items]) for row in range(rows)
        ]
        self.shared = [_by_ratio(shares, [item.frees[row] for item in items]) for row in range(rows)]
        self._place = -1
        self._known: dict[tuple[int, int], tuple[float, float]] = {}
        self._tables: dict[int, tuple[_Fractional, _Fractional]] = {}

    def bound(self, state: State, place: int) -> float:
        """What the partial set costs at least once completed from the first `place` items; infinite if it cannot be.

        Otherwise a whole number, however large.
        """
        if place != self._place:
            self._place, self._known, self._tables = place, {}, {}
        most: float = 0
        total: float = 0
        for row, lack in enumerate(state[1]):
            if lack:
                full, shared = self._known.get((row, lack)) or self._find(row, lack)
                if full == inf:
                    return inf
                most = max(most, full)
                total += shared
        return state[0] + max(most, -(-total // self.scale))

    def _find(self, row: int, lack: int) -> tuple[float, float]:
        if row not in self._tables:
            self._tables[row] = _Fractional(self.full[row], self._place), _Fractional(self.shared[row], self._place)
        full, shared = self._tables[row]
        found = self._known[row, lack] = full.least(lack), shared.least(lack)
        return found


class _Fractional:
    """What covering a deficit costs at least, where the last item may be taken in part."""

    def __init__(self, ordered: list[tuple[int, int, int]], place: int) -> None:
        self.items = [(cost, freed) for at, cost, freed in ordered if at < place]
        self.costs = [0, *accumulate(cost for cost, _ in self.items)]
        self.freed = [0, *accumulate(freed for _, freed in self.items)]

    def least(self, lack: int) -> float:
        if lack > self.freed[-1]:
            return inf
        last = bisect_left(self.freed, lack) - 1
        cost, freed = self.items[last]
        return self.costs[last] + cost * (lack - self.freed[last]) // freed


def _by_ratio(costs: list[int], frees: list[int]) -> list[tuple[int, int, int]]:
    """(place, cost, freed) of the items that free something, the cheapest for what they free first."""
    found = [(place, cost, freed) for place, (cost, freed) in enumerate(zip(costs, frees, strict=True)) if freed]
    return sorted(found, key=lambda one: _ratio(one[1], one[2]))


def _ratio(cost: int, freed: int) -> int:
    """Orders fractions exactly: two that differ do so by more than 2**-64, as nothing frees 2**32 MB."""
    return (cost << 64) // freed


def _share(item: Item, deficits: Sequence[int]) -> int:
    """What the item gives of all deficits, each counted as much as the others."""
    return 1 + sum((freed << 16) // lack for freed, lack in zip(item.frees, deficits, strict=True))


def _unbeaten(states: list[State]) -> list[State]:
    """Of partial sets in order of cost those that leave less of some deficit than each cheaper one.

    With one deficit the last one kept leaves least. With several, only the last few are looked at: to keep too many
    costs time, not exactness.
    """
    kept: list[State] = []
    for cost, lacks in states:
        others = kept[-BEATEN_BY:] if len(lacks) > 1 else kept[-1:]
        if not any(all(map(ge, lacks, other)) for _, other in others):
            kept.append((cost, lacks))
    return kept


def _greedy(items: list[Item], deficits: Sequence[int]) -> int:
    """Items in their order until all is covered; then, from the dearest on, those go back that can be spared."""
    spare = [-deficit for deficit in deficits]
    taken: list[Item] = []
    for item in items:
        if min(spare, default=0) >= 0:
            break
        if any(amount < 0 < freed for amount, freed in zip(spare, item.frees, strict=True)):
            taken.append(item)
            spare = [amount + freed for amount, freed in zip(spare, item.frees, strict=True)]
    cost = sum(item.cost for item in taken)
    for item in sorted(taken, key=lambda item: -item.cost):
        without = [amount - freed for amount, freed in zip(spare, item.frees, strict=True)]
        if min(without) >= 0:
            spare, cost = without, cost - item.cost
    return cost


def _essential(items: Sequence[Item], deficits: Sequence[int]) -> tuple[list[Item], list[int]]:
    """The problem without what is implied: nobody gives more than is lacking, and a deficit that another one's cover
    covers anyhow is left out. So are items that give nothing.
    """
    capped = [tuple(map(min, item.frees, deficits)) for item in items]
    rows = list(range(len(deficits)))
    for row in range(len(deficits)):
        if any(other != row and _implies(other, row, capped, deficits) for other in rows):
            rows.remove(row)
    kept = [
        Item(item.cost, tuple(frees[row] for row in rows))
        for item, frees in zip(items, capped, strict=True)
        if any(frees[row] for row in rows)
    ]
    return kept, [deficits[row] for row in rows]


def _implies(one: int, other: int, frees: list[tuple[int, ...]], deficits: Sequence[int]) -> bool:
    """Whether every item gives `other` at least the share of its deficit that it gives `one` of that one's."""
    return all(freed[other] * deficits[one] >= freed[one] * deficits[other] for freed in frees)
