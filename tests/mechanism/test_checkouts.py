"""A clone and its checkouts: whatever the protocol, whole or not at all, and only what may be trusted."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from plugin_sdk import ByteSize
from sidecar.core.sourcing import GitDeclaration, SecretPlace
from sidecar.mechanism.checkouts import Checkouts, UnfitError
from sidecar.mechanism.clone import Clone, UnsignedError
from sidecar.mechanism.git import Git, GitError
from tests.repository import MAIL, Repository, allow, daemon, gpg_home, shim, ssh_key
from tests.servers import GIT_SERVER
from tests.support import serving


class Local:
    """What a sidecar has of a repository."""

    def __init__(self, folder: Path, declared: GitDeclaration, path: str = "") -> None:
        git = Git(declared, os.environ | ({"PATH": path} if path else {}))
        self.folder = folder
        self.clone = Clone(folder / "repo.git", declared, git)
        self.checkouts = Checkouts(folder, self.clone.folder, declared, git)

    async def fetch(self) -> str:
        """The commit that the ref is now."""
        self.checkouts.open()
        await self.clone.open()
        return await self.clone.fetch(await self.clone.head())

    def texts(self, commit: str) -> dict[str, str]:
        """The files of a checkout."""
        place = self.checkouts.place(commit)
        return {str(path.relative_to(place)): path.read_text() for path in place.rglob("*") if path.is_file()}


@contextmanager
def standing_in(folder: Path) -> Iterator[None]:
    """A process whose working directory is the folder."""
    with subprocess.Popen(["sleep", "1000"], cwd=folder) as process:
        yield
        process.kill()


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "theirs")


def local(tmp_path: Path, repository: Repository, path: str = "", **keys: object) -> Local:
    declared = GitDeclaration(git=str(repository.bare), ref="main", **keys)  # type: ignore[arg-type] # keys of any type
    return Local(tmp_path / "ours", declared, path)


async def test_it_is_fetched_by_each_protocol(tmp_path: Path, repository: Repository) -> None:
    commit = repository.push({"a.toml": "x = 1"}, "One")
    name, root = repository.bare.name, str(repository.folder)
    token = tmp_path / "token"
    token.write_text("s3cret")
    by_ssh = shim(tmp_path / "bin", "ssh", 'for last; do :; done; eval "$last"')  # does here what it is to do there
    with daemon(repository.folder) as daemon_url, serving(GIT_SERVER, "--root", root, "--token", "s3cret") as server:
        place = SecretPlace(file=str(token))
        cases = [
            Local(tmp_path / "http", GitDeclaration(git=f"{server.url}/{name}", ref="main", token=place)),
            Local(tmp_path / "file", GitDeclaration(git=f"file://{repository.bare}")),
            Local(tmp_path / "ssh", GitDeclaration(git=f"git@there:{repository.bare}", ref="main"), by_ssh),
            Local(tmp_path / "git", GitDeclaration(git=f"{daemon_url}/{name}", ref="main", depth=1)),
        ]
        for case in cases:
            assert await case.fetch() == commit
            await case.checkouts.check_out(commit)
            assert case.texts(commit) == {"a.toml": "x = 1"}
        unknown = Local(tmp_path / "no", GitDeclaration(git=f"{server.url}/{name}", ref="main"))
        with pytest.raises(GitError, match="could not read Username"):
            await unknown.fetch()


async def test_branches_tags_and_commits_are_followed_and_what_vanished_is_told(
    tmp_path: Path, repository: Repository
) -> None:
    first = repository.push({"a.toml": "x = 1"}, "One")
    repository.git("tag", "-a", "v1", "-m", "First")
    repository.git("push", "--quiet", "origin", "v1", "HEAD:refs/heads/feature/main")
    second = repository.push({"a.toml": "x = 2"}, "Two")
    for ref, commit in (("main", second), ("v1", first), ("refs/tags/v1", first), ("HEAD", second), (first, first)):
        mine = Local(tmp_path / ref.replace("/", "-"), GitDeclaration(git=str(repository.bare), ref=ref))
        assert await mine.fetch() == commit
    mine = local(tmp_path, repository)
    await mine.fetch()
    assert await mine.clone.find(first[:8]) == first
    described = await mine.clone.describe(second)
    assert (described.author, described.subject) == ("Alice", "Two")
    assert await mine.clone.descends(second, first)
    assert not await mine.clone.descends(first, second)
    with pytest.raises(GitError, match="no commit that was fetched begins with"):
        await mine.clone.find("0123456")
    repository.git("push", "--quiet", "origin", "--delete", "feature/main")
    gone = Local(tmp_path / "gone", GitDeclaration(git=str(repository.bare), ref="feature/main"))
    with pytest.raises(GitError, match='there is no branch or tag "feature/main"'):
        await gone.fetch()


async def test_a_checkout_is_there_whole_or_not_at_all(tmp_path: Path, repository: Repository) -> None:
    commit = repository.push({"a.toml": "x = 1", "b/c.toml": "y = 2", "d.toml": "z = 3"}, "One")
    full = shim(
        tmp_path / "bin",
        "git",
        f'case "$*" in *checkout-index*) echo half > {tmp_path}/ours/checkouts/.draft-{commit}/a.toml;'
        ' echo "fatal: write error: No space left on device" >&2; exit 128;; esac; exec $REAL "$@"',
    )
    mine = local(tmp_path, repository, full)
    await mine.fetch()
    with pytest.raises(GitError, match="No space left on device"):
        await mine.checkouts.check_out(commit)
    assert not list((mine.folder / "checkouts").iterdir())
    mine = local(tmp_path, repository)
    await mine.checkouts.check_out(commit)
    assert len(mine.texts(commit)) == 3
    (mine.checkouts.place(commit) / "extra.toml").write_text("somebody's own")
    assert not await mine.checkouts.whole(commit)
    await mine.checkouts.check_out(commit)
    assert await mine.checkouts.whole(commit)
    (mine.checkouts.place(commit) / "a.toml").write_text("")  # as a power cut may leave it
    assert not await mine.checkouts.whole(commit)


async def test_one_that_is_killed_in_the_middle_leaves_nothing_in_the_way(
    tmp_path: Path, repository: Repository
) -> None:
    commit = repository.push({"a.toml": "x = 1"}, "One")
    mine = local(tmp_path, repository)
    await mine.fetch()
    for left in ("checkouts/.draft-abc/half.toml", "checkouts/.draft-index", "repo.git/shallow.lock", ".draft-live"):
        (mine.folder / left).parent.mkdir(exist_ok=True)
        (mine.folder / left).write_text("left behind")
    (mine.folder / "repo.git/refs/sidecar").mkdir(exist_ok=True)
    (mine.folder / "repo.git/refs/sidecar/fetched.lock").touch()
    again = local(tmp_path, repository)
    assert await again.fetch() == commit
    await again.checkouts.check_out(commit)
    again.checkouts.switch(commit)
    assert again.checkouts.commit == commit
    again.checkouts.prune([])
    assert [path.name for path in (mine.folder / "checkouts").iterdir()] == [commit]


async def test_old_checkouts_go_unless_a_process_stands_in_them(tmp_path: Path, repository: Repository) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "linked").symlink_to("real")
    mine = local(tmp_path / "linked", repository)
    commits = []
    for number in range(4):
        commits.append(repository.push({"a.toml": f"x = {number}"}, str(number)))
        await mine.fetch()
        await mine.checkouts.check_out(commits[-1])
    mine.checkouts.switch(commits[3])
    with standing_in(mine.checkouts.place(commits[0])):
        await asyncio.to_thread(mine.checkouts.prune, [commits[2]])
        assert {path.name for path in (mine.folder / "checkouts").iterdir()} == {commits[0], commits[2], commits[3]}
    mine.checkouts.prune([])
    assert [path.name for path in (mine.folder / "checkouts").iterdir()] == [commits[3]]


async def test_what_is_too_large_or_has_no_manifests_is_unfit(tmp_path: Path, repository: Repository) -> None:
    (repository.work / "weights.bin").write_bytes(b"\0" * 2**20)  # which packs well, so that fetching does not stop it
    commit = repository.push({"a.toml": "x = 1"}, "Large")
    mine = local(tmp_path, repository, max_size=ByteSize(2**17))
    await mine.fetch()
    with pytest.raises(UnfitError, match=r"has 2 files of 1048581 bytes: more than max_size"):
        await mine.checkouts.check_out(commit)
    wrong = Local(tmp_path / "wrong", GitDeclaration(git=str(repository.bare), path="deploy"))
    await wrong.fetch()
    with pytest.raises(UnfitError, match="has no folder deploy"):
        await wrong.checkouts.check_out(commit)
    repository.git("update-index", "--add", "--cacheinfo", f"160000,{commit},deploy")
    commit = repository.commit("A submodule")
    await wrong.fetch()
    with pytest.raises(UnfitError, match="deploy is a submodule, which is not fetched"):
        await wrong.checkouts.check_out(commit)


async def test_files_are_written_as_they_stand_in_the_commit_whatever_its_attributes_say(
    tmp_path: Path, repository: Repository
) -> None:
    attributes = "*.toml text eol=crlf ident\nc.toml filter=lfs\nd.toml working-tree-encoding=UTF-16LE\n"
    repository.push(dict.fromkeys(("a.toml", "c.toml", "d.toml"), "# $Id$\n"), "Files")
    (repository.work / ".gitattributes").write_text(attributes)
    repository.git(
        "add", ".gitattributes"
    )  # git would write the others in another way from now on, and is not asked to
    commit = repository.commit("Attributes")
    mine = local(tmp_path, repository)
    await mine.fetch()
    place = await mine.checkouts.check_out(commit)
    assert {path.read_bytes() for path in place.glob("*.toml")} == {b"# $Id$\n"}
    assert await mine.checkouts.whole(commit)


async def test_a_commit_whose_links_or_names_lead_out_of_it_is_unfit(tmp_path: Path, repository: Repository) -> None:
    (repository.work / "in.toml").symlink_to("real/a.toml")
    commit = repository.push({"real/a.toml": "x = 1"}, "A link to what is there")
    mine = local(tmp_path, repository)
    await mine.fetch()
    assert (await mine.checkouts.check_out(commit) / "in.toml").read_text() == "x = 1"
    (tmp_path / "unsigned.toml").write_text("x = 2")
    for target in (str(tmp_path / "unsigned.toml"), "../../live/real/a.toml", "../../../unsigned\x1b.toml"):
        (repository.work / "in.toml").unlink()
        (repository.work / "in.toml").symlink_to(target)
        commit = repository.push({}, "A link to what is not")
        await mine.fetch()
        with pytest.raises(UnfitError, match=r"in\.toml is a link to [ -~]+, which is not in the repository"):
            await mine.checkouts.check_out(commit)
        assert not mine.checkouts.place(commit).exists()
    commit = repository.evil("../up.toml", "x = 3")
    await mine.fetch()
    with pytest.raises(UnfitError, match=r"has a file that may not be: .*invalid path '\.\./up\.toml'"):
        await mine.checkouts.check_out(commit)


async def test_a_commit_with_more_files_than_anybody_would_list_is_unfit(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = repository.push({f"{number}.toml": "" for number in range(100)}, "Many")
    mine = local(tmp_path, repository)
    await mine.fetch()
    monkeypatch.setattr("sidecar.mechanism.git.OUTPUT_BYTES", 2000)
    with pytest.raises(UnfitError, match="has far more than 50000 files"):
        await mine.checkouts.check_out(commit)


@pytest.mark.parametrize("files", [1, 120])  # git unpacks a few objects, and keeps the pack of many
async def test_a_fetch_that_is_too_large_says_so_and_leaves_nothing_on_the_disk(
    tmp_path: Path, repository: Repository, files: int
) -> None:
    for number in range(files):
        (repository.work / f"{number}.bin").write_bytes(os.urandom(2**19 // files))
    repository.push({}, "Large")
    mine = local(tmp_path, repository, max_size=ByteSize(2**16))
    with pytest.raises(GitError, match="more than max_size"):
        await mine.fetch()
    assert not list((mine.folder / "repo.git" / "objects").rglob("tmp_*"))


async def test_what_an_author_writes_steers_no_terminal(tmp_path: Path, repository: Repository) -> None:
    commit = repository.push({"a.toml": "x = 1"}, "\x1b[2JAll is well")
    mine = local(tmp_path, repository)
    await mine.fetch()
    assert (await mine.clone.describe(commit)).subject == " [2JAll is well"


async def test_a_clone_that_cannot_be_packed_is_no_failure(
    tmp_path: Path, repository: Repository, caplog: pytest.LogCaptureFixture
) -> None:
    commit = repository.push({"a.toml": "x = 1"}, "One")
    full = shim(
        tmp_path / "bin",
        "git",
        'case "$*" in *"gc --auto"*) echo fatal: File too large >&2; exit 1;; esac; exec $REAL "$@"',
    )
    mine = local(tmp_path, repository, full)
    await mine.fetch()
    await mine.clone.keep([commit])
    assert "cannot be packed, and goes on as it is" in caplog.text


async def test_only_commits_that_are_signed_by_the_right_key_are_trusted(
    tmp_path: Path, repository: Repository
) -> None:
    key, other = ssh_key(tmp_path / "key"), ssh_key(tmp_path / "other")
    signers = str(allow(tmp_path / "signers", key))
    mine = local(tmp_path, repository, verify="signed", allowed_signers=signers)
    good = repository.push({"a.toml": "x = 1"}, "Good", key=key)
    await mine.fetch()
    assert (await mine.clone.signer(good)).startswith(f"{MAIL} SHA256:")
    for message, by in (("By another", other), ("By nobody", None)):
        commit = repository.push({"a.toml": f"x = '{message}'"}, message, key=by)
        await mine.fetch()
        with pytest.raises(UnsignedError):
            await mine.clone.signer(commit)
    signing = ("-c", "gpg.format=ssh", "-c", f"user.signingKey={key}")
    repository.git(*signing, "tag", "-s", "v1", "-m", "A tag vouches for no commit")
    repository.git("push", "--quiet", "origin", "v1")
    tagged = Local(tmp_path / "tagged", GitDeclaration(git=str(repository.bare), ref="v1", allowed_signers=signers))
    with pytest.raises(UnsignedError, match="it has no signature"):
        await tagged.clone.signer(await tagged.fetch())
    raw = repository.git("cat-file", "commit", good).replace("Good", "Forged") + "\n"
    forged = repository.git("hash-object", "-t", "commit", "-w", "--stdin", text=raw)
    repository.git("push", "--quiet", "--force", "origin", f"{forged}:refs/heads/main")
    await mine.fetch()
    with pytest.raises(UnsignedError, match="Signature verification failed"):
        await mine.clone.signer(forged)


async def test_signatures_of_gpg_are_trusted_if_its_keyring_is_named(tmp_path: Path, repository: Repository) -> None:
    with gpg_home() as home:
        commit = repository.push({"a.toml": "x = 1"}, "By gpg", gpg=home)
        mine = local(tmp_path, repository, verify="signed", gpg_home=str(home))
        await mine.fetch()
        assert MAIL in await mine.clone.signer(commit)
        signers = str(allow(tmp_path / "signers", ssh_key(tmp_path / "key")))
        other = local(tmp_path, repository, verify="signed", allowed_signers=signers)
        with pytest.raises(UnsignedError):  # for keys of gpg, nobody is trusted there
            await other.clone.signer(commit)
        unsigned = repository.commit("By nobody")
        await mine.fetch()
        with pytest.raises(UnsignedError):
            await mine.clone.signer(unsigned)


async def test_a_clone_that_is_broken_can_be_made_anew(tmp_path: Path, repository: Repository) -> None:
    commit = repository.push({"a.toml": "x = 1"}, "One")
    mine = local(tmp_path, repository)
    await mine.fetch()
    await mine.clone.keep([commit])
    for thing in (mine.folder / "repo.git" / "objects").rglob("*"):
        if thing.is_file():
            thing.chmod(0o600)
            thing.write_bytes(b"")
    with pytest.raises(GitError):
        await mine.checkouts.check_out(commit)
    await mine.clone.make_anew()
    assert await mine.fetch() == commit
    await mine.checkouts.check_out(commit)
