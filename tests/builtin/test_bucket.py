"""A token bucket, over any time."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.builtin.bucket import Bucket


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.integers(1, 100), st.lists(st.floats(0, 30), max_size=200))
def test_over_any_time_no_more_passes_than_a_minutes_worth_and_what_has_filled_up(
    limit: int, pauses: list[float]
) -> None:
    now, passed = 0.0, 0
    bucket = Bucket(limit, now)
    for pause in pauses:
        now += pause
        if bucket.left(limit, now) >= 1:
            bucket.take(1)
            passed += 1
        assert passed <= limit + now * limit / 60 + 1e-6
