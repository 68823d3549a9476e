"""Rows get columns of their own at the least cost."""

from __future__ import annotations

from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.matching import assign
from tests.core.build import laws

Costs = list[list[int | None]]
COSTS = st.integers(0, 5).flatmap(
    lambda width: st.lists(
        st.lists(st.one_of(st.none(), st.integers(0, 9)), min_size=width, max_size=width), max_size=5
    )
)


def total(costs: Costs, columns: tuple[int, ...]) -> int | None:
    chosen = [row[column] for row, column in zip(costs, columns, strict=True)]
    return None if None in chosen else sum(cost for cost in chosen if cost is not None)


@laws
@given(COSTS)
def test_no_assignment_costs_less_than_the_one_found(costs: Costs) -> None:
    width = len(costs[0]) if costs else 0
    totals = [total(costs, columns) for columns in permutations(range(width), len(costs))]
    possible = [one for one in totals if one is not None]
    found = assign(costs)
    if found is None:
        assert not possible
        return
    assert len(set(found)) == len(costs)
    assert total(costs, found) == min(possible)


def test_there_is_no_way_with_fewer_columns_than_rows() -> None:
    assert assign([[1], [1]]) is None


def test_costs_may_be_larger_than_any_machine_word() -> None:
    assert assign([[1 << 900, (1 << 900) + 2], [1 << 901, (1 << 901) + 1]]) == (0, 1)
