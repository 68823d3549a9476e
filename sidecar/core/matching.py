"""The cheapest way to give each row a column of its own. Pure integers, of any size."""

from __future__ import annotations

from collections.abc import Sequence


def assign(costs: Sequence[Sequence[int | None]]) -> tuple[int, ...] | None:
    """The column of each row, so that the sum is least; None if there is no way.

    Costs are 0 or more; None forbids a pair. The Hungarian method with potentials (Kuhn 1955, Munkres 1957), by
    shortest paths (Jonker and Volgenant 1987): O(rows^2 * columns).
    """
    if costs and len(costs) > len(costs[0]):
        return None
    forbidden = 1 + sum(max((cost for cost in row if cost is not None), default=0) for row in costs)
    full = [[forbidden if cost is None else cost for cost in row] for row in costs]
    columns = _match(full, forbidden * (len(costs) + 1))
    if any(costs[row][column] is None for row, column in enumerate(columns)):
        return None
    return columns


def _match(costs: list[list[int]], infinite: int) -> tuple[int, ...]:
    width = len(costs[0]) if costs else 0
    free = width  # a column that does not exist: where the row that looks for one stands meanwhile
    row_of = [-1] * (width + 1)
    row_price, column_price = [0] * len(costs), [0] * (width + 1)
    for row in range(len(costs)):
        row_of[free] = row
        came_from = _shortest_path(costs, row_of, row_price, column_price, infinite)
        column = came_from.pop()
        while column != free:
            row_of[column] = row_of[came_from[column]]
            column = came_from[column]
    columns = [0] * len(costs)
    for column in range(width):
        if row_of[column] >= 0:
            columns[row_of[column]] = column
    return tuple(columns)


def _shortest_path(
    costs: list[list[int]], row_of: list[int], row_price: list[int], column_price: list[int], infinite: int
) -> list[int]:
    """For each column the one before it on the path, and last the column without a row in which the path ends."""
    width = len(row_of) - 1
    nearest, came_from = [infinite] * width, [width] * width
    at, seen = width, {width}
    while row_of[at] >= 0:
        row = row_of[at]
        for column in range(width):
            if column not in seen:
                cost = costs[row][column] - row_price[row] - column_price[column]
                if cost < nearest[column]:
                    nearest[column], came_from[column] = cost, at
        best = min((column for column in range(width) if column not in seen), key=nearest.__getitem__)
        step = nearest[best]
        for column in range(width):
            if column not in seen:
                nearest[column] -= step
        for column in seen:
            row_price[row_of[column]] += step
            column_price[column] -= step
        at = best
        seen.add(at)
    return [*came_from, at]
