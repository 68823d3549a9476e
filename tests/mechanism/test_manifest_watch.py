"""A change of the manifests, however it is made, is told at once; nothing else is."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import shutil
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import NoReturn

import pytest
import pytest_asyncio

from sidecar.mechanism import manifest_watch, source
from sidecar.mechanism.manifest_watch import AT_MOST_S, GIT_AT_MOST_S, STILL_S, ManifestFolder, due_at, settle
from tests.support import PATIENCE_S, model, until, write

QUIET_S = 0.1  # several times as long as a change takes to be told

Watch = Callable[[Path], Awaitable[ManifestFolder]]


@pytest.fixture(autouse=True)
def _short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_watch, "_STEP_MS", 5)


@pytest_asyncio.fixture
async def watch() -> AsyncIterator[Watch]:
    """Watches a folder, from a moment on at which all that was before has been told."""
    opened: list[ManifestFolder] = []

    async def begin(root: Path) -> ManifestFolder:
        opened.append(folder := ManifestFolder(root))
        folder.open()
        await hears(folder)
        return folder

    yield begin
    for folder in opened:
        await folder.close()


async def hears(folder: ManifestFolder) -> None:
    assert await folder.wait(PATIENCE_S), "no change was told"


async def hears_out(folder: ManifestFolder) -> None:
    """Hear of a change, and of all that belongs to it, so that what is told later is told of something else."""
    await hears(folder)
    while await folder.wait(QUIET_S):
        pass


async def hears_nothing(folder: ManifestFolder) -> None:
    assert not await folder.wait(QUIET_S), "a change was told where there was none"


def switch(link: Path, target: str) -> None:
    """Point a link elsewhere in one step, as git-sync and the kubelet do."""
    draft = link.with_name(".switch")
    draft.symlink_to(target)
    draft.replace(link)


def git(folder: Path, *args: str) -> None:
    setup = ("-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "init.defaultBranch=main")
    subprocess.run(("git", *setup, *args), cwd=folder, check=True, capture_output=True)


# --- plain folders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["edit", "append", "rename", "add", "remove", "touch"])
async def test_a_change_of_a_file_is_told(tmp_path: Path, watch: Watch, change: str) -> None:
    file = write(tmp_path, {"models/a.toml": "x = 1", "models/.draft": "x = 2"}) / "models" / "a.toml"
    folder = await watch(tmp_path)
    if change == "edit":
        file.write_text("x = 2")
    elif change == "append":
        with file.open("a") as more:
            more.write("y = 1")
    elif change == "rename":  # as editors save
        file.with_name(".draft").replace(file)
    elif change == "add":
        file.with_name("b.toml").write_text("y = 1")
    elif change == "remove":
        file.unlink()
    else:
        file.touch()
    await hears(folder)


async def test_a_change_in_a_folder_that_came_later_is_told(tmp_path: Path, watch: Watch) -> None:
    folder = await watch(tmp_path)
    write(tmp_path, {"new/deep/a.toml": "x = 1"})
    await hears_out(folder)
    write(tmp_path, {"new/deep/a.toml": "x = 2"})
    await hears(folder)


@pytest.mark.parametrize("change", ["remove", "rename", "replace"])
async def test_a_change_of_a_folder_is_told_and_what_is_in_it_then_too(
    tmp_path: Path, watch: Watch, change: str
) -> None:
    write(tmp_path, {"models/a.toml": "x = 1", ".next/a.toml": "x = 2"})
    folder = await watch(tmp_path)
    if change == "remove":
        shutil.rmtree(tmp_path / "models")
    else:
        (tmp_path / "models").rename(tmp_path / "old")
    if change == "replace":
        (tmp_path / ".next").rename(tmp_path / "models")
    await hears_out(folder)
    write(tmp_path, {("old" if change == "rename" else "models") + "/a.toml": "x = 3"})
    await hears(folder)


async def test_a_folder_that_was_renamed_there_and_back_is_still_watched(tmp_path: Path, watch: Watch) -> None:
    write(tmp_path, {"models/a.toml": "x = 1"})
    folder = await watch(tmp_path)
    (tmp_path / "models").rename(tmp_path / "other")
    (tmp_path / "other").rename(tmp_path / "models")
    await hears_out(folder)
    write(tmp_path, {"models/a.toml": "x = 2"})
    await hears(folder)


async def test_what_is_no_manifest_wakes_nobody(tmp_path: Path, watch: Watch) -> None:
    write(tmp_path, {"a.toml": "", "state/journal.json": "", "state/logs/a.log": "", "plugins/acme.py": ""})
    git(tmp_path, "init")
    folder = await watch(tmp_path)
    others = (".a.toml.swp", ".git/objects/x.toml", "README.md", "notes.py", "state/logs/a.log", "state/journal.json")
    write(tmp_path, dict.fromkeys(others, "changed"))
    write(tmp_path, dict.fromkeys(("plugins/data.toml", "plugins/__pycache__/acme.py", "..data/a.toml"), "changed"))
    source.read(tmp_path)
    git(tmp_path, "add", ".")
    await hears_nothing(folder)


async def test_plugins_beside_the_manifests_count_also_when_they_come_later(tmp_path: Path, watch: Watch) -> None:
    folder = await watch(tmp_path)
    write(tmp_path, {"plugins/acme/keys.py": "x = 1"})
    await hears_out(folder)
    write(tmp_path, {"plugins/acme/keys.py": "x = 2"})
    await hears(folder)


# --- links ------------------------------------------------------------------------------------------------------------


async def test_a_root_that_is_a_link_may_be_switched_as_git_sync_does(tmp_path: Path, watch: Watch) -> None:
    write(tmp_path, {".worktrees/1/manifests/a.toml": "x = 1", ".worktrees/2/manifests/a.toml": "x = 2"})
    switch(tmp_path / "current", ".worktrees/1")
    folder = await watch(tmp_path / "current" / "manifests")
    switch(tmp_path / "current", ".worktrees/2")
    await hears_out(folder)
    write(tmp_path, {".worktrees/1/manifests/a.toml": "x = 3"})  # is nobody's now
    await hears_nothing(folder)
    write(tmp_path, {".worktrees/2/manifests/a.toml": "x = 3"})
    await hears(folder)


async def test_a_config_map_may_be_switched_as_kubernetes_does(tmp_path: Path, watch: Watch) -> None:
    for number in (1, 2, 3):
        write(tmp_path, {f"..2026_{number}/a.toml": f"x = {number}"})
    (tmp_path / "..data").symlink_to("..2026_1")
    (tmp_path / "a.toml").symlink_to("..data/a.toml")
    folder = await watch(tmp_path)
    for number in (2, 3):
        switch(tmp_path / "..data", f"..2026_{number}")
        await hears_out(folder)
        shutil.rmtree(tmp_path / f"..2026_{number - 1}")
        assert source.read(tmp_path).files == (("a.toml", f"x = {number}".encode()),)


async def test_linked_folders_are_watched_where_they_are(tmp_path: Path, watch: Watch) -> None:
    write(tmp_path, {"root/own.toml": "", "shared/1/deep/a.toml": "x = 1", "shared/2/deep/a.toml": "x = 2"})
    (tmp_path / "shared" / "team").symlink_to("1")
    (tmp_path / "root" / "models").symlink_to(tmp_path / "shared" / "team")
    folder = await watch(tmp_path / "root")
    write(tmp_path, {"shared/1/deep/a.toml": "x = 3"})
    await hears_out(folder)
    switch(tmp_path / "shared" / "team", "2")
    await hears_out(folder)
    write(tmp_path, {"shared/2/deep/a.toml": "x = 4"})
    await hears(folder)


async def test_a_linked_file_is_watched_where_it_is_and_its_neighbours_are_not(tmp_path: Path, watch: Watch) -> None:
    write(tmp_path, {"root/own.toml": "", "home/a.toml": "x = 1", "home/other.toml": ""})
    (tmp_path / "root" / "a.toml").symlink_to("../home/a.toml")
    folder = await watch(tmp_path / "root")
    write(tmp_path, {"home/other.toml": "changed"})
    await hears_nothing(folder)
    write(tmp_path, {"home/a.toml": "x = 2"})
    await hears(folder)


async def test_links_in_circles_and_into_nothing_are_endured(tmp_path: Path, watch: Watch) -> None:
    write(tmp_path, {"root/a.toml": ""})
    (tmp_path / "root" / "loop.toml").symlink_to("loop.toml")
    (tmp_path / "root" / "again").symlink_to(".")
    (tmp_path / "root" / "later").symlink_to("../mounted")
    folder = await watch(tmp_path / "root")
    write(tmp_path, {"mounted/b.toml": "x = 1"})
    await hears_out(folder)
    write(tmp_path, {"mounted/b.toml": "x = 2"})
    await hears(folder)


async def test_a_root_may_go_away_and_come_back(tmp_path: Path, watch: Watch) -> None:
    root = write(tmp_path / "etc" / "manifests", {"a.toml": ""})
    folder = await watch(root)
    shutil.rmtree(root)
    await hears_out(folder)
    shutil.rmtree(root.parent)
    write(root, {"a.toml": "x = 1"})
    await hears_out(folder)
    write(root, {"a.toml": "x = 2"})
    await hears(folder)


# --- many changes -----------------------------------------------------------------------------------------------------


async def test_a_checkout_of_many_manifests_is_read_whole(tmp_path: Path, watch: Watch) -> None:
    one, two = ({f"models/{name}{i}.toml": model(f"{name}{i}") for i in range(50)} for name in ("old", "new"))
    git(write(tmp_path, one), "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "one")
    git(tmp_path, "checkout", "-b", "two")
    git(tmp_path, "rm", "-q", "models/*")
    git(write(tmp_path, two), "add", ".")
    git(tmp_path, "commit", "-m", "two")
    folder = await watch(tmp_path)
    for branch, files in (("main", one), ("two", two)):
        checkout = asyncio.create_task(asyncio.to_thread(git, tmp_path, "checkout", branch))
        assert await folder.settled(PATIENCE_S)
        assert {name for name, _ in source.read(tmp_path).files} == files.keys()
        await checkout
        while await folder.wait(QUIET_S):
            pass


async def test_a_slow_checkout_is_waited_for_beyond_the_time_for_edits(
    tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_watch, "AT_MOST_S", 0.2)
    git(write(tmp_path, {"a.toml": "", ".gitattributes": "*.toml filter=slow"}), "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "one")
    git(tmp_path, "checkout", "-b", "two")
    git(write(tmp_path, {"b.toml": "", "c.toml": "", "d.toml": ""}), "add", ".")
    git(tmp_path, "commit", "-m", "two")
    git(tmp_path, "checkout", "main")
    git(tmp_path, "config", "filter.slow.smudge", "sleep 0.3; cat")
    folder = await watch(tmp_path)
    checkout = asyncio.create_task(asyncio.to_thread(git, tmp_path, "checkout", "two"))
    assert await folder.settled(PATIENCE_S)
    assert [name for name, _ in source.read(tmp_path).files] == ["a.toml", "b.toml", "c.toml", "d.toml"]
    await checkout


async def test_a_burst_of_edits_is_read_now_and_then_and_the_last_one_counts(tmp_path: Path, watch: Watch) -> None:
    folder = await watch(write(tmp_path, {f"{i}.toml": "x = 0" for i in range(20)}))

    def edit() -> None:
        for number in range(500):
            (tmp_path / f"{number % 20}.toml").write_text(f"x = {number}")

    edits = asyncio.create_task(asyncio.to_thread(edit))
    times = 0
    while await folder.settled(1.0):
        times += 1
        last = await asyncio.to_thread(source.read, tmp_path)
    await edits
    assert 1 <= times < 50  # once or twice, unless the machine is very busy
    assert dict(last.files)["19.toml"] == b"x = 499"


async def test_a_file_that_is_empty_while_a_shell_fills_it_is_read_full(tmp_path: Path, watch: Watch) -> None:
    folder = await watch(write(tmp_path, {"a.toml": "x = 1"}))
    shell = await asyncio.create_subprocess_shell("(sleep 0.05; echo x = 2) > a.toml", cwd=tmp_path)
    assert await folder.settled(PATIENCE_S)
    assert source.read(tmp_path).files == (("a.toml", b"x = 2\n"),)
    assert await shell.wait() == 0


# --- when to read -----------------------------------------------------------------------------------------------------


class Script:
    """Changes at set moments on a clock of its own, and a git that is at work until some moment."""

    def __init__(self, *changes: float, git_until: float = 0.0) -> None:
        self.now = 0.0
        self.changes = list(changes)
        self.git_until = git_until

    async def wait(self, timeout_s: float) -> bool:
        end = self.now + timeout_s
        if self.changes and self.changes[0] <= end:
            self.now = max(self.now, self.changes.pop(0))
            return True
        self.now = end
        return False

    async def is_git_at_work(self) -> bool:
        return self.now < self.git_until

    async def settle(self, timeout_s: float = 10.0) -> bool:
        return await settle(self.wait, self.is_git_at_work, lambda: self.now, timeout_s)


async def test_a_single_change_is_read_once_it_has_held_still() -> None:
    script = Script(1.0)
    assert await script.settle()
    assert script.now == pytest.approx(1.0 + STILL_S)


async def test_each_further_change_is_waited_for() -> None:
    script = Script(1.0, 1.1, 1.25)
    assert await script.settle()
    assert script.now == pytest.approx(1.25 + STILL_S)


async def test_a_source_that_never_holds_still_is_read_all_the_same() -> None:
    script = Script(*(0.1 * number for number in range(1, 200)))
    reads = []
    for _ in range(3):
        assert await script.settle()
        reads.append(script.now)
    for earlier, later in itertools.pairwise(reads):
        assert later - earlier == pytest.approx(AT_MOST_S, abs=0.11)  # a change comes every 0.1 s


async def test_no_change_is_no_reason_to_read() -> None:
    script = Script()
    assert not await script.settle(10.0)
    assert script.now == 10.0


async def test_a_checkout_at_work_is_waited_for_but_a_lock_left_behind_is_not() -> None:
    script = Script(1.0, git_until=9.0)
    assert await script.settle()
    assert 9.0 <= script.now <= 9.0 + STILL_S
    script = Script(1.0, git_until=float("inf"))
    assert await script.settle()
    assert script.now == pytest.approx(1.0 + GIT_AT_MOST_S, abs=STILL_S)


def test_stillness_and_patience_bound_the_moment_to_read() -> None:
    assert due_at(5.0, 5.0) == 5.0 + STILL_S
    assert due_at(5.0, 5.0 + AT_MOST_S) == 5.0 + AT_MOST_S


# --- faults and resources ---------------------------------------------------------------------------------------------


async def test_without_notifications_the_wait_runs_out_and_it_is_said_once(
    tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError("OS file watch limit reached.")

    monkeypatch.setattr(manifest_watch, "RETRY_S", 0.01)
    exhausted = pytest.MonkeyPatch()
    exhausted.setattr(manifest_watch, "RustNotify", refuse)
    folder = ManifestFolder(write(tmp_path, {"a.toml": ""}))
    folder.open()
    try:
        with caplog.at_level(logging.WARNING):
            write(tmp_path, {"a.toml": "x = 1"})
            await hears_nothing(folder)
        assert [record.message for record in caplog.records] == [
            f"{tmp_path} cannot be watched, only looked at now and then: OS file watch limit reached."
        ]
        exhausted.undo()
        await hears(folder)
    finally:
        exhausted.undo()
        await folder.close()


async def test_a_name_that_is_not_utf8_does_not_end_the_watch(
    tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_watch, "RETRY_S", 0.01)
    folder = await watch(write(tmp_path, {"a.toml": ""}))
    write(tmp_path, {os.fsdecode(b"\xff.toml"): ""})
    await hears_out(folder)
    write(tmp_path, {"a.toml": "x = 1"})
    await hears(folder)


async def test_a_nudge_ends_the_wait_and_a_cancelled_wait_loses_nothing(tmp_path: Path, watch: Watch) -> None:
    folder = await watch(tmp_path)
    waiting = asyncio.create_task(folder.wait(PATIENCE_S))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    folder.nudge()
    assert await folder.wait(PATIENCE_S)


async def test_nothing_is_left_after_close(tmp_path: Path) -> None:
    def notifiers() -> list[str]:
        return [name for task in Path("/proc/self/task").glob("*/comm") if "notify" in (name := task.read_text())]

    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async def cycle(wait_s: float) -> None:
        folder = ManifestFolder(tmp_path)
        folder.open()
        await folder.wait(wait_s)
        await folder.close()

    write(tmp_path, {"models/a.toml": ""})
    await until(lambda: not notifiers(), "those of earlier tests are gone")
    before = open_files()
    for wait_s in (PATIENCE_S, 0.0) * 5:  # closed while it watches, and while it is about to
        await asyncio.gather(*(cycle(wait_s) for _ in range(20)))
    await until(lambda: not notifiers(), "their threads end")
    assert open_files() == before
    assert "manifest watch" not in {thread.name for thread in threading.enumerate()}
