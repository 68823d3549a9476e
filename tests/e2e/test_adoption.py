"""A sidecar that is killed, or told to keep them, leaves its servers running, and the next one goes on with them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.conftest import free_block
from tests.e2e.harness import Sidecar, alive, running, settings, stats, stub, until


@contextmanager
def killed(folder: Path, manifests: dict[str, str]) -> Iterator[Sidecar]:
    """A sidecar that is killed at the end of the block, without a chance to do anything about it."""
    with running(folder, manifests) as sidecar:
        yield sidecar
        sidecar.process.kill()
        sidecar.process.wait()


@pytest.fixture
def manifests(tmp_path: Path) -> dict[str, str]:
    """Two models."""
    base = settings(tmp_path / "state", free_block())
    return {"sidecar.toml": base, "a.toml": stub("a"), "b.toml": stub("b", model="auto_start = true")}


def test_servers_outlive_a_killed_sidecar_and_are_taken_over(tmp_path: Path, manifests: dict[str, str]) -> None:
    with killed(tmp_path, manifests) as sidecar:
        sidecar.ask("a")
        until(lambda: sidecar.state("b") == "ready", "b is up, too")
        before = {name: sidecar.model(name)["server"] for name in "ab"}
    with running(tmp_path, manifests) as sidecar:
        until(lambda: all(sidecar.state(name) == "ready" for name in "ab"), "both serve again")
        after = {name: sidecar.model(name)["server"] for name in "ab"}
        for name in "ab":
            for fact in ("id", "pid", "port", "reserved_mb", "devices"):
                assert after[name][fact] == before[name][fact]
        assert sidecar.ask("a").startswith("a-0")
        assert sidecar.starts("a") == sidecar.starts("b") == 0
        assert sidecar.status()["devices"][0]["reserved_mb"] == 200
        os.kill(after["a"]["pid"], signal.SIGKILL)  # its end is noticed, though it is nobody's child here
        until(lambda: sidecar.state("a") == "Exited", "the end is noticed")
        assert sidecar.ask("a").startswith("a-0")
    assert not alive(after["b"]["pid"])


def test_on_exit_keep_leaves_them_to_the_next_one(tmp_path: Path, manifests: dict[str, str]) -> None:
    keep = manifests | {"sidecar.toml": manifests["sidecar.toml"].replace("[sidecar]", '[sidecar]\non_exit = "keep"')}
    with running(tmp_path, keep) as sidecar:
        sidecar.ask("a")
        pid = sidecar.pid("a")
        assert sidecar.stop() == 0
    assert alive(pid)
    with running(tmp_path, manifests) as sidecar:  # "stop" again
        until(lambda: sidecar.state("a") == "ready", "it is taken over")
        assert sidecar.pid("a") == pid
    assert not alive(pid)


def test_what_is_no_longer_declared_so_is_stopped_and_not_taken_over(tmp_path: Path, manifests: dict[str, str]) -> None:
    with killed(tmp_path, manifests) as sidecar:
        sidecar.ask("a")
        until(lambda: sidecar.state("b") == "ready", "b is up, too")
        changed, removed = sidecar.pid("a"), sidecar.pid("b")
    (tmp_path / "manifests" / "b.toml").unlink()
    rest = {"sidecar.toml": manifests["sidecar.toml"], "a.toml": stub("a", "--chunks", "2")}
    with running(tmp_path, rest) as sidecar:
        assert sidecar.ask("a").split() == ["a-0", "a-1"]
        assert not alive(changed)  # or there would have been two
        until(lambda: not alive(removed), "what is not declared any more is stopped")


@pytest.mark.parametrize("content", [b"", b"{", b'{"version": 99, "boot_id": "", "servers": []}', b"\xff"])
def test_a_journal_that_makes_no_sense_leaves_no_orphans(
    tmp_path: Path, manifests: dict[str, str], content: bytes
) -> None:
    with killed(tmp_path, manifests) as sidecar:
        sidecar.ask("a")
        pid = sidecar.pid("a")
    (tmp_path / "state" / "servers.json").write_bytes(content)
    with running(tmp_path, manifests) as sidecar:
        assert any("cannot be read" in line for line in sidecar.log)
        assert sidecar.ask("a").startswith("a-0")
        assert not alive(pid)


def test_what_a_dead_leader_left_behind_is_stopped(tmp_path: Path, manifests: dict[str, str]) -> None:
    forking = manifests | {"a.toml": stub("a", "--fork-daemon")}
    with killed(tmp_path, forking) as sidecar:
        sidecar.ask("a")
        pids = stats(sidecar.model("a")["server"]["port"])
    os.kill(pids["pid"], signal.SIGKILL)
    (child,) = pids["children"]
    assert alive(child)
    with running(tmp_path, forking) as sidecar:
        assert sidecar.ask("a").startswith("a-0")
        assert not alive(child)


def test_a_process_that_merely_has_the_recorded_number_is_never_touched(
    tmp_path: Path, manifests: dict[str, str]
) -> None:
    with killed(tmp_path, manifests) as sidecar:
        sidecar.ask("a")
        server = sidecar.model("a")["server"]
    os.kill(server["pid"], signal.SIGKILL)
    until(lambda: not alive(server["pid"]), "it is gone")
    journal = tmp_path / "state" / "servers.json"
    journal.write_text(journal.read_text().replace(f'"pid":{server["pid"]}', f'"pid":{os.getpid()}'))
    with running(tmp_path, manifests) as sidecar:
        assert sidecar.ask("a").startswith("a-0")
        assert sidecar.starts("a") == 1


def test_nothing_is_started_that_cannot_be_written_down(tmp_path: Path, manifests: dict[str, str]) -> None:
    without_b = {name: text for name, text in manifests.items() if name != "b.toml"}
    with running(tmp_path, without_b) as sidecar:
        (tmp_path / "state" / "servers.json.new").mkdir()
        with sidecar.http() as http:
            answer = http.post("/v1/chat/completions", json={"model": "a", "messages": []})
        assert answer.json()["error"]["code"] == "state_unwritable"
        (tmp_path / "state" / "servers.json.new").rmdir()
        sidecar.cli("start", "a")
