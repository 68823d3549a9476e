"""A server that takes more than its manifest says: it is told, and the manifest is put right while all runs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx

from sidecar.control.measurements import Measurements
from sidecar.mechanism.loader import load
from sidecar.mechanism.source import read
from tests.e2e.conftest import Run
from tests.e2e.harness import Sidecar, cli, settings, stub, until, write

HUNGRY = stub("hungry", "--allocate-mb", "300", memory_mb=100).replace("memory_mb = 100", "memory_mb = 100   # a guess")


def calibrate(sidecar: Sidecar, *arguments: str) -> dict[str, Any]:
    """The answer of `sidecar calibrate` for the manifests that it runs on."""
    result = sidecar.cli("calibrate", str(sidecar.folder / "manifests"), "--json", *arguments)
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def measured(sidecar: Sidecar) -> dict[str, Any]:
    """What is known of the hungry model."""
    answer = httpx.get(f"{sidecar.url}/-/measurements", trust_env=False).json()
    found: dict[str, Any] = next((one for one in answer if one["model"] == "hungry"), {})
    return found


def is_measured(sidecar: Sidecar) -> bool:
    """Whether the hungry model was seen with all that it takes."""
    peak: dict[str, int] = measured(sidecar).get("peak_mb", {})
    return peak.get("cpu", 0) > 300


def test_a_declaration_that_is_too_low_is_told_and_put_right_while_all_runs(run: Run) -> None:
    sidecar = run(HUNGRY, stub("modest", memory_mb=100))
    sidecar.ask("modest")
    untouched = sidecar.pid("modest")
    sidecar.ask("hungry")
    until(lambda: is_measured(sidecar), "its use is measured")
    lines = {line["model"]: line for line in calibrate(sidecar)["variants"]}
    suggested = lines["hungry"]["suggested_mb"]
    assert 300 < lines["hungry"]["peak_mb"] < suggested < 1000
    assert lines["modest"]["suggested_mb"] is None

    answer = calibrate(sidecar, "--write")
    file = sidecar.folder / "manifests" / "model-0.toml"
    assert answer["written"] == [str(file)]
    assert file.read_text() == HUNGRY.replace("memory_mb = 100 ", f"memory_mb = {suggested} ")
    until(lambda: measured(sidecar)["declared_mb"] == {"cpu": suggested}, "the new number is in force")
    until(lambda: sidecar.state("hungry") != "draining", "the server that holds less is gone")
    sidecar.ask("hungry")
    assert sidecar.model("hungry")["server"]["reserved_mb"] == {"cpu": suggested}
    again = calibrate(sidecar, "--write")
    assert [line["suggested_mb"] for line in again["variants"]] == [None, None]
    assert again["written"] == []
    assert (sidecar.starts("hungry"), sidecar.starts("modest")) == (2, 1)
    assert sidecar.pid("modest") == untouched


def test_what_was_measured_outlives_the_sidecar(run: Run, tmp_path: Path) -> None:
    sidecar = run(HUNGRY)
    sidecar.ask("hungry")
    until(lambda: is_measured(sidecar), "its use is measured")
    before = calibrate(sidecar)
    assert sidecar.stop() == 0
    assert (tmp_path / "state" / "measurements.json").exists()
    assert calibrate(sidecar) == before


def test_only_operators_see_what_was_measured(run: Run) -> None:
    sidecar = run(stub("m"))
    answer = httpx.get(f"{sidecar.url}/-/measurements", headers={"x-forwarded-for": "203.0.113.7"}, trust_env=False)
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "not_loopback"


def test_a_file_that_changes_under_its_hands_is_left_alone(tmp_path: Path) -> None:
    """Plugins are imported between reading and writing: this one is a colleague who edits the manifest just then."""
    manifests = tmp_path / "manifests"
    colleague = """
from pathlib import Path
from plugin_sdk import DeviceStatus, device

file = Path(__file__).parents[1] / "m.toml"
file.write_text(file.read_text() + "# mine\\n")

@device("colleague")
def colleague() -> DeviceStatus:
    return DeviceStatus(total_mb=1, free_mb=1)
"""
    write(manifests / "sidecar.toml", settings(tmp_path / "state", "21000-21001"))
    write(manifests / "m.toml", stub("m"))
    declared = load(read(manifests), {}).declaration
    found = Measurements(tmp_path / "state")
    found.observed("m", declared.models["m"].variants[0], ("cpu",), {"cpu": 130})
    (tmp_path / "state").mkdir()
    asyncio.run(found.save())
    write(manifests / "plugins" / "colleague.py", colleague)
    write(manifests / "plugin.toml", '[plugins.colleague]\nimport = "colleague:colleague"\n')
    result = cli("calibrate", str(manifests), "--write", "--url", "http://127.0.0.1:1", check=False)
    assert result.returncode == 1
    assert f"not written: {manifests}/m.toml has changed since it was read" in result.stderr
    assert set((manifests / "m.toml").read_text().removeprefix(stub("m")).splitlines()) == {"# mine"}
