"""Checks run side by side; one that hangs or breaks is a finding, and the command says so by its exit code."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.surfaces.doctor.checks import CHECKS
from sidecar.surfaces.doctor.examine import examine
from sidecar.surfaces.doctor.finding import Finding, Level, Patient, ok
from tests.support import model, write


def fine(_: Patient) -> Iterator[Finding]:
    yield ok("well")


def breaks(_: Patient) -> Iterator[Finding]:
    yield ok("well so far")
    raise RuntimeError("boom")


def hangs(_: Patient) -> Iterator[Finding]:
    threading.Event().wait()
    yield ok("never")


def test_a_check_that_hangs_or_breaks_is_told_and_harms_no_other(tmp_path: Path) -> None:
    began = time.monotonic()
    patient = Patient(root=tmp_path, environment={}, patience_s=0.3)
    found = examine(patient, {"hangs": hangs, "breaks": breaks, "also hangs": hangs, "fine": fine})
    assert time.monotonic() - began < 5
    assert [(one.check, one.level) for one in found] == [
        ("hangs", Level.UNKNOWN),
        ("breaks", Level.UNKNOWN),
        ("also hangs", Level.UNKNOWN),
        ("fine", Level.OK),
    ]
    assert "RuntimeError: boom" in found[1].message
    assert "within 0.3 s" in found[0].message


def doctor(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sidecar", "doctor", str(folder), "--url", "http://127.0.0.1:1", *flags],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_command_tells_all_and_fails_when_something_does(tmp_path: Path) -> None:
    settings = f'[sidecar]\nstate_dir = "{tmp_path}/state"\nlisten = "127.0.0.1:0"\n'
    write(tmp_path, {"s.toml": settings, "m.toml": model("m")})
    sick = doctor(tmp_path, "--json")
    report = json.loads(sick.stdout)
    assert sick.returncode == 1  # there is no program "serve"
    assert {finding["check"] for finding in report["findings"]} == set(CHECKS)
    assert report["counts"]["fail"] == sum(finding["level"] == "fail" for finding in report["findings"]) > 0


def test_people_are_told_of_the_checkout_that_a_bootstrap_file_means_and_of_what_is_for_this_node(
    tmp_path: Path,
) -> None:
    here, elsewhere = (model(name, f'nodes = {{ gpu = "{name}" }}') for name in ("here", "elsewhere"))
    write(tmp_path, {"b.toml": f'[source]\ngit = "https://git.example/m.git"\nstate_dir = "{tmp_path}/state"\n'})
    write(tmp_path / "state" / "source" / "live", {"here.toml": here, "elsewhere.toml": elsewhere})
    people = doctor(tmp_path / "b.toml", "--label", "gpu=here", "--only", "commands", "--only", "clock")
    assert people.returncode == 1
    assert 'here (default): "serve" is not found' in people.stdout
    assert "elsewhere" not in people.stdout
    assert "commands: install it, or name its path" in people.stdout


@pytest.mark.soak
def test_the_command_ends_well_where_all_is_well(tmp_path: Path) -> None:
    assert doctor(tmp_path, "--only", "clock").returncode == 0


@pytest.mark.soak
def test_a_plugin_that_hangs_while_it_is_imported_does_not_hold_it_up(tmp_path: Path) -> None:
    write(tmp_path, {"plugins/slow.py": "import time\ntime.sleep(3600)\n", "m.toml": model("m")})
    said = doctor(tmp_path, "--timeout", "1", "--only", "manifests", "--only", "clock")
    assert said.returncode == 1
    assert "cannot be read as manifests: no answer within 1 s" in said.stdout
