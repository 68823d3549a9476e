"""What is wrong with the sidecar's own directory, ports and address is found."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from sidecar import __version__
from sidecar.mechanism.lock import StateDir
from sidecar.surfaces.doctor import state
from sidecar.surfaces.doctor.finding import Level, Running
from tests.support import declare, free_port, model
from tests.surfaces.doctor.sick import patient, tree, worst


def test_a_state_directory_that_cannot_be_used_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    well = patient(tmp_path)
    assert worst(state.state_dir, well).message.endswith("and will be made")
    well.state_dir.mkdir(mode=0o700)
    assert worst(state.state_dir, well).level is Level.OK
    well.state_dir.chmod(0o777)
    assert worst(state.state_dir, well).level is Level.WARN
    well.state_dir.rmdir()
    well.state_dir.write_text("")
    assert worst(state.state_dir, well).level is Level.FAIL

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    well.state_dir.unlink()
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    assert "No space left" in worst(state.state_dir, well).message


def test_a_sidecar_that_holds_the_directory_and_does_not_answer_is_told(tmp_path: Path) -> None:
    sick = patient(tmp_path)
    assert worst(state.running, sick).level is Level.OK
    lock = StateDir(sick.state_dir)
    try:
        found = worst(state.running, sick)
    finally:
        lock.close()
    assert (found.level, f"pid {os.getpid()}" in found.message) == (Level.FAIL, True)
    assert worst(state.running, patient(tmp_path, refusal="the admin token is not known")).level is Level.UNKNOWN


@pytest.mark.parametrize(
    ("more", "level"),
    [
        ({}, Level.OK),
        ({"version": "0.0.1"}, Level.WARN),
        ({"errors": 3, "rounds": 9}, Level.WARN),
        ({"problems": ("m.toml:3: no",)}, Level.FAIL),
    ],
)
def test_what_the_running_one_says_of_itself_is_judged(tmp_path: Path, more: dict[str, Any], level: Level) -> None:
    running = Running(**{"version": __version__, "url": "http://127.0.0.1:8080", **more})
    assert worst(state.running, patient(tmp_path, running=running)).level is level


def test_an_address_that_is_taken_is_told_unless_it_is_by_the_sidecar_itself(tmp_path: Path) -> None:
    well = patient(tmp_path)
    assert worst(state.listen, well).level is Level.OK
    with socket.create_server(("127.0.0.1", 0)) as taken:
        loaded = declare(tmp_path / "taken", {"s.toml": f'[sidecar]\nlisten = "127.0.0.1:{taken.getsockname()[1]}"\n'})
        found = worst(state.listen, replace(well, loaded=loaded))
        ours = replace(well, loaded=loaded, running=Running(version="1", url="x"))
        assert (found.level, "Address already in use" in found.message) == (Level.FAIL, True)
        assert worst(state.listen, ours).level is Level.OK


def test_a_range_of_ports_that_is_taken_too_small_or_the_systems_own_is_told(tmp_path: Path) -> None:
    port = free_port()
    sick = patient(tmp_path, model("m"), settings=f'ports = "{port}-{port}"')
    calm = tree(tmp_path / "calm", {})
    with socket.create_server(("127.0.0.1", port)):
        assert worst(state.ports, sick).level is Level.FAIL
    two = patient(tmp_path, model("m"), model("n"), settings=f'ports = "{port}-{port}"', places=calm)
    assert "for 2 models" in worst(state.ports, two).message
    folder = "proc/sys/net/ipv4"
    files = {f"{folder}/ip_local_port_range": "32768 60999", f"{folder}/ip_local_reserved_ports": ""}
    overlap = patient(tmp_path, settings='ports = "41000-41999"', places=tree(tmp_path / "overlap", files))
    assert "overlap" in worst(state.ports, overlap).message
    files[f"{folder}/ip_local_reserved_ports"] = "41000-41999"
    kept = patient(tmp_path, settings='ports = "41000-41999"', places=tree(tmp_path / "kept", files))
    assert worst(state.ports, kept).level is Level.OK


def test_a_collector_that_is_away_and_variables_that_are_wrong_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    well = patient(tmp_path)
    assert worst(state.telemetry, well).message == "nothing is sent anywhere"
    endpoint = f"http://127.0.0.1:{free_port()}"
    told = {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
    away = worst(state.telemetry, replace(well, environment=told))
    assert (away.level, endpoint in away.message) == (Level.WARN, True)
    with socket.create_server(("127.0.0.1", int(endpoint.rpartition(":")[2]))):
        assert worst(state.telemetry, replace(well, environment=told)).level is Level.OK
    assert worst(state.telemetry, replace(well, environment={**told, "OTEL_SDK_DISABLED": "true"})).level is Level.OK
    late = worst(state.telemetry, replace(well, environment={**told, "OTEL_METRICS_EXPORTER": "statsd"}))
    assert (late.level, "OTEL_METRICS_EXPORTER" in late.message) == (Level.FAIL, True)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "jaegr")
    assert worst(state.telemetry, well).level is Level.FAIL
