"""The stub and the load, built by the C compiler of the machine when they are first needed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import msgspec

_HERE = Path(__file__).parent
_FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror")


class BuildError(Exception):
    """There is no C compiler, or it refuses."""


class Programs(msgspec.Struct, frozen=True):
    """Where they are."""

    stub: Path
    load: Path


def cache() -> Path:
    """Where what was built is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llm-sidecar-benchmark"


def build(directory: Path) -> Programs:
    """Compile into `directory` what is not there yet, by the hash of its source. Raises BuildError."""
    if shutil.which("cc") is None:
        raise BuildError("there is no C compiler: apt-get install gcc libc6-dev")
    directory.mkdir(parents=True, exist_ok=True)
    return Programs(_build(directory, "stub"), _build(directory, "load"))


def _build(directory: Path, name: str) -> Path:
    source = _HERE / f"{name}.c"
    headers = [header.read_bytes() for header in sorted(_HERE.glob("*.h"))]
    text = b"".join([source.read_bytes(), *headers, " ".join(_FLAGS).encode()])
    program = directory / f"{name}-{hashlib.sha256(text).hexdigest()[:16]}"
    if not program.exists():
        unfinished = program.with_suffix(f".{os.getpid()}")
        built = subprocess.run(["cc", *_FLAGS, "-o", unfinished, source], capture_output=True, text=True)
        if built.returncode:
            raise BuildError(built.stderr)
        unfinished.rename(program)
    return program
