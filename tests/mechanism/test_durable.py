"""Files that are there whole, or as they were."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sidecar.mechanism import durable


def names(folder: Path) -> list[str]:
    """What is in the folder."""
    return [path.name for path in folder.iterdir()]


def test_a_file_is_made_and_replaced(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    durable.replace(file, b"1")
    durable.replace(file, b"2")
    assert file.read_bytes() == b"2"
    assert names(tmp_path) == ["a.json"]


def test_a_replacement_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    durable.replace(file, b"1")
    (tmp_path / "a.json.new").mkdir()
    with pytest.raises(IsADirectoryError):
        durable.replace(file, b"2")
    assert file.read_bytes() == b"1"


def test_a_disk_that_is_full_keeps_no_draft(tmp_path: Path) -> None:
    (tmp_path / "a.json.new").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        durable.replace(tmp_path / "a.json", b"1")
    assert names(tmp_path) == []


def test_a_rewritten_file_keeps_its_mode_and_owner(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_bytes(b"1")
    file.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(file, 1234, 2345)
    was = file.stat()
    durable.rewrite(file, b"1", b"2")
    now = file.stat()
    assert file.read_bytes() == b"2"
    assert (now.st_mode, now.st_uid, now.st_gid) == (was.st_mode, was.st_uid, was.st_gid)
    assert names(tmp_path) == ["a.toml"]


def test_a_file_that_has_changed_is_not_rewritten_and_no_draft_is_left(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_bytes(b"somebody else's")
    with pytest.raises(durable.ChangedError, match="has changed since it was read"):
        durable.rewrite(file, b"1", b"2")
    assert file.read_bytes() == b"somebody else's"
    assert names(tmp_path) == ["a.toml"]


def test_a_file_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        durable.rewrite(tmp_path / "a.toml", b"1", b"2")
    assert names(tmp_path) == []


def test_a_file_for_its_owner_alone_is_so_even_if_a_draft_was_left_that_was_not(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    (tmp_path / "a.json.new").touch(0o644)
    durable.replace(file, b"1", 0o600)
    assert file.stat().st_mode & 0o777 == 0o600
