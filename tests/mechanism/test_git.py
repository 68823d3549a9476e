"""The git command: bounded, cut off from whatever configuration there is, and told secrets where nobody sees them."""

from __future__ import annotations

import asyncio
import os
import re
import time
from pathlib import Path

import pytest

from plugin_sdk import ByteSize, Duration
from sidecar.core.sourcing import GitDeclaration, SecretPlace
from sidecar.mechanism.git import Git, GitError
from tests.repository import Repository, shim
from tests.support import until

URL = "https://git.example/a.git"


def git(path: str = "", declared: GitDeclaration | None = None, **environment: str) -> Git:
    return Git(declared or GitDeclaration(git=URL), {"PATH": path or os.environ["PATH"], **environment})


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


async def test_a_git_that_hangs_is_killed_with_all_that_it_has_started(tmp_path: Path) -> None:
    path = shim(tmp_path, "git", f"sleep 1000 & echo $! > {tmp_path}/child; wait")
    began = time.monotonic()
    with pytest.raises(GitError, match="git fetch did not end within 1 s"):
        await git(path, GitDeclaration(git=URL, timeout=Duration(1))).run("fetch")
    assert time.monotonic() - began < 5
    child = int((tmp_path / "child").read_text())
    await until(lambda: gone(child), "the child of git is gone, too")


async def test_nobody_waits_for_a_git_that_is_not_wanted_any_more(tmp_path: Path) -> None:
    path = shim(tmp_path, "git", f"echo $$ > {tmp_path}/pid; exec sleep 1000")
    task = asyncio.create_task(git(path).run("fetch"))
    await until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip(), "it runs")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gone(int((tmp_path / "pid").read_text()))


async def test_output_without_end_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(GitError, match="has printed more than 32 MiB"):
        await git(shim(tmp_path, "git", "exec yes")).run("ls-tree")


async def test_the_token_is_in_no_argument_and_in_no_message(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret-token\n")
    declared = GitDeclaration(git=URL, token=SecretPlace(file=str(token)))
    path = shim(
        tmp_path / "bin", "git", f'echo "$@" > {tmp_path}/args; env > {tmp_path}/env; echo s3cret-token >&2; exit 9'
    )
    with pytest.raises(GitError, match=r"git fetch: \*\*\*") as caught:
        await git(path, declared).run("fetch", secrets=True)
    assert "s3cret" not in str(caught.value) + (tmp_path / "args").read_text()
    assert "Authorization: Basic eC1hY2Nlc3MtdG9rZW46czNjcmV0LXRva2Vu" in (tmp_path / "env").read_text()
    with pytest.raises(GitError):
        await git(path, declared).run("rev-parse")  # which speaks to nobody
    assert "Authorization" not in (tmp_path / "env").read_text()
    token.write_text("an0ther\n")
    with pytest.raises(GitError):
        await git(path, declared).run("fetch", secrets=True)
    assert "eC1hY2Nlc3MtdG9rZW46YW4wdGhlcg==" in (tmp_path / "env").read_text()
    token.unlink()
    with pytest.raises(GitError, match=r"token: secret file .* cannot be read"):
        await git(path, declared).run("fetch", secrets=True)


async def test_what_the_user_has_configured_does_not_count(tmp_path: Path) -> None:
    (tmp_path / ".gitconfig").write_text(
        "[user]\nname = Mallory\n[core]\nhooksPath = /evil\n[alias]\nversion = !false\n"
    )
    environment = {"HOME": str(tmp_path), "GIT_DIR": "/elsewhere", "GIT_EXTERNAL_DIFF": "evil", "GIT_TRACE": "1"}
    listed = (
        await Git(GitDeclaration(git=URL), os.environ | environment).run("config", "--list", "--show-origin")
    ).out.decode()
    assert "Mallory" not in listed
    assert "core.hookspath=/dev/null" in listed
    assert {line.split("\t")[0] for line in listed.splitlines()} == {"command line:"}


async def test_ssh_asks_nothing_and_knows_its_key_and_its_hosts(tmp_path: Path) -> None:
    key = tmp_path / "my key"
    declared = GitDeclaration(git="git@git.example:a.git", ssh_key=str(key), known_hosts="/etc/hosts of git")
    path = shim(tmp_path, "ssh", f'for one in "$@"; do echo "$one" >> {tmp_path}/args; done; exit 255')
    with pytest.raises(GitError, match="Could not read from remote repository"):
        await git(path, declared).run("ls-remote", declared.git, secrets=True)
    arguments = (tmp_path / "args").read_text().splitlines()
    assert arguments[arguments.index("-i") + 1] == str(key)
    assert {"-oBatchMode=yes", "-oStrictHostKeyChecking=yes", "-oUserKnownHostsFile=/etc/hosts of git"} <= set(
        arguments
    )
    assert arguments[arguments.index("-F") + 1] == "/dev/null"
    assert "git@git.example" in arguments


async def test_more_than_max_size_is_not_fetched(tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    (repository.work / "large.bin").write_bytes(os.urandom(2**20))
    repository.push({}, "Large")
    declared = GitDeclaration(git=str(repository.bare), max_size=ByteSize(2**17))
    mine = Git(declared, os.environ)
    await mine.run("init", "--bare", "--quiet", str(tmp_path / "clone"))
    with pytest.raises(GitError, match="more than max_size"):
        await mine.run("fetch", "--quiet", declared.git, "main", folder=tmp_path / "clone")


async def test_a_limit_of_the_sidecars_own_that_is_lower_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (2**20, 2**20))  # as LimitFSIZE= of systemd
    found = await git(shim(tmp_path, "git", "until ulimit -f | grep -q 2048; do :; done; ulimit -f")).run("version")
    assert int(found.out) * 512 == 2**20


async def test_what_a_server_says_steers_no_terminal(tmp_path: Path) -> None:
    with pytest.raises(GitError, match=r"git fetch: fatal: remote error:  \]0;evil"):
        await git(shim(tmp_path, "git", r"printf 'fatal: remote error: \033]0;evil\n' >&2; exit 128")).run("fetch")


async def test_a_git_that_is_missing_or_too_old_is_told(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(GitError, match="install it"):
        await git(str(empty)).version()
    old = shim(tmp_path, "git", 'echo "git version 2.31.8"')
    with pytest.raises(GitError, match=re.escape("git version 2.31.8 is too old: at least 2.32 is needed")):
        await git(old).version()
    almost = shim(tmp_path, "git", 'echo "git version 2.33.0 (Some Vendor)"')
    await git(almost).version()
    with pytest.raises(GitError, match=r"at least 2\.34"):
        await git(almost, GitDeclaration(git=URL, verify="signed", allowed_signers="/s")).version()
