"""The example of a device class: GPUs that a vendor's tool tells of. The tool is real, too, if simple."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from plugin_sdk import PluginError
from plugin_sdk.testing import contract
from tests.e2e.harness import PATIENCE_S, Sidecar, until
from tests.examples import shipped
from tests.examples.copies import problems

FOLDER = shipped.PLUGINS / "my_gpu"
TOOL = FOLDER / "my-gpu-smi"
GPUS: list[dict[str, Any]] = json.loads((FOLDER / "gpus.json").read_text(encoding="utf-8"))["gpus"]
FIRST, SECOND = (gpu["uuid"] for gpu in GPUS)
example = shipped.module("my_gpu")

test_contract = contract(example.MyGpu, config={"command": [str(TOOL), "--json"]})


def probe(*command: str | Path, timeout_s: float = 2) -> Any:
    """What the plugin makes of a command."""
    settings = example.Settings(command=tuple(map(str, command)), timeout=timeout_s)
    return example.MyGpu(settings, name="my_gpu").probe()


def script(root: Path, text: str) -> Path:
    """A tool of another vendor's."""
    tool = root / "tool"
    tool.write_text(f"#!/bin/sh\n{text}\n")
    tool.chmod(0o755)
    return tool


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("echo the bus is gone >&2; exit 3", "failed with exit code 3: the bus is gone"),
        ("exit 4", "failed with exit code 4: it says nothing"),
        ("exec sleep 60", "did not answer within 0.2 s"),
        ("echo 'No devices were found'", "says what cannot be understood"),
        ("""echo '{"gpus": [{"uuid": 7, "index": 0}]}'""", r"cannot be understood: .* - at `\$\.gpus\[0\]\.uuid`"),
    ],
)
def test_a_tool_that_fails_is_told_in_words(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(PluginError, match=told):
        probe(script(tmp_path, text), timeout_s=0.2 if "sleep" in text else PATIENCE_S)


def test_a_tool_that_is_not_there_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"cannot be run \(No such file or directory\): is the driver installed"):
        probe(tmp_path / "nowhere")


def test_a_gpu_that_has_a_fault_or_is_reported_no_more_is_unknown_and_not_gone(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    plugin = example.MyGpu(example.Settings(command=(str(tmp_path / "my-gpu-smi"),)), name="my_gpu")
    assert [gpu.problem for gpu in plugin.probe()] == ["", ""]
    (tmp_path / "gpus.json").write_text(json.dumps({"gpus": [{**GPUS[1], "fault": "fell off the bus"}]}))
    assert {gpu.id: gpu.problem for gpu in plugin.probe()} == {
        SECOND: "fell off the bus",
        FIRST: "the tool no longer reports it",
    }


# --- in a sidecar, on the manifests as they are shipped -------------------------------------------------------------


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    root = tmp_path_factory.mktemp("my_gpu")
    with shipped.started("my_gpu", root, env={"PATH": f"{root / 'manifests'}:{os.environ['PATH']}"}) as found:
        yield found


def devices(sidecar: Sidecar) -> dict[str, dict[str, Any]]:
    """The GPUs as they are after a look at the machine, by their ids."""
    httpx.post(f"{sidecar.url}/-/reload", trust_env=False).raise_for_status()  # else it looks once in a few seconds
    found = [one["status"] for one in sidecar.status()["devices"] if one["device_class"] == "my_gpu"]
    return {one["id"]: one for one in found}


def tell(sidecar: Sidecar, **changes: Any) -> None:
    """Have the tool tell it of both GPUs, and wait until it is known."""
    gpus = [{**gpu, **changes} for gpu in GPUS]
    (sidecar.folder / "manifests" / "gpus.json").write_text(json.dumps({"gpus": gpus}))
    known = [{key: gpu[key] for key in ("free_mb", "temperature_c")} | {"problem": ""} for gpu in gpus]
    until(lambda: [{key: one[key] for key in known[0]} for one in devices(sidecar).values()] == known, "it is known")


def refused(sidecar: Sidecar, model: str) -> dict[str, Any]:
    """The error of who asks for a model that cannot be had."""
    with sidecar.http() as http:
        answer = http.post("/v1/chat/completions", json={"model": model, "messages": []})
    assert answer.status_code == 503
    error: dict[str, Any] = answer.json()["error"]
    return error


def test_the_manifests_are_fine_as_they_are_shipped() -> None:
    assert problems(FOLDER) == ""


def test_each_gpu_is_a_device_with_what_the_tool_tells(sidecar: Sidecar) -> None:
    tell(sidecar, temperature_c=50)
    one = devices(sidecar)[SECOND]
    assert (one["total_mb"], one["free_mb"], one["name"]) == (16384, 8192, "My GPU 16")
    assert (one["utilisation_pct"], one["temperature_c"]) == (97, 50)
    assert one["processes"] == [{"pid": 1, "used_mb": 8192, "name": ""}]


def test_a_server_is_started_on_the_gpu_that_has_room_and_sees_no_other(sidecar: Sidecar) -> None:
    tell(sidecar)
    assert sidecar.ask("owl").startswith("Whoever asks the owl")
    assert sidecar.model("owl")["server"]["reserved_mb"] == {FIRST: 9000}
    environment = Path(f"/proc/{sidecar.pid('owl')}/environ").read_text().split("\0")
    assert f"MY_GPU_VISIBLE_DEVICES={FIRST}" in environment


def test_memory_that_others_hold_is_no_room_and_they_are_named(sidecar: Sidecar) -> None:
    tell(sidecar, free_mb=100, processes=[{"pid": 1, "used_mb": 16284}])
    error = refused(sidecar, "bear")
    assert error["code"] == "insufficient_memory"
    assert "pid 1" in error["message"]
    assert sidecar.state("bear") == "InsufficientMemory"
    assert sidecar.starts("bear") == 0


def test_when_the_tool_dies_nothing_is_started_and_what_runs_goes_on(sidecar: Sidecar) -> None:
    tell(sidecar)
    sidecar.ask("owl")
    pid = sidecar.pid("owl")
    (sidecar.folder / "manifests" / "gpus.json").unlink()
    until(lambda: all("my-gpu-smi failed" in one["problem"] for one in devices(sidecar).values()), "they are unknown")
    assert "my-gpu-smi failed with exit code 1" in refused(sidecar, "bear")["message"]
    assert sidecar.starts("bear") == 0
    assert sidecar.ask("owl").startswith("Whoever asks the owl")
    assert sidecar.pid("owl") == pid
    tell(sidecar)  # and when it is back, so are they
