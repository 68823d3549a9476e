"""Reads a file as engines read models: `reader.py FILE HOW`, HOW being mmap, read or pread.

For each number on its standard input it reads up to that place, and prints `at NUMBER`.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Callable


def reader(descriptor: int, how: str) -> Callable[[int, int], object]:
    """A function that reads from one place up to another."""
    if how == "mmap":
        view = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
        os.close(descriptor)  # as engines do; the mapping has one of its own
        return lambda begin, end: sum(view[place] for place in range(begin, end, mmap.PAGESIZE))
    if how == "read":
        return lambda begin, end: os.read(descriptor, end - begin)
    return lambda begin, end: os.pread(descriptor, end - begin, begin)


def main() -> None:
    """Do as it is told, until its input ends."""
    path, how = sys.argv[1:]
    read, place = reader(os.open(path, os.O_RDONLY), how), 0
    print("at 0", flush=True)
    for line in sys.stdin:
        read(place, int(line))
        place = int(line)
        print("at", place, flush=True)


if __name__ == "__main__":
    main()
