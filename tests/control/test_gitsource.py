"""When a repository is asked and what becomes of its commits, with a real one and a controller's part played here."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from plugin_sdk import Duration
from sidecar.control.clock import Clock
from sidecar.control.events import Events
from sidecar.control.gitsource import GitSource, SuspendedError
from sidecar.control.revisions import take_over
from sidecar.core.manifest import Declaration
from sidecar.core.sourcing import GitDeclaration
from sidecar.mechanism.git import Git
from sidecar.mechanism.loader import Loaded, load
from sidecar.mechanism.source import RejectedError, SourceError
from tests.repository import Repository, allow, shim, ssh_key
from tests.support import model, until


class Follower:
    """A source, and what a controller does with it. rejected: what it was told."""

    def __init__(self, folder: Path, repository: Repository, path: str = "", **keys: object) -> None:
        declared = GitDeclaration(git=str(repository.bare), **({"interval": Duration(0)} | keys))  # type: ignore[arg-type] # of any type
        environment = os.environ | ({"PATH": path} if path else {})
        self.source = GitSource(
            declared, folder, Git(declared, environment), lambda one, before, library: load(one, {}, before, library)
        )
        self.events = Events(Clock())
        self.before: Declaration | None = None
        self.loaded: Loaded | None = None
        self.rejected: list[str] = []

    async def refresh(self, *, anew: bool = False) -> None:
        """As Controller.refresh."""
        assert self.before is not None
        try:
            loaded = await self.source.read(self.before, anew=anew)
        except RejectedError as error:
            self.rejected += map(str, error.problems)
        except SourceError as error:
            self.rejected.append(str(error))
        else:
            if loaded is not None:
                self.loaded = loaded
                self.before, _ = take_over(self.before, loaded)

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[Follower]:
        """Begin, and end."""
        await self.source.first()
        self.before = Declaration()
        self.source._reread = True  # as the controller reads what `first` has found
        await self.refresh()
        self.source.open(self.events, self.refresh)
        try:
            yield self
        finally:
            await self.source.close()

    @property
    def models(self) -> list[str]:
        """In force."""
        return list(self.before.models) if self.before else []

    @property
    def outcomes(self) -> list[tuple[str, str, int]]:
        """What came of which trigger, and how often."""
        return [(one.trigger, one.outcome, one.count) for one in self.source.memory.history]

    def told(self) -> list[str]:
        """The types of the events."""
        return [event.type for event in self.events.newest(100)]


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    repository = Repository(tmp_path / "theirs")
    repository.push({"a.toml": model("a")}, "Begin")
    return repository


async def test_a_commit_is_found_within_the_interval_and_a_nudge_finds_it_sooner(
    tmp_path: Path, repository: Repository
) -> None:
    async with Follower(tmp_path / "ours", repository, interval=Duration(1)).followed() as mine:
        repository.push({"b.toml": model("b")}, "Two")
        await until(lambda: mine.models == ["a", "b"], "it is found")
    assert mine.outcomes[-1] == ("interval", "applied", 1)
    async with Follower(tmp_path / "ours", repository).followed() as mine:
        await until(lambda: mine.source.report().answered_at is not None, "it has asked when it began")
        repository.push({"c.toml": model("c")}, "Three")
        for _ in range(50):
            mine.source.nudge("webhook")
        await until(lambda: mine.models == ["a", "b", "c"], "it is found")
        assert mine.outcomes[-1] == ("webhook", "applied", 1)
        assert mine.source.report().next_at is None


async def test_a_rejected_commit_is_looked_at_again_when_somebody_asks_and_an_older_one_ends_it(
    tmp_path: Path, repository: Repository
) -> None:
    first = repository.head()
    async with Follower(tmp_path / "ours", repository).followed() as mine:
        repository.push({"a.toml": model("a", "priority = 'high'")}, "Bad")
        await mine.source.sync("interval")
        await mine.source.sync("interval")
        assert mine.outcomes[-1] == ("interval", "rejected", 1)
        await mine.source.sync("command")
        assert mine.outcomes[-1] == ("command", "rejected", 2)
        assert mine.rejected[0].startswith("a.toml:4: models.a.priority: expected int")
        repository.back_to(first)
        repository.git("push", "--quiet", "--force", "origin", "HEAD:main")
        await mine.source.sync("interval")
        report = mine.source.report()
        assert (report.state, report.commit, report.messages) == ("in sync", first, ())


async def test_parts_of_a_commit_are_taken_if_that_is_wanted(tmp_path: Path, repository: Repository) -> None:
    async with Follower(tmp_path / "ours", repository, accept="parts").followed() as mine:
        commit = repository.push({"a.toml": "no toml", "b.toml": model("b")}, "Half of it is good")
        await mine.source.sync("interval")
        assert mine.models == ["a", "b"]
        report = mine.source.report()
        assert (report.state, report.commit) == ("in sync", commit)
        assert report.messages[0].startswith("a.toml:1: is not TOML")
        repository.push({"a.toml": None, "b.toml": None}, "Emptied")
        await mine.source.sync("interval")
        assert mine.models == ["a", "b"]


async def test_plugins_are_tried_with_the_commit_that_brings_them(tmp_path: Path, repository: Repository) -> None:
    head = "from plugin_sdk import DeviceStatus, device\n\n\n"
    plugin = head + "@device('x')\ndef x():\n    return DeviceStatus(total_mb={})\n"
    uses = model("a").replace('"cpu"', '"x"')
    repository.push({"a.toml": uses, "plugins/x.py": plugin.format(1)}, "A device")
    async with Follower(tmp_path / "ours", repository).followed() as mine:
        assert mine.loaded is not None
        before = mine.loaded.catalog.loaded["x"]
        repository.push({"plugins/x.py": plugin.format("(")}, "It does not parse")
        await mine.source.sync("interval")
        assert any(problem.startswith("plugins/x.py:6: ") for problem in mine.rejected), mine.rejected
        assert mine.loaded.catalog.loaded["x"] is before
        repository.push({"plugins/x.py": plugin.format(2)}, "It does")
        await mine.source.sync("interval")
        assert mine.source.report().state == "in sync"
        assert mine.loaded.catalog.loaded["x"].cls is not before.cls


async def test_a_commit_in_force_that_nobody_trusts_any_more_is_told_and_serves_on(
    tmp_path: Path, repository: Repository
) -> None:
    async with Follower(tmp_path / "ours", repository).followed():
        pass
    key = ssh_key(tmp_path / "key")
    signers = str(allow(tmp_path / "signers", key))
    async with Follower(tmp_path / "ours", repository, verify="signed", allowed_signers=signers).followed() as mine:
        await until(lambda: mine.source.report().state == "rejected", "it is told")
        assert "is not signed by anybody who is trusted here" in mine.source.report().messages[0]
        assert mine.models == ["a"]
        repository.push({"b.toml": model("b")}, "Signed", key=key)
        await mine.source.sync("interval")
        assert (mine.models, mine.source.report().state) == (["a", "b"], "in sync")


async def test_manifests_in_git_lfs_are_told_as_such(tmp_path: Path, repository: Repository) -> None:
    async with Follower(tmp_path / "ours", repository).followed() as mine:
        pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12\n"
        repository.push({"b.toml": pointer}, "By LFS")
        await mine.source.sync("interval")
        assert mine.rejected == ["b.toml:1: is kept in git LFS, which is not fetched"]


async def test_a_pin_and_a_suspension_outlive_the_sidecar(tmp_path: Path, repository: Repository) -> None:
    first = repository.head()
    repository.push({"b.toml": model("b")}, "Two")
    async with Follower(tmp_path / "ours", repository).followed() as mine:
        await mine.source.pin(first[:9])
        assert mine.models == ["a"]
    async with Follower(tmp_path / "ours", repository).followed() as mine:
        await mine.source.sync("interval")
        assert (mine.models, mine.source.report().state) == (["a"], "pinned")
        assert await mine.source.suspend(suspended=True)
        assert not await mine.source.suspend(suspended=True)
        assert await mine.source.unpin()
    async with Follower(tmp_path / "ours", repository, interval=Duration(1)).followed() as mine:
        with pytest.raises(SuspendedError):
            await mine.source.sync("command")
        assert mine.models == ["a"]
        assert await mine.source.suspend(suspended=False)
        assert mine.models == ["a", "b"]
        assert not await mine.source.unpin()
    assert {"SourceResumed", "CommitApplied"} <= set(mine.told())


async def test_a_pin_that_is_refused_leaves_all_as_it_was(tmp_path: Path, repository: Repository) -> None:
    bad = repository.push({"a.toml": "no toml"}, "Bad")
    good = repository.push({"a.toml": model("a"), "b.toml": model("b")}, "Good")
    async with Follower(tmp_path / "ours", repository).followed() as mine:
        with pytest.raises(RejectedError, match=r"is not taken: a.toml:1: is not TOML"):
            await mine.source.pin(bad)
        report = mine.source.report()
        assert (report.state, report.commit, report.pinned) == ("in sync", good, "")
        assert mine.loaded is not None
        assert not mine.loaded.problems
        await mine.source.sync("interval")
        assert mine.outcomes[-1] == ("pin", "rejected", 1)  # and nothing has come after it


async def test_what_somebody_says_holds_at_once_however_slow_git_is(tmp_path: Path, repository: Repository) -> None:
    slow = shim(
        tmp_path / "bin",
        "git",
        f'for one in "$@"; do [ -e {tmp_path}/slow-$one ] && echo > {tmp_path}/runs'
        f' && while [ -e {tmp_path}/slow-$one ]; do sleep 0.02; done; done; exec $REAL "$@"',
    )
    first = repository.head()
    async with Follower(tmp_path / "ours", repository, slow).followed() as mine:
        await until(lambda: mine.source.report().answered_at is not None, "it has asked when it began")
        second = repository.push({"b.toml": model("b")}, "Two")
        for command in ("checkout-index", "ls-remote"):
            (waiting := tmp_path / f"slow-{command}").touch()
            asking = asyncio.create_task(mine.source.sync("interval"))
            await until((tmp_path / "runs").exists, "git runs")
            if command == "ls-remote":
                async with asyncio.timeout(5):
                    await mine.source.pin(first)
                assert mine.models == ["a"]
            assert await mine.source.suspend(suspended=True)
            waiting.unlink()
            (tmp_path / "runs").unlink()
            with suppress(SuspendedError):
                await asking
            report = mine.source.report()
            assert (mine.models, report.state, report.commit) == (["a"], "suspended", first)
            assert report.attempted == first
            await mine.source.unpin()
            assert await mine.source.suspend(suspended=False)
            assert (mine.models, mine.source.report().commit) == (["a", "b"], second)


async def test_a_commit_in_force_that_was_not_written_down_is_decided_about_anew(
    tmp_path: Path, repository: Repository
) -> None:
    async with Follower(tmp_path / "ours", repository).followed():
        before = (tmp_path / "ours" / "source.json").read_text()
    second = repository.push({"b.toml": model("b")}, "Two")
    async with Follower(tmp_path / "ours", repository).followed() as mine:
        await until(lambda: mine.models == ["a", "b"], "it is found")
    (tmp_path / "ours" / "source.json").write_text(before)  # as if it was killed just after the switch
    async with Follower(tmp_path / "ours", repository).followed() as mine:
        await until(lambda: mine.outcomes[1:] == [("start", "applied", 1)], "it is written down")
        assert mine.source.memory.history[-1].commit.id == second


async def test_a_full_disk_keeps_what_is_in_force_and_the_clone_is_made_anew_if_it_goes_on(
    tmp_path: Path, repository: Repository
) -> None:
    full = shim(
        tmp_path / "bin",
        "git",
        f'[ -e {tmp_path}/full ] && case "$*" in *checkout-index*)'
        ' echo "fatal: No space left on device" >&2; exit 128;; esac; exec $REAL "$@"',
    )
    async with Follower(tmp_path / "ours", repository, full).followed() as mine:
        (tmp_path / "full").touch()
        repository.push({"b.toml": model("b")}, "Two")
        (mark := tmp_path / "ours" / "repo.git" / "mark").touch()
        for _ in range(3):
            await mine.source.sync("interval")
        report = mine.source.report()
        assert (report.state, report.failures) == ("failing", 3)
        assert "No space left on device" in report.messages[0]
        assert (mine.models, mine.told().count("SourceFailed")) == (["a"], 1)
        assert not mark.exists()
        (tmp_path / "full").unlink()
        await mine.source.sync("interval")
        assert (mine.models, mine.source.report().state) == (["a", "b"], "in sync")
        assert "SourceRecovered" in mine.told()


async def test_a_history_that_cannot_be_written_is_told_and_stops_nothing(
    tmp_path: Path, repository: Repository
) -> None:
    async with Follower(tmp_path / "ours", repository).followed() as mine:
        (tmp_path / "ours" / "source.json.new").mkdir()  # where the draft would be
        repository.push({"b.toml": model("b")}, "Two")
        await mine.source.sync("interval")
        assert mine.models == ["a", "b"]
        assert "Is a directory" in mine.source.report().unsaved
        (tmp_path / "ours" / "source.json.new").rmdir()
        repository.push({"c.toml": model("c")}, "Three")
        await mine.source.sync("interval")
        assert mine.source.report().unsaved == ""


async def test_a_repository_that_is_gone_or_changed_leaves_what_there_was(
    tmp_path: Path, repository: Repository
) -> None:
    async with Follower(tmp_path / "ours", repository).followed():
        pass
    (tmp_path / "ours" / "source.json").write_text("{ no json")
    (tmp_path / "ours" / "live" / "a.toml").write_text("")  # somebody has been at it
    shutil.rmtree(repository.bare)
    async with Follower(tmp_path / "ours", repository).followed() as mine:
        assert mine.models == ["a"]
        await until(lambda: mine.source.report().state == "failing", "it has asked")
        assert "does not appear to be a git repository" in mine.source.report().messages[0]
    assert (tmp_path / "ours" / "source.json.unreadable").read_text() == "{ no json"
    other = Repository(tmp_path / "other")
    other.push({"z.toml": model("z")}, "Another repository")
    async with Follower(tmp_path / "ours", other).followed() as mine:
        await until(lambda: mine.models == ["z"], "the other one is followed")


async def test_asking_is_ended_with_the_source(tmp_path: Path, repository: Repository) -> None:
    slow = shim(
        tmp_path / "bin",
        "git",
        f'[ -e {tmp_path}/slow ] && echo $$ > {tmp_path}/pid && exec sleep 1000; exec $REAL "$@"',
    )
    async with Follower(tmp_path / "ours", repository, slow).followed() as mine:
        (tmp_path / "slow").touch()
        mine.source.nudge("webhook")
        await until((tmp_path / "pid").exists, "git runs")
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    await asyncio.sleep(0)
