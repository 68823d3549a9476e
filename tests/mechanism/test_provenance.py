"""Where a directory is from: told as it is made by git, by what git-sync does, and by what the kubelet does."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sidecar.mechanism.provenance import provenance
from tests.repository import Repository


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "r")


def test_a_work_tree_tells_its_branch_and_commit(repository: Repository) -> None:
    folder = repository.work / "deploy"
    commit = repository.push({"deploy/a.toml": ""})
    found = provenance(folder)
    assert (found.kind, found.ref, found.commit, found.path) == ("git work tree", "main", commit, "deploy")
    repository.git("pack-refs", "--all")
    assert provenance(folder).commit == commit
    repository.git("checkout", "--quiet", "--detach")
    assert (provenance(folder).ref, provenance(folder).commit) == ("", commit)


def test_a_repository_without_a_commit_tells_none(repository: Repository) -> None:
    assert (provenance(repository.work).kind, provenance(repository.work).commit) == ("git work tree", "")


def test_a_git_sync_link_tells_the_commit_that_it_leads_to(tmp_path: Path, repository: Repository) -> None:
    commit = repository.push({"deploy/a.toml": ""})
    link = tmp_path / "sync" / "current"
    link.parent.mkdir()
    repository.git("worktree", "add", "--quiet", "--detach", str(tmp_path / "sync" / ".worktrees" / commit), commit)
    link.symlink_to(Path(".worktrees") / commit)
    for root in (link, link / "deploy"):
        assert (provenance(root).kind, provenance(root).commit) == ("git-sync link", commit)
    (tmp_path / "sync" / ".worktrees" / commit / ".git").unlink()  # another container's, with other paths
    assert (provenance(link).kind, provenance(link).commit) == ("git-sync link", commit)


def test_a_config_map_tells_its_version(tmp_path: Path) -> None:
    version = tmp_path / "..2026_01_31_10_00_00.123456"
    version.mkdir()
    (version / "a.toml").touch()
    (tmp_path / "..data").symlink_to(version.name)
    (tmp_path / "a.toml").symlink_to("..data/a.toml")
    assert (provenance(tmp_path).kind, provenance(tmp_path).commit) == ("ConfigMap", version.name)


def test_anything_else_is_a_directory(tmp_path: Path) -> None:
    assert provenance(tmp_path / "missing").kind == "directory"
    (tmp_path / ".git").write_bytes(b"\xff\xff no repository")
    assert (provenance(tmp_path).kind, provenance(tmp_path).commit) == ("directory", "")
    (tmp_path / ".git").unlink()
    (tmp_path / ".git").mkdir()
    for text in ("ref: /dev/zero", "ref: " + 9000 * "x"):  # nobody waits for it, nor reads all of it
        (tmp_path / ".git" / "HEAD").write_text(text)
        assert provenance(tmp_path).commit == ""
    (tmp_path / ".git" / "HEAD").unlink()
    subprocess.run(["mkfifo", str(tmp_path / "..data"), str(tmp_path / ".git" / "HEAD")], check=True)
    assert provenance(tmp_path).commit == ""
    (tmp_path / ".git" / "HEAD").unlink()
    (tmp_path / ".git").rmdir()
    assert provenance(tmp_path).kind == "directory"
