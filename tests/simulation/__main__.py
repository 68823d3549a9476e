"""`python -m tests.simulation --seeds N`: many lives, on several processes; prints what broke, and how to see it."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat

from tests.simulation.life import Result, simulate

HASHING = "PYTHONHASHSEED"


def main() -> int:
    """Run the lives. 1 if a promise was broken in any of them."""
    asked = _arguments()
    if os.environ.get(HASHING) != "0":  # or sets of names would be walked through in another order each time
        again = [sys.executable, "-m", "tests.simulation", *sys.argv[1:]]
        os.execve(sys.executable, again, os.environ | {HASHING: "0"})  # noqa: S606 - it is this very program
    if asked.trace:
        logging.basicConfig(level=logging.INFO, format="             %(name)s: %(message)s", stream=sys.stdout)
        logging.getLogger("sidecar").setLevel(logging.INFO)
        results: Iterable[Result] = (simulate(seed, asked.hours, print) for seed in _seeds(asked))
        return _report(results, asked)
    with ProcessPoolExecutor(asked.jobs) as pool:
        return _report(pool.map(simulate, _seeds(asked), repeat(asked.hours), chunksize=4), asked)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="how many lives")
    parser.add_argument("--first", type=int, default=0, help="the seed of the first one")
    parser.add_argument("--hours", type=float, default=100.0, help="simulated hours of each")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that share the work")
    parser.add_argument("--trace", action="store_true", help="tell everything that happens")
    return parser.parse_args()


def _seeds(asked: argparse.Namespace) -> range:
    return range(asked.first, asked.first + asked.seeds)


def _report(results: Iterable[Result], asked: argparse.Namespace) -> int:
    began = time.monotonic()
    seen = list(_shown(results, asked, began))
    seconds = time.monotonic() - began
    hours = sum(result.hours for result in seen)
    broken = [result for result in seen if result.broken]
    print(
        f"{len(seen)} lives, {hours:,.0f} hours, {hours / seconds:,.1f} hours per second:"
        f" {sum(result.sidecars for result in seen):,} sidecars,"
        f" {sum(result.starts for result in seen):,} server starts,"
        f" {sum(result.served for result in seen):,} requests served, {sum(result.checks for result in seen):,} checks,"
        f" {len(broken)} lives with a broken promise"
    )
    return 1 if broken else 0


def _shown(results: Iterable[Result], asked: argparse.Namespace, began: float) -> Iterator[Result]:
    done = 0.0
    for number, result in enumerate(results, 1):
        done += result.hours
        if result.broken:
            print(f"seed {result.seed}: {result.broken}", flush=True)
            print(
                f"  see it again: python -m tests.simulation --first {result.seed} --seeds 1"
                f" --hours {asked.hours:g} --trace",
                flush=True,
            )
        if number % 50 == 0:
            print(f"{number} lives, {done:,.0f} hours, {time.monotonic() - began:.0f} s", flush=True)
        yield result


if __name__ == "__main__":
    sys.exit(main())
