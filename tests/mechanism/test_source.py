"""A manifest directory is read whole, or not at all."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sidecar.mechanism import source
from sidecar.mechanism.source import SourceError, git_at_work, read, signature
from tests.support import write


def names(root: Path) -> list[str]:
    return [name for name, _ in read(root).files]


def test_every_manifest_below_the_root_is_read_in_a_stable_order(tmp_path: Path) -> None:
    write(tmp_path, {"b.toml": "b", "a/x.toml": "x", "a/deep/y.toml": "y", "a.toml": "a", "README.md": "no"})
    snapshot = read(tmp_path)
    assert snapshot.files == (("a.toml", b"a"), ("a/deep/y.toml", b"y"), ("a/x.toml", b"x"), ("b.toml", b"b"))
    assert snapshot.unreadable == ()


def test_hidden_files_and_folders_are_no_manifests(tmp_path: Path) -> None:
    hidden = {".draft.toml": "", ".git/x.toml": "", "..data/x.toml": "", "a/.b/x.toml": "", "a/.#lock.toml": ""}
    assert names(write(tmp_path, {"a.toml": "", **hidden})) == ["a.toml"]


def test_the_plugin_folder_is_left_out_but_only_at_the_root(tmp_path: Path) -> None:
    write(tmp_path, {"plugins/acme/pyproject.toml": "", "models/plugins/x.toml": ""})
    assert names(tmp_path) == ["models/plugins/x.toml"]


def test_a_folder_that_ends_in_toml_is_a_folder(tmp_path: Path) -> None:
    assert names(write(tmp_path, {"folder.toml/a.toml": ""})) == ["folder.toml/a.toml"]


def test_the_revision_is_about_names_and_contents_alone(tmp_path: Path) -> None:
    one = read(write(tmp_path / "one", {"a.toml": "x = 1", "b.toml": "y = 1"}))
    same = read(write(tmp_path / "same", {"a.toml": "x = 1", "b.toml": "y = 1"}))
    assert one.revision == same.revision
    others = [{"a.toml": "x = 2", "b.toml": "y = 1"}, {"a.toml": "x = 1"}, {"a.toml": "x = 1b.toml", "b": "y = 1"}]
    revisions = {read(write(tmp_path / str(index), files)).revision for index, files in enumerate(others)}
    assert len({one.revision, *revisions}) == 4


def test_an_empty_directory_is_a_revision_too(tmp_path: Path) -> None:
    snapshot = read(tmp_path)
    assert (snapshot.files, snapshot.signature) == ((), ())
    assert snapshot.revision


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nowhere: no such directory"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize("change", ["edit", "replace", "add", "remove", "touch"])
def test_the_signature_changes_with_every_change(tmp_path: Path, change: str) -> None:
    file = write(tmp_path, {"a.toml": "x = 1"}) / "a.toml"
    os.utime(file, ns=(1, 1))
    before = signature(tmp_path)
    if change == "edit":
        file.write_text("x = 2")
    elif change == "replace":  # by rename, with the same size and time, as a deployment tool may
        draft = write(tmp_path, {".draft": "x = 2"}) / ".draft"
        os.utime(draft, ns=(1, 1))
        draft.replace(file)
    elif change == "add":
        write(tmp_path, {"b.toml": ""})
    elif change == "remove":
        file.unlink()
    else:
        os.utime(file, ns=(2, 2))
    assert signature(tmp_path) != before


def test_a_kubernetes_volume_is_read_through_its_links_and_its_switch_is_seen(tmp_path: Path) -> None:
    write(tmp_path, {"..2024_1/a.toml": "x = 1", "..2024_2/a.toml": "x = 2"})
    (tmp_path / "..data").symlink_to("..2024_1")
    (tmp_path / "a.toml").symlink_to("..data/a.toml")
    first = read(tmp_path)
    assert first.files == (("a.toml", b"x = 1"),)
    (tmp_path / "..tmp").symlink_to("..2024_2")
    (tmp_path / "..tmp").replace(tmp_path / "..data")
    assert signature(tmp_path) != first.signature
    assert read(tmp_path).files == (("a.toml", b"x = 2"),)


def test_the_root_may_be_a_link_that_is_switched(tmp_path: Path) -> None:
    write(tmp_path, {"one/a.toml": "x", "two/a.toml": "x"})
    root = tmp_path / "current"
    root.symlink_to("one")
    before = signature(root)
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").replace(root)
    assert signature(root) != before


def test_a_file_that_cannot_be_read_is_named_and_the_others_count(tmp_path: Path) -> None:
    write(tmp_path, {"good.toml": "x = 1"})
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.toml"))
        snapshot = read(tmp_path)
    assert snapshot.files == (("good.toml", b"x = 1"),)
    assert snapshot.unreadable == (("socket.toml", "cannot be read: No such device or address"),)


def test_a_file_too_large_to_be_a_manifest_is_named_and_not_read(tmp_path: Path) -> None:
    write(tmp_path, {"good.toml": ""})
    with (tmp_path / "huge.toml").open("wb") as huge:
        huge.truncate(source.MAX_FILE_BYTES + 1)
    snapshot = read(tmp_path)
    assert [name for name, _ in snapshot.files] == ["good.toml"]
    assert snapshot.unreadable == (("huge.toml", "cannot be read: larger than 4 MiB, which no manifest is"),)


def test_what_is_no_regular_file_is_named_and_not_waited_for(tmp_path: Path) -> None:
    write(tmp_path, {"good.toml": ""})
    (tmp_path / "endless.toml").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.toml")
    snapshot = read(tmp_path)
    assert [name for name, _ in snapshot.files] == ["good.toml"]
    why = "cannot be read: not a regular file"
    assert snapshot.unreadable == (("endless.toml", why), ("pipe.toml", why))


def test_a_dangling_link_is_nothing(tmp_path: Path) -> None:
    write(tmp_path, {"good.toml": ""})
    (tmp_path / "gone.toml").symlink_to("nowhere.toml")
    assert names(tmp_path) == ["good.toml"]


def test_a_link_to_itself_is_named_and_the_others_count(tmp_path: Path) -> None:
    write(tmp_path, {"good.toml": ""})
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    snapshot = read(tmp_path)
    assert [name for name, _ in snapshot.files] == ["good.toml"]
    assert [name for name, _ in snapshot.unreadable] == ["loop.toml"]


def test_a_file_whose_name_is_not_utf8_does_not_hide_the_others(tmp_path: Path) -> None:
    write(tmp_path, {"good.toml": ""})
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.toml")).write_bytes(b"")
    assert "good.toml" in names(tmp_path)


def test_what_changes_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"a.toml": "old", "b.toml": "old"})
    content = source.content
    meddled: list[Path] = []

    def meddle(path: Path) -> bytes:
        found = content(path)
        if not meddled:  # both files change after the first was read and before the second is
            meddled.append(path)
            write(tmp_path, {"a.toml": "new and longer", "b.toml": "new and longer"})
        return found

    monkeypatch.setattr(source, "content", meddle)
    assert {content for _, content in read(tmp_path).files} == {b"new and longer"}


def test_a_file_removed_while_it_is_read_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"a.toml": "", "b.toml": ""})
    content = source.content

    def meddle(path: Path) -> bytes:
        (tmp_path / "b.toml").unlink(missing_ok=True)
        return content(path)

    monkeypatch.setattr(source, "content", meddle)
    snapshot = read(tmp_path)
    assert (snapshot.files, snapshot.unreadable) == ((("a.toml", b""),), ())


def test_a_folder_removed_while_it_is_looked_for_is_no_error(tmp_path: Path) -> None:
    write(tmp_path, {"a/x.toml": "", "b/y.toml": ""})
    walk = source.folders(tmp_path, lambda _: False)
    next(walk)
    (tmp_path / "b" / "y.toml").unlink()
    (tmp_path / "b").rmdir()
    assert [Path(path).name for path, _, _ in walk] == ["a"]


def test_linked_folders_are_read_once_and_circles_end(tmp_path: Path) -> None:
    write(tmp_path, {"root/real/x.toml": "", "shared/y.toml": ""})
    (tmp_path / "root" / "real" / "up").symlink_to("..")
    (tmp_path / "root" / "again").symlink_to("real")
    (tmp_path / "root" / "shared").symlink_to("../shared")
    assert names(tmp_path / "root") == ["again/x.toml", "shared/y.toml"]


@pytest.mark.parametrize("place", ["manifests", "."])
def test_git_is_at_work_while_its_index_is_locked(tmp_path: Path, place: str) -> None:
    write(tmp_path, {".git/HEAD": "", "manifests/a.toml": ""})
    assert not git_at_work(tmp_path / place)
    write(tmp_path, {".git/index.lock": ""})
    assert git_at_work(tmp_path / place)


def test_git_is_found_at_work_in_a_worktree_and_through_a_link(tmp_path: Path) -> None:
    write(tmp_path, {"tree/.git": "gitdir: ../repo/worktrees/tree\n", "repo/worktrees/tree/HEAD": ""})
    (tmp_path / "current").symlink_to("tree")
    assert not git_at_work(tmp_path / "current")
    write(tmp_path, {"repo/worktrees/tree/index.lock": ""})
    assert git_at_work(tmp_path / "current")


def test_where_there_is_no_git_none_is_at_work(tmp_path: Path) -> None:
    assert not git_at_work(tmp_path / "nowhere")
    assert not git_at_work(write(tmp_path, {".git": "something else"}))


def test_a_source_that_never_holds_still_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"a.toml": ""})

    def meddle(path: Path) -> bytes:
        path.write_bytes(path.read_bytes() + b"#")
        return path.read_bytes()

    monkeypatch.setattr(source, "content", meddle)
    with pytest.raises(SourceError, match="changed while it was being read, 5 times in a row"):
        read(tmp_path)


@contextmanager
def without_privilege() -> Iterator[None]:
    """As a user whom the modes of files mean."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.mark.parametrize("closed", [".git", "."])
def test_where_git_may_not_be_looked_at_none_is_at_work(closed: str) -> None:
    with tempfile.TemporaryDirectory() as name:  # the folder that pytest gives is in one that nobody else may enter
        root = write(Path(name), {"tree/.git/index.lock": "", "tree/manifests/a.toml": ""})
        root.chmod(0o755)
        folder = root / "tree" / closed
        assert git_at_work(root / "tree/manifests")
        folder.chmod(0)
        try:
            with without_privilege():
                assert not git_at_work(root / "tree/manifests")
        finally:
            folder.chmod(0o755)


def test_where_git_cannot_be_found_none_is_at_work(tmp_path: Path) -> None:
    assert not git_at_work(write(tmp_path, {".git": f"gitdir: {'x' * 5000}"}))
