"""What was used once is given back: in a process of its own, whose heap nobody else has used."""

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


def test_free_memory_between_what_is_in_use_goes_back_to_the_system() -> None:
    said = subprocess.run([sys.executable, "-c", _FRAGMENTED], capture_output=True, text=True, check=True).stdout
    full, before, after = map(float, said.split())
    assert full > 100
    assert before > 90, "then there is nothing to give back"
    assert after < 40
