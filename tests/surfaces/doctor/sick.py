"""Machines and manifests with something wrong, for the checks to find."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sidecar.mechanism.loader import Loaded
from sidecar.surfaces.doctor.finding import Check, Finding, Patient, Places
from tests.support import declare


def patient(root: Path, *models: str, settings: str = "", **more: Any) -> Patient:
    """Manifests, on this machine unless `places` says otherwise."""
    state = f'[sidecar]\nstate_dir = "{root}/state"\nlisten = "127.0.0.1:0"\n{settings}\n'
    files = {"sidecar.toml": state} | {f"{number}.toml": text for number, text in enumerate(models)}
    loaded: Loaded = declare(root / "manifests", files, os.environ)
    return Patient(root=root / "manifests", environment=dict(os.environ), loaded=loaded, **more)


def tree(root: Path, files: Mapping[str, object]) -> Places:
    """A machine as its /proc, /sys and /dev tell it."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return Places(root / "proc", root / "sys", root / "dev")


def told(check: Check, of: Patient) -> list[tuple[str, str, bool]]:
    """What a check finds: level, message, and whether it says what would help."""
    return [(found.level.value, found.message, bool(found.remedy)) for found in check(of)]


def worst(check: Check, of: Patient) -> Finding:
    """The worst of what it finds; a remedy belongs to all that is not well."""
    found = list(check(of))
    assert all(finding.remedy for finding in found if finding.level.value in ("warn", "fail"))
    return max(found, key=lambda finding: ["ok", "unknown", "warn", "fail"].index(finding.level.value))
