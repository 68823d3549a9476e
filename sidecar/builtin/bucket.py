"""A token bucket: it holds what is left, at most a minute's worth, and fills steadily."""

from __future__ import annotations


class Bucket:
    """What is left of a minute's worth. The limit is told with each question, because a reload may change it."""

    __slots__ = ("_at", "_left", "_limit")

    def __init__(self, limit: int, now: float) -> None:
        self._limit = limit
        self._left = float(limit)
        self._at = now

    def left(self, limit: int, now: float) -> float:
        """What is left now; below 0 when it is overdrawn."""
        left = self._left
        if limit != self._limit:
            left += limit - self._limit  # what was used stays used
            self._limit = limit
        left += (now - self._at) * limit / 60
        self._left = left = left if left < limit else float(limit)
        self._at = now
        return left

    def is_whole(self, now: float) -> bool:
        """Whether nothing is used up, so that a new one would be the same."""
        return self.left(self._limit, now) >= self._limit

    def take(self, amount: float) -> None:
        """Use some of it, perhaps more than is left."""
        if self._limit > 0:
            self._left -= amount
