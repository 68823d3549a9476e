"""Manifests of the examples for a sidecar of a test's own, in front of a server of the test's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from click.testing import CliRunner

from sidecar.surfaces.cli import main

SHIPPED = {"listen": "127.0.0.1:8080", "state_dir": "~/.local/state/sidecar", "upstream": "http://127.0.0.1:9000"}


def copied(folder: Path, state_dir: Path, upstream: str, changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """What lies in a manifest directory, by path below it, with nothing changed but where the test's own things are.

    changes: further texts of its manifests, and what is to stand there instead.
    """
    files = {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8")
        for ending in ("toml", "py")
        for path in folder.rglob(f"*.{ending}")
    }
    own = dict(zip(SHIPPED.values(), ("127.0.0.1:0", str(state_dir), upstream), strict=True))
    for old, new in (own | dict(changes or {})).items():
        assert any(old in text for text in files.values()), f"{old} is not in {folder}"
        files = {name: text.replace(old, new) if name.endswith(".toml") else text for name, text in files.items()}
    return files


def problems(folder: Path) -> str:
    """What `sidecar validate` says of it as it is; "" if it finds nothing wrong."""
    result = CliRunner().invoke(main, ["validate", str(folder)])
    return result.output if result.exit_code else ""
