"""The cheapest set of servers whose going makes room for a newcomer that needs memory on one device or on several.

Exact for up to 64 candidates that free something where it is needed. Of more, only the 64 cheapest are searched; where
they do not suffice, as many as it takes are, and then as many as can be are spared. So it is, too, with the best set
found when the work is used up (`WORK`, about a second), which happens when there are many needs, and many servers on
several devices each. Such sets make room, and nobody in them can be spared, but they are not proven the cheapest.

A choice of devices (an assignment) turns the question into a covering knapsack, which falls apart into one for each
group of limits that no server connects. Assignments are tried in order of what they cost at least: the sum over their
devices of the cheapest set for that device alone, where a server on several devices counts in part on each. That order
comes from splitting the assignments around the best one, again and again (Murty 1968, Lawler 1972).
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from math import lcm

import msgspec

from sidecar.core.knapsack import Item, Work, cover
from sidecar.core.matching import assign
from sidecar.core.observed import Server

EXACT = 64
WORK = 60_000  # partial sets, times the limits that they overstep
ASSIGNMENT_WORK = 200  # as much work as one assignment is

Need = tuple[tuple[str, ...], int]  # the devices that would do, and MB on one of them
Pair = tuple[int, str]  # a kind of need, and a device for one of that kind
Deficits = tuple[tuple[int, int], ...]  # a limit by its place, and the MB by which claims overstep it


class Limit(msgspec.Struct, frozen=True):
    """What may be claimed on `devices` together: what is free there, and what each server (by id) frees by going.

    free_mb may be below zero.
    """

    devices: frozenset[str]
    free_mb: int
    frees_mb: dict[str, int]


class Candidate(msgspec.Struct, frozen=True):
    """A server that may go. cost: above 0; a set costs the sum. Equal costs are told apart by the servers' ids."""

    server: Server
    cost: int


class Problem(msgspec.Struct, frozen=True):
    """Each need wants a device of its own, and every limit of a device must hold.

    A device without limits is unknown: nothing can be placed there.
    """

    needs: tuple[Need, ...]
    limits: tuple[Limit, ...]
    candidates: tuple[Candidate, ...] = ()


def cheapest(problem: Problem, work: int = WORK) -> tuple[Server, ...] | None:
    """Who has to go, by id; () when nobody has to, None when even all together do not make room."""
    wanted = {device for devices, _ in problem.needs for device in devices}
    limits = [limit for limit in problem.limits if not limit.devices.isdisjoint(wanted)]
    useful = [one for one in problem.candidates if any(limit.frees_mb.get(one.server.id) for limit in limits)]
    candidates = sorted(useful, key=lambda one: (one.cost, one.server.id))
    budget = Work(work)
    found = _Search(problem.needs, limits, candidates[:EXACT], budget).run()
    if budget.left <= 0 or (found is None and len(candidates) > EXACT):
        found = _sufficient(problem.needs, limits, candidates if found is None else found)
    return None if found is None else tuple(sorted((one.server for one in found), key=lambda server: server.id))


def _sufficient(needs: tuple[Need, ...], limits: list[Limit], candidates: list[Candidate]) -> list[Candidate] | None:
    """As many of the cheapest as it takes; then, from the dearest on, those stay that can be spared."""
    candidates = sorted(candidates, key=lambda one: (one.cost, one.server.id))

    def fits(gone: Sequence[Candidate]) -> bool:
        after = [
            Limit(limit.devices, limit.free_mb + sum(limit.frees_mb.get(one.server.id, 0) for one in gone), {})
            for limit in limits
        ]
        return _Search(needs, after, [], Work(WORK)).run() is not None

    if not fits(candidates):
        return None
    chosen = candidates[: bisect_left(range(len(candidates)), True, key=lambda count: fits(candidates[:count]))]
    for one in reversed(chosen.copy()):
        if fits(spared := [other for other in chosen if other is not one]):
            chosen = spared
    return chosen


class _Node(msgspec.Struct, frozen=True, order=True):
    """The assignments with all the pairs in `fixed` and none in `barred`. pairs: the one with the least `bound`."""

    bound: int
    pairs: tuple[Pair, ...]
    fixed: tuple[Pair, ...]
    barred: tuple[Pair, ...]


class _Bound(msgspec.Struct, frozen=True):
    """What a need on a device costs at least.

    alone: if there were no other. share: `scale` times what it adds to the others', where a server costs on each of its
    devices an equal part (of no more devices than there are needs).
    """

    alone: int
    share: int


class _Search:
    """Goes through the assignments. Needs that are alike are of one kind: which is which makes no difference."""

    def __init__(self, needs: tuple[Need, ...], limits: list[Limit], candidates: list[Candidate], work: Work) -> None:
        self.work = work
        kinds = Counter((tuple(sorted(set(devices))), mb) for devices, mb in needs)
        self.kinds = [(devices, mb, count) for (devices, mb), count in sorted(kinds.items())]
        self.devices = sorted({device for devices, _, _ in self.kinds for device in devices})
        self.limits = limits
        self.limits_of = {
            device: [place for place, limit in enumerate(limits) if device in limit.devices] for device in self.devices
        }
        self.table = _Table(limits, self.limits_of, candidates, len(needs), work)
        self.best: int | None = None  # the cost of the best set so far
        self.bounds = [self._bounds_of(kind) for kind in range(len(self.kinds))]
        self.shared = [
            (limit, limit.free_mb + sum(limit.frees_mb.get(one.server.id, 0) for one in candidates))
            for limit in limits
            if len(limit.devices) > 1
        ]

    def run(self) -> list[Candidate] | None:
        """The cheapest set, or the best one found before the work was used up."""
        queue = self._nodes((), ())
        while queue and not self._beaten(queue[0]):
            node = heapq.heappop(queue)
            found = self.table.least(self._deficits(node.pairs, range(len(self.limits))), self.best)
            self.best = self.best if found is None else found
            if self.work.left <= 0:
                break
            for other in [] if self._beaten(node) else self._others(node):
                heapq.heappush(queue, other)
        return None if self.best is None else self.table.named(self.best)

    def _beaten(self, node: _Node) -> bool:
        return self.best is not None and node.bound >= self.best * self.table.scale

    def _bounds_of(self, kind: int) -> dict[str, _Bound]:
        """The devices that can hold a need of the kind, and what that costs at least."""
        bounds = {}
        for device in self.kinds[kind][0]:
            limits = self.limits_of[device]
            bound = self.table.bound(self._deficits([(kind, device)], limits)) if limits else None
            if bound is not None:
                bounds[device] = bound
        return bounds

    def _share(self, pair: Pair) -> int | None:
        """What the pair adds to the bound of an assignment; None if none with it can be better than the best so far."""
        bound = self.bounds[pair[0]].get(pair[1])
        return None if bound is None or (self.best is not None and bound.alone >= self.best) else bound.share

    def _deficits(self, pairs: Iterable[Pair], limits: Iterable[int]) -> Deficits:
        """The limits that the pairs overstep as long as nobody goes, and by how much."""
        claims = [(device, self.kinds[kind][1]) for kind, device in pairs]
        deficits = []
        for place in limits:
            limit = self.limits[place]
            claimed = [mb for device, mb in claims if device in limit.devices]
            if claimed and sum(claimed) > limit.free_mb:
                deficits.append((place, sum(claimed) - limit.free_mb))
        return tuple(deficits)

    def _others(self, node: _Node) -> list[_Node]:
        """The node's other assignments, in groups by the first pair in which they differ from its best."""
        others: list[_Node] = []
        fixed = node.fixed
        for pair in node.pairs[len(fixed) :]:
            others += self._nodes(fixed, (*node.barred, pair))
            fixed = (*fixed, pair)
        return others

    def _nodes(self, fixed: tuple[Pair, ...], barred: tuple[Pair, ...]) -> list[_Node]:
        """One node; none if there is no such assignment."""
        self.work.left -= ASSIGNMENT_WORK
        if not self._shared_limits_hold(fixed) or any(self._share(pair) is None for pair in fixed):
            return []
        taken = {device for _, device in fixed}
        devices = [device for device in self.devices if device not in taken]
        placed = Counter(kind for kind, _ in fixed)
        rows = [kind for kind, (_, _, count) in enumerate(self.kinds) for _ in range(count - placed[kind])]
        columns = assign(
            [[None if (kind, device) in barred else self._share((kind, device)) for device in devices] for kind in rows]
        )
        if columns is None:
            return []
        pairs = (*fixed, *((kind, devices[column]) for kind, column in zip(rows, columns, strict=True)))
        return [_Node(sum(self.bounds[kind][device].share for kind, device in pairs), pairs, fixed, barred)]

    def _shared_limits_hold(self, fixed: tuple[Pair, ...]) -> bool:
        """Whether limits over several devices leave room for the pairs, and for what can go nowhere else."""
        for limit, most in self.shared:
            claims = self._certain_claims(limit, fixed)
            if claims and sum(claims) > most:
                return False
        return True

    def _certain_claims(self, limit: Limit, fixed: tuple[Pair, ...]) -> list[int]:
        claims = [self.kinds[kind][1] for kind, device in fixed if device in limit.devices]
        placed = Counter(kind for kind, _ in fixed)
        for kind, (_, mb, count) in enumerate(self.kinds):
            if limit.devices.issuperset(self.bounds[kind]):
                claims += [mb] * (count - placed[kind])
        return claims


class _Table:
    """What it costs to cover deficits, remembered, since assignments have most of them in common."""

    def __init__(
        self, limits: list[Limit], limits_of: dict[str, list[int]], candidates: list[Candidate], needs: int, work: Work
    ) -> None:
        self.work = work
        # The lowest bits of a sum tell who is in the set: ties go to the lower ids, and each sum names its set.
        ordered = sorted(candidates, key=lambda one: one.server.id)
        self.candidates = ordered
        self.costs = [one.cost << len(ordered) | 1 << rank for rank, one in enumerate(ordered)]
        self.frees = [[limit.frees_mb.get(one.server.id, 0) for limit in limits] for one in ordered]
        touched = [sum(any(map(frees.__getitem__, places)) for places in limits_of.values()) for frees in self.frees]
        spread = [min(devices, needs) for devices in touched]
        self.scale = lcm(*spread)
        self.shares = [cost * self.scale // devices for cost, devices in zip(self.costs, spread, strict=True)]
        self._covers: dict[tuple[bool, Deficits], int | None] = {}

    def named(self, cost: int) -> list[Candidate]:
        """The set that costs so much."""
        return [one for rank, one in enumerate(self.candidates) if cost >> rank & 1]

    def least(self, deficits: Deficits, below: int | None) -> int | None:
        """The least cost of a set that covers the deficits; None if there is none `below`, which may only fall."""
        total = 0
        for part in self._parts(deficits):
            cost = self._cover(part, self.costs, below)
            if cost is None:
                return None
            total += cost
        return total if below is None or total < below else None

    def bound(self, deficits: Deficits) -> _Bound | None:
        """What the deficits of one device add at least to the cost of a set; None if they cannot be covered."""
        if not deficits:
            return _Bound(0, 0)
        alone = self._cover(deficits, self.costs, None)
        share = alone if self.scale == 1 else self._cover(deficits, self.shares, None)
        return None if alone is None or share is None else _Bound(alone, share)

    def _cover(self, deficits: Deficits, costs: list[int], below: int | None) -> int | None:
        key = (costs is self.costs, deficits)
        if key not in self._covers:
            items = [
                Item(cost, tuple(frees[place] for place, _ in deficits))
                for cost, frees in zip(costs, self.frees, strict=True)
            ]
            self._covers[key] = cover(items, [amount for _, amount in deficits], self.work, below)
        return self._covers[key]

    def _parts(self, deficits: Deficits) -> list[Deficits]:
        """The deficits in groups that no candidate connects."""
        parts: list[Deficits] = [(deficit,) for deficit in deficits]
        for frees in self.frees:
            touched = [part for part in parts if any(frees[place] for place, _ in part)]
            if len(touched) > 1:
                parts = [part for part in parts if part not in touched]
                parts.append(tuple(sorted(deficit for part in touched for deficit in part)))
        return parts
