"""What is wrong with what is declared is found: manifests, plugins, commands, models, servers elsewhere, devices."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from plugin_sdk import DeviceStatus
from sidecar.core.observed import Device
from sidecar.surfaces.doctor import declared
from sidecar.surfaces.doctor.finding import Level, Patient, Running
from tests.servers import HTTP_SERVER
from tests.support import free_port, model, serving
from tests.surfaces.doctor.sick import patient, told, worst

CPU = Device(device_class="cpu", status=DeviceStatus(id="cpu", total_mb=1000, free_mb=900), host_memory=True)


def command(*argv: str) -> str:
    """A model that is started so."""
    return model("m").replace('["serve", "{port}"]', str([*argv, "{port}"]).replace("'", '"'))


def test_manifests_that_are_wrong_or_not_there_are_told(tmp_path: Path) -> None:
    assert worst(declared.manifests, patient(tmp_path, model("m"))).level is Level.OK
    bad = worst(declared.manifests, patient(tmp_path, model("m", 'mod = "x"')))
    assert (bad.level, "0.toml" in bad.message) == (Level.FAIL, True)
    nowhere = Patient(root=tmp_path / "nowhere", environment={}, unread="there is no such directory")
    lost = worst(declared.manifests, nowhere)
    assert (lost.level, "there is no such directory" in lost.message) == (Level.FAIL, True)
    for check in (declared.plugins, declared.commands, declared.upstreams, declared.devices):
        assert worst(check, nowhere).level is Level.UNKNOWN


def test_plugins_that_cannot_be_loaded_or_used_are_told(tmp_path: Path) -> None:
    table = '[plugins.mine]\nimport = "no_such_module:Class"\n'
    assert worst(declared.plugins, patient(tmp_path / "good")).level is Level.OK
    bad = worst(declared.plugins, patient(tmp_path, table))
    assert (bad.level, bad.message.startswith("mine: ")) == (Level.FAIL, True)
    running = Running(version="1", url="x", plugins={"keys": "open: no such file"})
    assert worst(declared.plugins, patient(tmp_path / "good", running=running)).message == "keys: open: no such file"


def test_programs_that_are_missing_or_may_not_be_executed_are_told(tmp_path: Path) -> None:
    assert worst(declared.commands, patient(tmp_path, command("sh"))).level is Level.OK
    missing = worst(declared.commands, patient(tmp_path, command("no-such-engine")))
    assert (missing.level, '"no-such-engine" is not found' in missing.message) == (Level.FAIL, True)
    script = tmp_path / "engine"
    script.write_text("")
    closed = worst(declared.commands, patient(tmp_path, command(str(script))))
    assert (closed.level, "may not be executed" in closed.message) == (Level.FAIL, True)
    cwd = worst(declared.commands, patient(tmp_path, model("m", variant='cwd = "gone"')))
    assert (cwd.level, "does not exist" in cwd.message) == (Level.FAIL, True)


def test_models_that_are_missing_closed_or_larger_than_declared_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = worst(declared.commands, patient(tmp_path, command("sh", "-m", "gone.gguf")))
    assert (missing.level, "gone.gguf does not exist" in missing.message) == (Level.FAIL, True)
    file = tmp_path / "m.gguf"
    file.touch()
    os.truncate(file, 50 * 2**20)
    well = patient(tmp_path, command("sh", "-m", str(file)))
    assert worst(declared.commands, well).level is Level.OK
    os.truncate(file, 150 * 2**20)
    large = worst(declared.commands, well)
    assert (large.level, "150 MB, memory_mb declares 100" in large.message) == (Level.WARN, True)
    monkeypatch.setattr(os, "access", lambda _, mode: mode != os.R_OK)  # root may read everything
    assert worst(declared.commands, well).level is Level.FAIL


def test_servers_elsewhere_that_do_not_answer_are_told(tmp_path: Path) -> None:
    def elsewhere(url: str) -> Patient:
        return patient(tmp_path, f'[models.m]\nmode = "chat"\nvariants = [{{ url = "{url}" }}]\n')

    assert worst(declared.upstreams, patient(tmp_path / "none")).level is Level.OK
    away = worst(declared.upstreams, elsewhere(f"http://127.0.0.1:{free_port()}"))
    assert (away.level, "does not answer" in away.message) == (Level.FAIL, True)
    assert worst(declared.upstreams, elsewhere(f"unix:{tmp_path}/no.sock")).level is Level.FAIL
    with serving(HTTP_SERVER) as program:
        assert told(declared.upstreams, elsewhere(program.url))[0][0] == "ok"


def test_devices_that_cannot_be_read_and_models_that_fit_none_are_told(tmp_path: Path) -> None:
    assert worst(declared.devices, patient(tmp_path, model("m"))).level is Level.UNKNOWN
    assert worst(declared.devices, patient(tmp_path, model("m"), devices=(CPU,))).level is Level.OK
    large = worst(declared.devices, patient(tmp_path, model("m").replace("100", "5000"), devices=(CPU,)))
    assert (large.level, large.message.startswith("m does not fit now")) == (Level.WARN, True)
    lost = msgspec.structs.replace(CPU, status=DeviceStatus(id="cpu", problem="it is lost"))
    assert worst(declared.devices, patient(tmp_path, devices=(lost,))).level is Level.FAIL
