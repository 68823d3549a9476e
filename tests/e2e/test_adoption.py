"""A sidecar that is killed, or told to keep them, leaves its servers running, and the next one goes on with them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.e2e.conftest import free_block
from tests.e2e.harness import KEY_HASH, Sidecar, alive, cli, running, settings, stats, stub, until, write


def soaked(*values: Any) -> list[Any]:
    """More of the same, for those who have the time."""
    return [pytest.param(value, marks=pytest.mark.soak) for value in values]


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


@pytest.mark.parametrize("content", [b"{", b'{"version": 99, "boot_id": "", "servers": []}', *soaked(b"", b"\xff")])
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


# --- a bad manifest at the start ----------------------------------------------------------------------------------


def restart(folder: Path, manifests: dict[str, str], change: dict[str, str | None]) -> AbstractContextManager[Sidecar]:
    """A sidecar on the manifests as they are after the change; None removes a file."""
    for name in change:
        (folder / "manifests" / name).unlink(missing_ok=True)
    changed = {**manifests, **change}
    return running(folder, {name: text for name, text in changed.items() if text is not None})


@pytest.mark.parametrize(
    "text",
    [
        stub("a").replace("memory_mb", "memroy_mb"),
        "",
        *soaked("this is no toml", stub("a").replace("[models.a]", "[model.a]")),
    ],
    ids=["typo", "empty", "no toml", "misspelt section"],
)
def test_a_manifest_that_is_bad_at_a_restart_keeps_its_server(
    tmp_path: Path, manifests: dict[str, str], text: str
) -> None:
    with killed(tmp_path, manifests) as sidecar:
        sidecar.ask("a")
        until(lambda: sidecar.state("b") == "ready", "b is up, too")
        before = {name: sidecar.model(name)["server"] for name in "ab"}
    for _ in range(2):  # the second one knows it from the first, which had it from the one that started it
        with killed(tmp_path, manifests | {"a.toml": text}) as sidecar:
            until(lambda: all(sidecar.state(name) == "ready" for name in "ab"), "both serve again")
            for name in "ab":
                for fact in ("id", "pid", "port", "reserved_mb"):
                    assert sidecar.model(name)["server"][fact] == before[name][fact]
            assert sidecar.status()["kept"] == ["a"]
            assert any("a.toml" in problem for problem in sidecar.status()["problems"])
            assert sidecar.ask("a").startswith("a-0")
            assert sidecar.starts("a") == sidecar.starts("b") == 0
    with running(tmp_path, manifests | {"a.toml": stub("a", "--chunks", "2")}) as sidecar:
        assert sidecar.ask("a").split() == ["a-0", "a-1"]  # mended, it is what it says now
        assert sidecar.status()["kept"] == []


@pytest.mark.parametrize("empty", [False, True], ids=["emptied by mistake", "allow_empty"])
def test_a_restart_on_settings_alone_removes_models_only_where_that_is_allowed(
    tmp_path: Path, manifests: dict[str, str], empty: bool
) -> None:
    with killed(tmp_path, manifests) as sidecar:
        sidecar.ask("a")
        pid = sidecar.pid("a")
    base = manifests["sidecar.toml"]
    if empty:
        base = base.replace("[sidecar]", "[sidecar]\nallow_empty = true")
    with restart(tmp_path, manifests, {"sidecar.toml": base, "a.toml": None, "b.toml": None}) as sidecar:
        if empty:
            until(lambda: not alive(pid), "it is stopped")
            assert sidecar.status()["models"] == []
        else:
            assert sidecar.ask("a").startswith("a-0")
            assert sidecar.pid("a") == pid
            status = sidecar.status()
            assert status["attempted"] != status["applied"]
            assert any("declares no model any more" in problem for problem in status["problems"])


def test_a_restart_on_a_directory_that_is_not_mounted_yet_keeps_servers_and_settings(
    tmp_path: Path, manifests: dict[str, str]
) -> None:
    home = {"HOME": str(tmp_path / "home")}
    base = manifests["sidecar.toml"].replace(f'state_dir = "{tmp_path / "state"}"\n', "")
    with running(tmp_path, manifests | {"sidecar.toml": base}, home) as sidecar:
        sidecar.ask("a")
        pid = sidecar.pid("a")
        sidecar.process.kill()
        sidecar.process.wait()
    for name in manifests:
        (tmp_path / "manifests" / name).unlink()
    with running(tmp_path, {}, home) as sidecar:
        assert sidecar.ask("a").startswith("a-0")
        assert sidecar.pid("a") == pid
        with sidecar.client("sk-wrong") as client, pytest.raises(openai.AuthenticationError):
            client.models.list()
        assert any("there is no [sidecar] any more" in problem for problem in sidecar.status()["problems"])


def test_a_file_that_was_deleted_before_the_restart_removes_its_model(
    tmp_path: Path, manifests: dict[str, str]
) -> None:
    with killed(tmp_path, manifests) as sidecar:
        sidecar.ask("a")
        until(lambda: sidecar.state("b") == "ready", "b is up, too")
        kept, removed = sidecar.pid("a"), sidecar.pid("b")
    with restart(tmp_path, manifests, {"b.toml": None}) as sidecar:
        until(lambda: not alive(removed), "what is not declared any more is stopped")
        assert [model["name"] for model in sidecar.status()["models"]] == ["a"]
        assert sidecar.pid("a") == kept
        assert sidecar.status()["problems"] == []


def test_a_plugin_that_is_faulty_at_a_restart_keeps_its_last_good_form(
    tmp_path: Path, manifests: dict[str, str]
) -> None:
    own = f"""
[plugins.mine]
import = "sidecar.builtin.keys:StaticKeys"
config = {{ keys = {{ "sha256:{KEY_HASH}" = "me" }} }}
"""
    mine = manifests | {"plugins.toml": own, "a.toml": stub("a", model='chain = ["mine"]')}
    with killed(tmp_path, mine) as sidecar:
        sidecar.ask("a")
        pid = sidecar.pid("a")
    for text in (own.replace("sha256:", "md5:"), own.replace("StaticKeys", "NoSuchKeys"), "[plugins"):
        with killed(tmp_path, mine | {"plugins.toml": text}) as sidecar:
            assert sidecar.ask("a").startswith("a-0")
            assert sidecar.pid("a") == pid
            with sidecar.client("sk-wrong") as client, pytest.raises(openai.AuthenticationError):
                client.chat.completions.create(model="a", messages=[])
            assert any("plugins.toml" in problem for problem in sidecar.status()["problems"])
    with running(tmp_path, mine) as sidecar:
        assert sidecar.status()["problems"] == []


def test_faulty_settings_start_nothing_and_stop_nothing(tmp_path: Path, manifests: dict[str, str]) -> None:
    with killed(tmp_path, manifests) as sidecar:
        sidecar.ask("a")
        pid = sidecar.pid("a")
    write(tmp_path / "manifests" / "sidecar.toml", manifests["sidecar.toml"].replace("listen", "listn"))
    refused = cli("run", str(tmp_path / "manifests"), check=False)
    assert refused.returncode == 1
    assert "[sidecar] is faulty" in refused.stderr
    assert alive(pid)
    with running(tmp_path, manifests) as sidecar:
        assert sidecar.pid("a") == pid


def test_what_another_directory_had_in_force_is_nothing_to_fall_back_on(
    tmp_path: Path, manifests: dict[str, str]
) -> None:
    with killed(tmp_path, manifests) as sidecar:
        sidecar.ask("a")
        pid = sidecar.pid("a")
    with running(tmp_path / "other", manifests | {"a.toml": "["}) as sidecar:
        until(lambda: not alive(pid), "it is stopped")
        assert [model["name"] for model in sidecar.status()["models"]] == ["b"]


@pytest.mark.parametrize(
    "content", [b"{", b'{"version": 99, "root": "", "revision": "", "files": {}}', *soaked(b"", b"\xff")]
)
def test_notes_that_make_no_sense_are_put_aside_and_good_manifests_count(
    tmp_path: Path, manifests: dict[str, str], content: bytes
) -> None:
    with killed(tmp_path, manifests) as sidecar:
        sidecar.ask("a")
        pid = sidecar.pid("a")
    (tmp_path / "state" / "applied.json").write_bytes(content)
    with running(tmp_path, manifests) as sidecar:
        assert any("cannot be read" in line for line in sidecar.log)
        assert sidecar.pid("a") == pid
    assert (tmp_path / "state" / "applied.json.unreadable").read_bytes() == content
