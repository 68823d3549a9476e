"""How long a server's files were when: written a line a look, thinned, and read whatever has happened to the file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.mechanism import logtimes
from sidecar.mechanism.logtimes import Look, Times


class Second:
    """A clock that goes on by a second whenever it is looked at."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture
def times(tmp_path: Path) -> Iterator[Times]:
    times = Times(tmp_path / "m.times", Second())
    times.begin()
    yield times


def test_only_what_has_changed_is_noted(times: Times) -> None:
    times.note((0, 0), (0, 0))
    times.note((5, 0), (0, 0))
    times.note((5, 0), (0, 0))
    times.note((5, 0), (5, 0))
    assert [(look.ends, look.bases) for look in times.read()] == [((0, 0), (0, 0)), ((5, 0), (0, 0)), ((5, 0), (5, 0))]


def test_another_goes_on_where_one_has_left_off(times: Times) -> None:
    times.note((5, 7), (0, 3))
    again = Times(times.path)
    assert again.last == times.last
    again.note((5, 7), (0, 3))
    assert len(again.read()) == 2


def test_a_clock_that_goes_back_does_not_go_back_here(times: Times) -> None:
    times.note((5, 0), (0, 0))
    back = Times(times.path, lambda: 1.0)
    back.note((6, 0), (0, 0))
    moments = [look.at_ms for look in back.read()]
    assert moments == sorted(moments)


def test_lines_that_make_no_sense_are_passed_over(times: Times) -> None:
    with times.path.open("ab") as file:
        file.write(b"\0\0\0\n12 3\n-1 0 0 0 0\nnonsense \xff\n" + b"9" * 50 + b" 0 0 0 0\n2000000 1 2 0 0\n12 3")
    assert times.read()[1:] == [Look(2_000_000, (1, 2), (0, 0))]


def test_without_a_file_there_are_none(tmp_path: Path) -> None:
    times = Times(tmp_path / "none.times")
    assert times.read() == []
    assert times.last.ends == (0, 0)


def test_a_long_file_is_thinned_and_still_names_its_run_and_its_end(
    times: Times, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logtimes, "MOST_BYTES", 4096)
    first = times.read()[0]
    for number in range(1, 500):
        times.note((number, number), (0, 0))
        assert times.path.stat().st_size <= logtimes.MOST_BYTES + 100
    looks = times.read()
    assert looks[0] == first
    assert looks[-1].ends == (499, 499)
    assert looks == sorted(looks, key=lambda look: look.at_ms)
    assert looks[-2].ends == (498, 498)  # the newest are not thinned


def test_who_reads_again_and_again_finds_what_anybody_finds(times: Times, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logtimes, "MOST_BYTES", 1000)
    reader = Times(times.path)
    for number in range(1, 200):
        times.note((number, 0), (0, 0))
        if number % 70 == 0:
            times.begin()
        if number % 3 == 0:
            with times.path.open("ab") as file:
                file.write(b"nonsense\n" if number % 2 else b"")
        if number % 7:
            assert reader.read() == Times(times.path).read()
    with times.path.open("ab") as file:
        file.write(b"3000000 9 9 0")  # and as it is being written
    before = reader.read()
    with times.path.open("ab") as file:
        file.write(b" 0\n")
    assert reader.read() == [*before, Look(3_000_000, (9, 9), (0, 0))]
    assert reader.read() is reader.read()  # nothing new is nothing to do


def test_half_a_line_on_a_full_disk_is_taken_back(times: Times, monkeypatch: pytest.MonkeyPatch) -> None:
    size = times.path.stat().st_size
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: write(descriptor, content[:4]))
    with pytest.raises(OSError, match="No space left"):
        times.note((1, 1), (0, 0))
    assert times.path.stat().st_size == size
    monkeypatch.undo()
    times.note((1, 1), (0, 0))
    assert times.read()[-1].ends == (1, 1)
