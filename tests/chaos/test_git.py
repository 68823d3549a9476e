"""Manifests in a working tree that real git switches about, while requests flow and checkouts are torn."""

from __future__ import annotations

import itertools
import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.chaos.world import Traffic, accounted_for, servers
from tests.e2e.conftest import free_block
from tests.e2e.harness import Sidecar, llama, running, settings, stub, until, write

BRANCHES = ("main", "changed", "added", "broken", "without")


def git(tree: Path, *arguments: str) -> None:
    """Run git, without anybody's settings."""
    env = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    for role in ("AUTHOR", "COMMITTER"):
        env |= {f"GIT_{role}_NAME": "somebody", f"GIT_{role}_EMAIL": "somebody@example.org"}
    subprocess.run(["git", "-C", str(tree), *arguments], check=True, capture_output=True, env=env)


def commit(tree: Path, branch: str, **files: str | None) -> None:
    """A branch off main with these manifests; None: without."""
    git(tree, "checkout", "-q", "-b", branch, *(["main"] if branch != "main" else []))
    for name, text in files.items():
        path = tree / "manifests" / f"{name}.toml"
        if text is None:
            path.unlink()
        else:
            write(path, text)
    git(tree, "add", "-A")
    git(tree, "commit", "-q", "-m", branch)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository whose branches have the good model in common and differ in all else."""
    git(tmp_path, "init", "-q", "-b", "scratch")
    write(tmp_path / ".gitignore", "/state/\n")
    others = {f"other{number}": stub(f"other{number}") for number in range(20)}
    base = settings(tmp_path / "state", free_block())
    commit(tmp_path, "main", sidecar=base, good=llama("good"), moving=stub("moving", "--chunks", "1"), **others)
    aliased = {name: stub(name, model=f'aliases = ["{name}-too"]') for name in others}
    commit(tmp_path, "changed", moving=stub("moving", "--chunks", "2"), **aliased)
    commit(tmp_path, "added", added=stub("added"))
    commit(tmp_path, "broken", moving="this is no toml", other1=stub("other1").replace("memory_mb", "memroy_mb"))
    commit(tmp_path, "without", moving=None, **dict.fromkeys(list(others)[:10]))
    git(tmp_path, "checkout", "-q", "main")
    return tmp_path


def names(sidecar: Sidecar) -> set[str]:
    """The models that are declared."""
    return {model["name"] for model in sidecar.status()["models"]}


def in_force(sidecar: Sidecar, branch: str) -> bool:
    """Whether the sidecar has come to where the branch is, as seen by what is particular to it."""
    status = sidecar.status()
    models = {model["name"]: model for model in status["models"]}
    return {
        "main": len(models) == 22 and not models["other3"]["aliases"] and not status["problems"],
        "changed": bool(models.get("other3", {}).get("aliases")),
        "added": "added" in models,
        "broken": len(status["problems"]) == 2 and "moving" in status["kept"],
        "without": "moving" not in models,
    }[branch]


def switched(sidecar: Sidecar, tree: Path, branch: str) -> float:
    """Check a branch out, and wait until it is in force. How long that took, in seconds."""
    git(tree, "checkout", "-q", branch)
    began = time.monotonic()
    until(lambda: in_force(sidecar, branch), f"branch {branch} is in force", 10)
    return time.monotonic() - began


@pytest.mark.soak
def test_branches_are_taken_over_one_by_one_while_the_model_in_common_serves(tree: Path) -> None:
    with running(tree, {}) as sidecar:
        assert sidecar.ask("good")
        good = servers(sidecar)["good"]
        with Traffic(lambda: sidecar.url, "good", clients=2) as traffic:
            assert sidecar.ask("moving").split() == ["moving-0"]
            moving = servers(sidecar)["moving"]
            switched(sidecar, tree, "broken")
            assert sidecar.ask("moving").split() == ["moving-0"]
            assert servers(sidecar)["moving"] == moving  # in its last good form
            switched(sidecar, tree, "changed")
            assert sidecar.ask("moving").split() == ["moving-0", "moving-1"]
            switched(sidecar, tree, "without")
            switched(sidecar, tree, "added")
            assert sidecar.ask("added")
            switched(sidecar, tree, "main")
            traffic.flows()
        assert servers(sidecar)["good"] == good
        assert not traffic.failures
        accounted_for(sidecar)


def switch_about(tree: Path, duration_s: float) -> tuple[int, float]:
    """Switch branches as fast as git can; how many times, and how long the last of them took to be in force."""
    with running(tree, {}) as sidecar:
        assert sidecar.ask("good")
        good = servers(sidecar)["good"]
        with Traffic(lambda: sidecar.url, "good", clients=2) as traffic:
            end, count = time.monotonic() + duration_s, 0
            for branch in itertools.cycle(BRANCHES):
                git(tree, "checkout", "-q", branch)
                count += 1
                if time.monotonic() > end and branch != "main":
                    break
            latency_s = switched(sidecar, tree, "main")
            traffic.flows()
        assert servers(sidecar)["good"] == good
        assert not traffic.failures
        assert sidecar.starts("good") == 1
        accounted_for(sidecar)
    return count, latency_s


def test_switching_about_faster_than_anybody_looks_disturbs_no_model_that_is_in_all_branches(tree: Path) -> None:
    count, latency_s = switch_about(tree, 3)
    assert count > 20
    assert latency_s < 5


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_switching_about_for_a_minute_disturbs_no_model_that_is_in_all_branches(tree: Path) -> None:
    count, latency_s = switch_about(tree, 60)
    print(f"{count} checkouts in a minute; the last was in force after {latency_s:.2f} s")


def test_a_checkout_that_is_half_done_removes_nothing(tree: Path) -> None:
    """git holds its lock, and a file that is to be replaced is away for longer than anybody would take."""
    with running(tree, {}) as sidecar:
        assert sidecar.ask("good")
        good = servers(sidecar)["good"]
        with Traffic(lambda: sidecar.url, "good") as traffic:
            lock = tree / ".git" / "index.lock"
            lock.touch()
            for name in ("good", "moving", "other5"):
                (tree / "manifests" / f"{name}.toml").rename(tree / f"{name}.away")
            looked = sidecar.status()["uptime_s"] + 3
            until(lambda: sidecar.status()["uptime_s"] > looked, "it has had the time to look")
            assert names(sidecar) >= {"good", "moving", "other5"}
            for name in ("good", "moving", "other5"):
                (tree / f"{name}.away").rename(tree / "manifests" / f"{name}.toml")
            lock.unlink()
            switched(sidecar, tree, "added")
            traffic.flows()
        assert servers(sidecar)["good"] == good
        assert not traffic.failures


@pytest.mark.soak
def test_a_directory_that_loses_its_files_one_by_one_and_gets_them_back_keeps_the_last_revision(tree: Path) -> None:
    """As a fresh clone would: everything goes, comes back, and in between there is never nothing in force."""
    with running(tree, {}) as sidecar:
        assert sidecar.ask("good")
        good = servers(sidecar)["good"]
        with Traffic(lambda: sidecar.url, "good") as traffic:
            folder = tree / "manifests"
            texts = {
                path: path.read_text()
                for path in sorted(folder.glob("*.toml"), key=lambda path: path.name != "good.toml")
            }
            for path in texts:
                path.unlink()
            until(lambda: sidecar.status()["problems"] != [], "it is told that there is nothing")
            for path, text in reversed(texts.items()):
                path.write_text(text)
            until(lambda: in_force(sidecar, "main"), "all is well again")
            traffic.flows()
        assert servers(sidecar)["good"] == good
        assert not traffic.failures
