"""What `memory_mb` should be, from what was measured."""

from __future__ import annotations

from sidecar.core.observed import Measured


def suggestion(measured: Measured) -> dict[str, int]:
    """Device requirement to what `memory_mb` should be; only where it should be another.

    More than is declared where the peak is above that: the peak and a tenth. Less (it could be lower) where the peak
    is not half of what is declared, and more than 1,000 MB would come free: the peak and a quarter, since a peak that
    was not reached yet costs more than memory that lies idle.
    """
    found = {}
    for requirement, declared_mb in measured.declared_mb.items():
        peak_mb = measured.peak_mb.get(requirement, 0)
        lower_mb = _rounded_up(-(-peak_mb * 5 // 4))
        if peak_mb > declared_mb:
            found[requirement] = _rounded_up(-(-peak_mb * 11 // 10))
        elif peak_mb and declared_mb > 2 * peak_mb and declared_mb - lower_mb > 1000:
            found[requirement] = lower_mb
    return found


def _rounded_up(amount_mb: int) -> int:
    step = 50 if amount_mb <= 10_000 else 100
    return -(-amount_mb // step) * step
