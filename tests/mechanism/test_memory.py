"""What was used once is given back: in processes of their own, whose heaps nobody else has used."""

from __future__ import annotations

import subprocess
import sys

_FRAGMENTED = """
from pathlib import Path
from sidecar.mechanism import memory
def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
memory.prepare()
blocks = [bytes(16_000) for _ in range(6000)]
full = resident_mb()
kept = blocks[::50]
del blocks
before = resident_mb()
assert memory.give_back()
print(full, before, resident_mb())
"""

_GARBAGE = """
import asyncio, os
from sidecar.mechanism import memory, procfs
memory.LOOK_S, memory.MOST_SHARE = 0.005, 1.0
async def main():
    memory.prepare()
    keeping = asyncio.create_task(memory.keep_small())
    most_mb = made_mb = 0
    while made_mb < 300:
        await asyncio.sleep(0.005)
        cycle = []
        cycle += [cycle, b"x" * 2**20]
        made_mb += 1
        most_mb = max(most_mb, procfs.private_mb(os.getpid()))
    keeping.cancel()
    print(most_mb)
asyncio.run(main())
"""

_COSTLY = """
import asyncio, itertools, time
from sidecar.mechanism import memory, procfs
grown, times = itertools.count(1), []
def give_back():
    times.append(time.monotonic())
    time.sleep(0.02)
memory.LOOK_S, memory.MOST_SHARE, memory.give_back = 0.001, 0.1, give_back
procfs.private_mb = lambda pid: 1000 ** next(grown)
async def main():
    keeping = asyncio.create_task(memory.keep_small())
    while len(times) < 4:
        await asyncio.sleep(0.01)
    keeping.cancel()
    print(min(after - before for before, after in itertools.pairwise(times)))
asyncio.run(main())
"""


def said_by(program: str) -> list[float]:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return [float(word) for word in done.stdout.split()]


def test_free_memory_between_what_is_in_use_goes_back_to_the_system() -> None:
    full, before, after = said_by(_FRAGMENTED)
    assert full > 100
    assert before > 90, "then there is nothing to give back"
    assert after < 40


def test_a_little_garbage_that_holds_much_does_not_wait_for_its_minute() -> None:
    [most_mb] = said_by(_GARBAGE)
    assert most_mb < 150, "of 300 MB"


def test_what_takes_long_is_done_less_often() -> None:
    [pause_s] = said_by(_COSTLY)
    assert pause_s >= 0.2
