"""Who may be evicted, in which order, and which of them are chosen."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.eviction import choose, evictable
from sidecar.core.observed import Server
from tests.core.build import DRAINING, STARTING, STOPPING, laws, model, server

M = model(500)
SIZES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=7)  # MB on each of two devices
NEED = st.tuples(st.integers(0, 9), st.integers(0, 9))


class Room:
    """Candidates in their order, and whether the newcomer fits without some of them."""

    def __init__(self, sizes: list[tuple[int, int]], need: tuple[int, int]) -> None:
        self.servers = [server(str(place), M) for place in range(len(sizes))]
        self._freed = {one.id: size for one, size in zip(self.servers, sizes, strict=True)}
        self._need = need

    def fits(self, gone: Sequence[Server]) -> bool:
        return all(sum(self._freed[one.id][device] for one in gone) >= self._need[device] for device in (0, 1))


@laws
@given(SIZES, NEED)
def test_the_chosen_make_room_and_none_of_them_can_be_spared(
    sizes: list[tuple[int, int]], need: tuple[int, int]
) -> None:
    room = Room(sizes, need)
    chosen = choose(room.servers, room.fits)
    if chosen is None:
        assert not room.fits(room.servers)
        return
    assert room.fits(chosen)
    for victim in chosen:
        assert not room.fits([one for one in chosen if one is not victim])


@laws
@given(SIZES, NEED)
def test_no_other_choice_could_leave_the_dearest_victim_alone(
    sizes: list[tuple[int, int]], need: tuple[int, int]
) -> None:
    room = Room(sizes, need)
    chosen = choose(room.servers, room.fits)
    if chosen:
        dearest = max(room.servers.index(victim) for victim in chosen)
        assert not room.fits(room.servers[:dearest])


def test_nobody_is_chosen_when_there_is_room_already() -> None:
    assert choose([server("a", M)], lambda _: True) == []
    assert choose([], lambda _: True) == []


def test_nobody_is_chosen_when_all_together_are_not_enough() -> None:
    assert choose([server("a", M)], lambda _: False) is None
    assert choose([], lambda _: False) is None


def test_one_that_turns_out_not_to_help_stays() -> None:
    room = Room([(1, 0), (0, 3), (3, 0)], (3, 0))
    assert choose(room.servers, room.fits) == [room.servers[2]]


def test_only_ready_idle_unpinned_servers_may_be_evicted() -> None:
    models = {"ok": M, "pinned": model(500, pinned=True)}
    ok = server("ok", M)
    others = [server("ok", M, state=state) for state in (STARTING, DRAINING, STOPPING)]
    assert evictable([server("ok", M, in_flight=1), server("pinned", M), *others, ok], models) == [ok]


def test_the_cheapest_come_first_by_priority_then_idleness_then_id() -> None:
    models = {"dear": model(1, priority=1), "old": M, "young": M, "bargain": model(1, priority=-1), "twin": M}
    seen = [
        server("young", M, idle_s=1),
        server("twin", M, idle_s=5),
        server("dear", M, idle_s=9),
        server("old", M, idle_s=5),
        server("bargain", M),
        server("undeclared", M),
    ]
    order = ["undeclared", "bargain", "old", "twin", "young", "dear"]
    assert [one.model for one in evictable(seen, models)] == order
