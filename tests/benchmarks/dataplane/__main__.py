"""`python -m tests.benchmarks.dataplane [--quick] [--json FILE] [--only NAME ...]`: measures, and prints the table."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sidecar import __version__
from tests.benchmarks.dataplane import table, yardsticks
from tests.benchmarks.dataplane.bench import FULL, QUICK, Bench, MeasureError
from tests.benchmarks.dataplane.cases import CASES
from tests.benchmarks.dataplane.load import LoadError
from tests.benchmarks.dataplane.machine import Cores, allow_many_files, facts, pinned
from tests.benchmarks.dataplane.processes import ProcessError
from tests.benchmarks.dataplane.programs import BuildError, build, cache
from tests.benchmarks.dataplane.rows import Row


def main() -> int:
    """0 if everything was measured and no target missed."""
    asked = _arguments()
    try:
        bench = _bench(asked.quick)
    except BuildError as error:
        _tell(str(error))
        return 2
    allow_many_files()
    rows: list[Row] = []
    failures: dict[str, str] = {}
    with pinned(bench.cores.load):
        for name in asked.only or CASES:
            _measure(bench, name, rows, failures)
    _print(rows, failures, asked.quick)
    if asked.json:
        about = facts() | {"sidecar": __version__} | {name: yardsticks.version(name) for name in bench.yardsticks}
        asked.json.write_bytes(table.encoded(rows, about, asked.quick, failures))
    return 1 if failures or any(row.verdict == "missed" for row in rows) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.dataplane", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less of everything, in two minutes: not for quoting")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    parser.add_argument("--only", nargs="+", choices=list(CASES), metavar="NAME", help=f"of {', '.join(CASES)}")
    return parser.parse_args()


def _bench(quick: bool) -> Bench:
    found = {name: start for name, start in yardsticks.YARDSTICKS.items() if yardsticks.find(name)}
    for name in yardsticks.YARDSTICKS.keys() - found.keys():
        _tell(f"{name} is not there, so nothing is compared with it: {yardsticks.HOW_TO_GET[name]}")
    cores = Cores.available()
    if cores.proxy is None:
        _tell("There is one core alone: proxy, load and stub share it, and the figures say little.")
    return Bench(build(cache()), cores, QUICK if quick else FULL, found)


def _measure(bench: Bench, name: str, rows: list[Row], failures: dict[str, str]) -> None:
    """Add a case's rows, or why there are none."""
    began = time.monotonic()
    try:
        rows += CASES[name](bench)
    except (MeasureError, LoadError, ProcessError, OSError) as error:
        failures[name] = str(error)
    _tell(f"{name}: {'failed' if name in failures else 'done'} ({time.monotonic() - began:.0f} s)")


def _print(rows: Sequence[Row], failures: dict[str, str], quick: bool) -> None:
    print(table.markdown(rows))
    if quick:
        print("\nQuick: short windows, few streams and requests; not for quoting.")
    for line in (table.disturbed(rows), *(f"{name} failed: {why}" for name, why in failures.items())):
        if line:
            print(f"\n{line}")


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
