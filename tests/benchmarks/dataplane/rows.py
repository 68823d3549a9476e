"""A row of the table: a figure, what is wanted of it, and whether it is so."""

from __future__ import annotations

import msgspec


class Goal(msgspec.Struct, frozen=True):
    """What a figure should reach. target, stretch: None = not asked for. most: the figure should be that or less."""

    target: float | None = None
    stretch: float | None = None
    most: bool = False

    def reached(self, figure: float) -> str:
        """`stretch`, `met` or `missed`; nothing where nothing is wanted."""
        if self.target is None:
            return ""
        if self.stretch is not None and self._reaches(figure, self.stretch):
            return "stretch"
        return "met" if self._reaches(figure, self.target) else "missed"

    def _reaches(self, figure: float, wanted: float) -> bool:
        return figure <= wanted if self.most else figure >= wanted


NOTHING = Goal()


def at_most(target: float, stretch: float | None = None) -> Goal:
    """A goal of which less is better."""
    return Goal(target, stretch, most=True)


class Row(msgspec.Struct, frozen=True):
    """A result. measured: what the figure was made of, for people. others: cores that other processes took."""

    name: str
    what: str
    figure: float
    unit: str
    goal: Goal = NOTHING
    measured: str = ""
    others: float = 0.0

    @property
    def verdict(self) -> str:
        """How the figure stands to its goal."""
        return self.goal.reached(self.figure)
