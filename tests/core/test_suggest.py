"""What `memory_mb` should be, from what was measured."""

from __future__ import annotations

import pytest

from sidecar.core.observed import Measured
from sidecar.core.suggest import suggestion


def suggested(declared_mb: int, peak_mb: int | None) -> int | None:
    peaks = {} if peak_mb is None else {"gpu": peak_mb}
    seen = Measured(model="a", variant="v", fingerprint="", declared_mb={"gpu": declared_mb}, peak_mb=peaks)
    return suggestion(seen).get("gpu")


@pytest.mark.parametrize(
    ("declared_mb", "peak_mb", "better_mb"),
    [
        (1000, 1001, 1150),  # a tenth more than the peak, rounded up to 50
        (9000, 11000, 12100),  # and to 100 where it is much
        (9000, 4000, 5000),  # a quarter more than the peak
        (9000, 4500, None),  # the peak is half of it
        (2000, 900, None),  # not worth it
        (9000, 9000, None),
        (9000, None, None),  # never measured
        (9000, 0, None),
    ],
)
def test_more_is_suggested_than_was_ever_taken_and_less_where_much_lies_idle(
    declared_mb: int, peak_mb: int | None, better_mb: int | None
) -> None:
    assert suggested(declared_mb, peak_mb) == better_mb


def test_each_requirement_is_looked_at_for_itself() -> None:
    seen = Measured(
        model="a", variant="v", fingerprint="", declared_mb={"gpu": 500, "cpu": 500}, peak_mb={"gpu": 600, "cpu": 400}
    )
    assert suggestion(seen) == {"gpu": 700}
