"""Runs the laws on inputs that a fuzzer makes up (https://github.com/google/atheris, `pip install atheris`).

    python -m tests.fuzz LAW [SECONDS]     # all laws without one, for 60 seconds each

An input that breaks a law is left in `tests/fuzz/seeds/LAW/`, which the tests replay: commit it with what mends it.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import tempfile
from pathlib import Path

SEEDS = Path(__file__).parent / "seeds"
WORDS = Path(__file__).parent / "words.dict"


def _fuzz(law: str, seconds: str) -> None:
    """Never returns: the fuzzer ends the process."""
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["sidecar.surfaces.dataplane", "plugin_sdk"]):
        laws = importlib.import_module("tests.fuzz.laws")
    seeds = SEEDS / law
    with tempfile.TemporaryDirectory() as found:  # its corpus grows by thousands, of which few are worth keeping
        options = [
            f"-max_total_time={seconds}",
            "-max_len=2000",
            "-timeout=60",
            f"-artifact_prefix={seeds}/",
            f"-dict={WORDS}",
        ]
        atheris.Setup([sys.argv[0], *options, found, str(seeds)], laws.LAWS[law])
        atheris.Fuzz()


def main(arguments: list[str]) -> int:
    """Whether any law was broken, as an exit code."""
    if arguments[:1] == ["--one"]:
        _fuzz(*arguments[1:])
    names = sorted(path.name for path in SEEDS.iterdir())
    chosen = arguments[:1] if arguments and arguments[0] in names else names
    seconds = arguments[-1] if arguments and arguments[-1].isdigit() else "60"
    broken = [
        law
        for law in chosen
        if subprocess.run([sys.executable, "-m", "tests.fuzz", "--one", law, seconds], check=False).returncode
    ]
    print("broken:", ", ".join(broken) or "none")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
