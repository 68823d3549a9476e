"""What real processes have read of a real file is told, however they read it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sidecar.mechanism import procfs
from sidecar.mechanism.loading import Loading
from sidecar.mechanism.procfs import Process
from tests.servers import READER

MB = 2**20
SIZE = 8 * MB


class Reader:
    """`tests.servers.reader` on a file."""

    def __init__(self, program: subprocess.Popen[str]) -> None:
        self._program = program
        self._said("at 0")
        found = procfs.process(program.pid)
        assert found is not None
        self.process: Process = found

    def to(self, place: int) -> None:
        assert self._program.stdin is not None
        self._program.stdin.write(f"{place}\n")
        self._program.stdin.flush()
        self._said(f"at {place}")

    def _said(self, what: str) -> None:
        assert self._program.stdout is not None
        assert self._program.stdout.readline() == f"{what}\n"


@contextmanager
def reading(path: Path, how: str) -> Iterator[Reader]:
    with subprocess.Popen(
        [sys.executable, READER, str(path), how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        try:
            yield Reader(program)
        finally:
            program.kill()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "m 1.gguf"  # with a space, which /proc does not escape
    path.write_bytes(b"\1" * SIZE)
    return path


def eager(loading: Loading) -> Loading:
    """One that looks whenever it is asked."""
    loading._not_before = 0.0
    return loading


@pytest.mark.parametrize("how", ["mmap", "read", "pread"])
def test_what_was_read_of_the_model_grows_as_it_is_read(file: Path, how: str) -> None:
    loading = Loading(lambda: {str(file): SIZE})
    with reading(file, how) as reader:
        seen = []
        for place in (0, SIZE // 4, SIZE // 2, SIZE):
            if place:
                reader.to(place)
            found = eager(loading).look([reader.process])
            assert found.model == SIZE
            seen.append((found.model_read or 0) / SIZE)
        assert found.disk is not None
    assert seen == pytest.approx([0, 0.25, 0.5, 1], abs=0.02)  # the kernel maps a few pages more than are touched
    assert eager(loading).look([]).model_read == pytest.approx(SIZE, abs=SIZE // 50)  # it stays when the reader is gone


def test_the_process_that_has_come_furthest_counts(file: Path) -> None:
    loading = Loading(lambda: {str(file): SIZE})
    with reading(file, "read") as ahead, reading(file, "read") as behind:
        ahead.to(SIZE // 2)
        behind.to(SIZE // 4)
        assert loading.look([ahead.process, behind.process]).model_read == SIZE // 2


def test_who_reads_something_else_has_not_been_seen_to_read_the_model(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"\1" * SIZE)
    loading = Loading(lambda: {str(file): SIZE})
    with reading(other, "read") as reader:
        reader.to(SIZE)
        found = loading.look([reader.process])
    assert (found.model, found.model_read) == (SIZE, None)
    assert found.read >= SIZE


def test_without_a_model_there_is_only_what_was_read() -> None:
    found = Loading(dict).look([])
    assert (found.model, found.model_read, found.read, found.disk) == (0, None, 0, None)


def test_a_process_that_has_ended_tells_nothing_and_breaks_nothing(file: Path) -> None:
    with reading(file, "mmap") as reader:
        gone = reader.process
    assert Loading(lambda: {str(file): SIZE}).look([gone]).model_read is None


def test_files_are_looked_for_once_and_looks_take_a_share_of_the_time_at_most(file: Path) -> None:
    asked = []

    def find() -> dict[str, int]:
        asked.append(1)
        return {str(file): SIZE}

    loading = Loading(find)
    first = loading.look([])
    assert loading.look([]) is first  # too soon
    eager(loading).look([])
    assert len(asked) == 1
