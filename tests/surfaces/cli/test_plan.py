"""`sidecar plan DIRECTORY`, here and for a machine that is elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from sidecar.core.manifest import Declaration
from sidecar.core.nodes import Node
from sidecar.mechanism.loader import load
from sidecar.mechanism.placeholders import ForeignEnvironment
from sidecar.mechanism.source import read
from sidecar.surfaces import snapshot
from sidecar.surfaces.cli import main
from tests.core.build import NOW, gpu, server
from tests.support import model, write

FAR = model("far", 'nodes = { gpu = "h200" }').replace('"cpu"', '"nvidia"').replace("= 100", "= 600")
NEAR = model("near", "auto_start = true", 'env = { TOKEN = "{env.NOT_SET}" }').replace('"cpu"', '"nvidia"')


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Manifests for GPUs, of which this machine need not have any."""
    files = {"near.toml": NEAR, "far.toml": FAR, "sidecar.toml": "[sidecar]\nheadroom_mb = 0\n"}
    write(tmp_path / "manifests", files)
    return tmp_path


def plan(folder: Path, *arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["plan", str(folder / "manifests"), *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def told(folder: Path, *arguments: str | Path) -> list[tuple[str, str]]:
    """(action, model)."""
    found: dict[str, Any] = json.loads(plan(folder, "--json", *arguments).stdout)
    return [(action["action"], action["model"]) for action in found["actions"]]


def written(folder: Path, declared: Declaration, *running: str) -> Path:
    """The snapshot of a machine with one GPU of 1000 MB, and servers of these models."""
    device = msgspec.structs.replace(gpu("GPU-a", 1000 - 600 * len(running)), device_class="nvidia")
    servers = tuple(server(name, declared.models[name], "GPU-a", use=600, fingerprint="other") for name in running)
    machine = snapshot.offline((device,), Node({"hostname": "gpu-7", "gpu": "h200"}))
    file = folder / "devices.json"
    file.write_bytes(msgspec.json.encode(msgspec.structs.replace(machine, now=NOW, running=True, servers=servers)))
    return file


def test_another_machine_is_planned_for_by_its_devices_and_labels(folder: Path) -> None:
    file = written(folder, Declaration())
    assert told(folder, "--against", file) == [("Start", "near")]
    assert told(folder, "--against", file, "--want", "far") == [("Start", "far"), ("Start", "near")]
    result = plan(folder, "--against", file, "--label", "gpu=a100")
    assert "1 model is for other nodes: far (this one: hostname = gpu-7, gpu = a100)" in result.stderr
    wanted = plan(folder, "--against", file, "--label", "gpu=a100", "--want", "far", code=1)
    assert '"far" is for other nodes: gpu = h200' in wanted.stderr
    unknown = plan(folder, "--against", file, "--want", "nera", code=1)
    assert 'there is no model "nera"; did you mean "near"?' in unknown.stderr


def test_its_servers_are_taken_over_and_make_room_when_they_have_to(folder: Path) -> None:
    write(folder / "manifests", {"near.toml": NEAR.replace("= 100", "= 600")})
    declared = load(read(folder / "manifests"), ForeignEnvironment()).declaration
    file = written(folder, declared, "near")
    assert told(folder, "--against", file) == []
    assert told(folder, "--against", file, "--want", "far") == [("Stop", "near")]
    write(folder / "manifests", {"near.toml": NEAR})
    assert told(folder, "--against", file) == [("Drain", "near")]


def test_what_is_no_snapshot_is_told(folder: Path) -> None:
    file = folder / "wrong.json"
    file.write_text("[]")
    assert "is no snapshot of a machine" in plan(folder, "--against", file, code=1).stderr


def test_the_running_sidecar_plans_for_its_own_machine() -> None:
    for option in (["--against", "x"], ["--label", "a=b"]):
        result = CliRunner().invoke(main, ["plan", *option])
        assert (result.exit_code, "need a DIRECTORY" in result.stderr) == (2, True)


def test_here_a_variable_that_is_not_set_is_a_fault(folder: Path) -> None:
    result = plan(folder, code=1)
    assert "environment variable NOT_SET is not set" in result.stderr
    assert "1 model is for other nodes: far" in result.stderr
    assert "Nothing to do." in result.stdout


def test_a_directory_is_planned_for_without_the_running_sidecar(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--url is about the running sidecar" in plan(folder, "--url", "http://127.0.0.1:1", code=2).stderr
    monkeypatch.setenv("SIDECAR_URL", "http://127.0.0.1:1")
    plan(folder, "--against", written(folder, Declaration()))
