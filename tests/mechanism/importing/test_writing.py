"""Files put into a folder: all or none."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from sidecar.mechanism.importing.writing import WriteError, write

FILES = {"sidecar.toml": "a = 1\n", "models/m.toml": "b = 2\n"}


def content(folder: Path) -> dict[str, str]:
    """All files below it."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_they_are_written_with_their_folders(tmp_path: Path) -> None:
    assert write(tmp_path / "new" / "er", FILES) == [
        tmp_path / "new/er/sidecar.toml",
        tmp_path / "new/er/models/m.toml",
    ]
    assert content(tmp_path / "new" / "er") == FILES


def test_what_is_there_stays_unless_it_is_forced(tmp_path: Path) -> None:
    (tmp_path / "sidecar.toml").write_text("mine\n")
    with pytest.raises(WriteError, match=r"sidecar\.toml: there already; --force overwrites"):
        write(tmp_path, FILES)
    assert content(tmp_path) == {"sidecar.toml": "mine\n"}
    write(tmp_path, FILES, force=True)
    assert content(tmp_path) == FILES


def test_if_one_cannot_be_written_none_is(tmp_path: Path) -> None:
    (tmp_path / "sidecar.toml").write_text("mine\n")
    (tmp_path / "models").write_text("a file where a folder should be")
    with pytest.raises(WriteError, match="cannot be written"):
        write(tmp_path, FILES, force=True)
    assert content(tmp_path) == {"sidecar.toml": "mine\n", "models": "a file where a folder should be"}


def test_a_disk_that_is_full_changes_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for it: the second one does not fit."""
    (tmp_path / "a.toml").write_text("mine\n")
    pid = os.fork()
    if not pid:  # the limit would hold for this process for good
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write(tmp_path, {"a.toml": "small\n", "b.toml": "x" * 5000}, force=True)
        except WriteError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert content(tmp_path) == {"a.toml": "mine\n"}
