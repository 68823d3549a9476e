"""A folder of a commit, out of a real repository."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from sidecar.mechanism import gittree
from sidecar.mechanism.gittree import GitTreeError

IDENTITY = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}


def git(folder: Path, *arguments: str) -> str:
    """Run git there, with nobody's configuration."""
    alone = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    command = ["git", "-c", "init.defaultBranch=main", *arguments]
    environment = {**os.environ, **IDENTITY, **alone}
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, env=environment).stdout


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A repository with a commit of what is awkward, and a working tree that has gone on since."""
    folder = tmp_path / "repo"
    (folder / "manifests" / "models").mkdir(parents=True)
    (folder / "shared").mkdir()
    (folder / "manifests" / "models" / "a b é.toml").write_bytes(b"\xff\r\n")
    (folder / "manifests" / "empty.toml").touch()
    (folder / "manifests" / "run").write_text("#!/bin/sh\n")
    (folder / "manifests" / "run").chmod(0o755)
    (folder / "shared" / "x.toml").write_text("shared = 1\n")
    (folder / ".gitattributes").write_text("*.toml filter=shout export-ignore\n")
    git(tmp_path, "init", "-q", str(folder))
    git(folder, "config", "filter.shout.smudge", "touch ../shouted")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "one")
    (folder / "manifests" / "empty.toml").write_text("changed = 1\n")
    return folder


def written(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_are_written_as_they_stand_in_the_commit_and_nothing_else_is_touched(repo: Path, tmp_path: Path) -> None:
    before = git(repo, "status", "--porcelain")
    root = gittree.write("HEAD", "manifests", tmp_path / "out", repo)
    assert root == tmp_path / "out" / "manifests"
    assert written(root) == {"models/a b é.toml": b"\xff\r\n", "empty.toml": b"", "run": b"#!/bin/sh\n"}
    assert os.access(root / "run", os.X_OK)
    assert not (tmp_path / "out" / "shared").exists()
    assert not list(tmp_path.rglob("shouted"))
    assert git(repo, "status", "--porcelain") == before


def test_links_lead_to_where_they_lead_in_the_repository(repo: Path, tmp_path: Path) -> None:
    (repo / "manifests" / "x.toml").symlink_to("../shared/x.toml")
    git(repo, "add", "-A")
    git(repo, "commit", "-qm", "two")
    root = gittree.write("main", "manifests", tmp_path / "out", repo)
    assert root is not None
    assert (root / "x.toml").read_text() == "shared = 1\n"


def test_paths_are_from_the_top_or_with_a_dot_from_where_one_stands(repo: Path, tmp_path: Path) -> None:
    inner = repo / "manifests"
    for number, (folder, cwd) in enumerate([("manifests", inner), (".", inner), ("../manifests", inner)]):
        root = gittree.write("HEAD", folder, tmp_path / str(number), cwd)
        assert root is not None
        assert len(written(root)) == 3
    assert gittree.write("HEAD", "manifests/nope", tmp_path / "none", repo) is None
    with pytest.raises(GitTreeError, match="outside of the repository"):
        gittree.write("HEAD", "../../etc", tmp_path / "none", inner)


def test_a_bare_clone_will_do(repo: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--bare", str(repo), "bare.git")
    root = gittree.write("main", "manifests", tmp_path / "out", tmp_path / "bare.git")
    assert root is not None
    assert len(written(root)) == 3


@pytest.mark.parametrize("revision", ["nope", "--help", "HEAD~9", "HEAD:manifests", ""])
def test_what_is_no_revision_is_told(repo: Path, tmp_path: Path, revision: str) -> None:
    with pytest.raises(GitTreeError, match="no such revision"):
        gittree.write(revision, "manifests", tmp_path / "out", repo)


def test_outside_of_a_repository_git_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    (tmp_path / "plain").mkdir()
    with pytest.raises(GitTreeError, match="not a git repository"):
        gittree.write("HEAD", "manifests", tmp_path / "out", tmp_path / "plain")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(GitTreeError, match="there is no git here"):
        gittree.write("HEAD", "manifests", tmp_path / "out", tmp_path)


def test_an_object_that_is_not_there_is_told(repo: Path, tmp_path: Path) -> None:
    key = git(repo, "rev-parse", "HEAD:manifests/run").strip()
    (repo / ".git" / "objects" / key[:2] / key[2:]).unlink()
    with pytest.raises(GitTreeError, match="manifests/run: git does not have it: is the clone whole"):
        gittree.write("HEAD", "manifests", tmp_path / "out", repo)
