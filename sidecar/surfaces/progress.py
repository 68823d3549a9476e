"""How far a server that loads has come, as values and in a line."""

from __future__ import annotations

import msgspec

from sidecar.control.live import LiveServer
from sidecar.control.measurements import Measurements
from sidecar.core.observed import ServerState
from sidecar.mechanism.loading import Reading

_MB = 2**20
NEVER_QUITE = 0.99  # what was read, or time that has passed, makes no server ready: only its answer does


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """A load that is under way. Times in seconds, amounts in MB.

    since_s: since it was spawned. expected_s: what its loads have taken, None = there was none yet. timeout_s: after
    which it is given up. model_mb: the size of the files that its command names, 0 = none is known. model_read_mb: what
    was read of them, None = nobody was seen to. disk_mb: what came from disks, not the page cache, None = not told.
    memory_mb: what it has taken on its devices, None = not told; declared_mb: of so much.
    done: from 0 to 1, by what was read, or else by the time; None = neither is known.
    """

    since_s: float
    expected_s: float | None
    timeout_s: float
    model_mb: int = 0
    model_read_mb: int | None = None
    disk_mb: int | None = None
    memory_mb: int | None = None
    declared_mb: int = 0
    done: float | None = None


def progress(server: LiveServer, measurements: Measurements, now: float) -> Progress | None:
    """Of a server that loads; None of any other."""
    if server.state is not ServerState.STARTING:
        return None
    reading = server.reading or Reading()
    since_s = round(now - server.since, 1)
    expected_s = measurements.load_s(server.model, server.variant)
    return Progress(
        since_s=since_s,
        expected_s=expected_s,
        timeout_s=server.variant.load_deadline_s,
        model_mb=-(-reading.model // _MB),  # rounded up, so that a small file is not none
        model_read_mb=None if reading.model_read is None else reading.model_read // _MB,
        disk_mb=None if reading.disk is None else reading.disk // _MB,
        done=_done(reading, since_s, expected_s),
        memory_mb=sum(server.observed_mb.values()) if server.observed_mb else None,
        declared_mb=sum(server.reserved_mb.values()),
    )


def told(found: Progress) -> str:
    """`28 %: 5,096 of 18,200 MB read, 3,100 of 9,000 MB taken, 21 of about 45 s`."""
    parts = []
    if found.model_mb and found.model_read_mb is not None:
        parts.append(f"{found.model_read_mb:,} of {found.model_mb:,} MB read")
    if found.memory_mb is not None:
        parts.append(f"{found.memory_mb:,} of {found.declared_mb:,} MB taken")
    if found.expected_s:
        parts.append(f"{found.since_s:.0f} of about {found.expected_s:.0f} s")
    else:
        parts.append(f"{found.since_s:.0f} s (given up after {found.timeout_s:.0f} s)")
    return (f"{found.done:.0%}: " if found.done is not None else "") + ", ".join(parts)


def _done(reading: Reading, since_s: float, expected_s: float | None) -> float | None:
    if reading.model and reading.model_read is not None:
        return min(NEVER_QUITE, reading.model_read / reading.model)
    return min(NEVER_QUITE, since_s / expected_s) if expected_s else None
