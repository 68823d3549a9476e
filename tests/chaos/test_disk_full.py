"""The disk that state and logs are on is full to the last byte, and is not any more. Needs a right to mount a tmpfs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.chaos.conftest import SMALL
from tests.chaos.world import Manifests, Traffic, accounted_for, doomed, nothing_left, recorded, servers
from tests.e2e.conftest import free_block
from tests.e2e.harness import Sidecar, alive, llama, running, settings, stub, until

SIZE_MB = 4


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A state directory on a disk of its own."""
    state = tmp_path / "state"
    state.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m,mode=700", "none", str(state)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield state
    subprocess.run(["umount", "--lazy", str(state)], check=True)


@pytest.fixture
def manifests(tmp_path: Path) -> Manifests:
    """A llama.cpp and two stubs, which fit."""
    base = settings(tmp_path / "state", free_block()) + SMALL
    b = stub("b", "--unhealthy-for", "0.5")
    return {"sidecar.toml": base, "a.toml": llama("a", memory_mb=200), "b.toml": b, "c.toml": stub("c")}


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """Not a byte is free."""
    filler = disk / "filler"
    try:
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(b"x" * 4096)
        yield
    finally:
        filler.unlink()


def refused(sidecar: Sidecar, model: str) -> None:
    """A start is refused, and the client and the operator are told why."""
    with sidecar.http() as http:
        answer = http.post("/v1/chat/completions", json={"model": model, "messages": []})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "state_unwritable")
    assert "No space left on device" in answer.json()["error"]["message"]
    assert any("No space left on device" in one["message"] for one in sidecar.model(model)["conditions"])


def start(sidecar: Sidecar, model: str) -> None:
    """Bring a model up by hand, which asks for no patience after a failure."""
    httpx.post(f"{sidecar.url}/-/models/{model}/start", trust_env=False, timeout=30).raise_for_status()


def test_a_full_disk_stops_no_server_and_is_told_to_who_wants_another(
    tmp_path: Path, small_disk: Path, manifests: Manifests
) -> None:
    """It is full while one model serves, another loads and a third is stopped."""
    with running(tmp_path, manifests) as sidecar:
        assert sidecar.ask("a")
        start(sidecar, "c")
        with Traffic(lambda: sidecar.url, "a", "b") as traffic:
            until(lambda: "b" in servers(sidecar), "it has a process")
            before = servers(sidecar)
            with full(small_disk):
                traffic.flows(10)
                sidecar.cli("stop", "c")
                assert not alive(before["c"].pid)
                refused(sidecar, "c")
                traffic.flows(10)
                accounted_for(sidecar)
            start(sidecar, "c")
            traffic.flows(10)
        assert {name: servers(sidecar)[name] for name in "ab"} == {name: before[name] for name in "ab"}
        assert recorded(tmp_path) == servers(sidecar)  # nothing was lost of what is written down
        accounted_for(sidecar)
    nothing_left(tmp_path)


def test_a_sidecar_killed_on_a_full_disk_is_followed_by_one_that_knows_all_servers(
    tmp_path: Path, small_disk: Path, manifests: Manifests
) -> None:
    with doomed(tmp_path, manifests, ["sidecar"]) as sidecar:
        sidecar.wait_until_listening()
        assert sidecar.ask("a")
        assert sidecar.ask("c")
        before = servers(sidecar)
        with full(small_disk):
            httpx.post(f"{sidecar.url}/-/models/c/stop", trust_env=False, timeout=20).raise_for_status()
            assert not alive(before["c"].pid)  # which could not be written down
            sidecar.process.kill()
            sidecar.process.wait()
            with doomed(tmp_path, manifests, ["sidecar"]) as second:
                second.wait_until_listening()
                assert servers(second) == {"a": before["a"]}
                assert second.ask("a")
                refused(second, "b")
                accounted_for(second)
    with running(tmp_path, manifests) as third:
        assert servers(third) == {"a": before["a"]}
        assert third.ask("c")
        assert recorded(tmp_path) == servers(third)
    nothing_left(tmp_path)
