"""A machine as a file."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sidecar.core.nodes import Node
from sidecar.core.observed import ServerState
from sidecar.surfaces import snapshot
from sidecar.surfaces.snapshot import Snapshot, SnapshotError
from tests.core.build import GPU0, NOW, gpu, model, server

MODEL = model(400)
GPUS = (gpu(free=300), gpu("GPU-b", 0, total=0, problem="the driver is gone"))


@cache
def machine() -> Snapshot:
    """One with a sidecar, a server in use, and somebody else on the GPU."""
    found = snapshot.offline(GPUS, Node({"hostname": "gpu-7"}))
    busy = server("m", MODEL, use=400, in_flight=2, ready_s=1)
    return msgspec.structs.replace(found, running=True, now=NOW, servers=(busy,))


def test_what_is_written_is_read_again_and_the_moment_has_passed(tmp_path: Path) -> None:
    file = tmp_path / "devices.json"
    file.write_bytes(msgspec.json.encode(machine()))
    found = snapshot.read(file)
    assert (found, found.name) == (machine(), "gpu-7")
    seen = found.observed()
    assert [(one.id, one.unknown) for one in seen.devices] == [(GPU0, ""), ("GPU-b", "the driver is gone")]
    assert (seen.servers[0].in_flight, seen.servers[0].state) == (0, ServerState.READY)


def test_a_snapshot_may_come_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(msgspec.json.encode(machine()))))
    assert snapshot.read(Path("-")) == machine()


def test_foreign_holders_are_told() -> None:
    told = json.loads(msgspec.json.encode(machine()))["devices"]
    assert [device["foreign_mb"] for device in told] == [700, None]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kind": "other"}, 'expected a table with kind = "sidecar/devices"'),
        ({"version": 2}, "it is of version 2, and sidecar "),
        ({"devices": 1}, "Expected `array`, got `int` - at `$.devices`"),
        ({"devices": [{"device_class": "gpu", "label": "gpu:0", "status": {}}]}, "expected an id for each device"),
        (
            {"devices": [{"device_class": "g", "label": "g:0", "status": {"id": "g", "free_mb": 2, "total_mb": 1}}]},
            "g:0: expected 0 <= free_mb <= total_mb, got 2 of 1",
        ),
    ],
)
def test_what_is_no_snapshot_is_told_with_what_to_do(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    file = tmp_path / "devices.json"
    file.write_text(json.dumps({**json.loads(msgspec.json.encode(machine())), **change}))
    with pytest.raises(SnapshotError) as refused:
        snapshot.read(file)
    assert f"{file}: is no snapshot of a machine: " in str(refused.value)
    assert told in str(refused.value)
    assert "write one with `sidecar devices --json > devices.json`" in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'"text"', b"[" * 100_000])
def test_any_other_file_is_refused_too(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "devices.json"
    file.write_bytes(content)
    with pytest.raises(SnapshotError, match="is no snapshot"):
        snapshot.read(file)
    with pytest.raises(SnapshotError, match="No such file"):
        snapshot.read(tmp_path / "none")


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.json").open("wb") as opened:
        opened.truncate(snapshot.MOST_BYTES + 1)
    with pytest.raises(SnapshotError, match="is larger than 32 MiB"):
        snapshot.read(tmp_path / "huge.json")
