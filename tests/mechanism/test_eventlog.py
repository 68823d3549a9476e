"""Events on disk: bounded, private, and readable whatever happened to the file."""

from __future__ import annotations

import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sidecar.mechanism.eventlog import Event, EventLog


def event(seq: int, message: str = "") -> Event:
    """An event at a time that is as good as any."""
    return Event(seq=seq, at=1000.0 + seq, type="Started", model="m", message=message, first_at=1000.0 + seq)


@contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """The kernel writes up to there, and then says no: what a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_was_appended_is_read_by_the_next_one_in_order(tmp_path: Path) -> None:
    assert EventLog(tmp_path).read() == []
    EventLog(tmp_path).append([event(1, 'übel "quoted"\nsecond line'), event(3)])
    EventLog(tmp_path).append([event(2)])
    assert EventLog(tmp_path).read() == [event(1, 'übel "quoted"\nsecond line'), event(2), event(3)]
    assert (tmp_path / "events.jsonl").read_bytes().count(b"\n") == 3


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    log = EventLog(tmp_path, rotate_bytes=300)
    for seq in range(4):
        log.append([event(seq)])
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        "events.jsonl": 0o600,
        "events.jsonl.1": 0o600,
    }


def test_both_files_stay_below_their_size_and_the_newest_is_kept(tmp_path: Path) -> None:
    log = EventLog(tmp_path, rotate_bytes=10_000)
    for first in range(0, 3000, 7):
        log.append(event(seq) for seq in range(first, first + 7))
        assert all(path.stat().st_size <= 10_000 for path in tmp_path.iterdir())
    kept = log.read()
    assert kept == [event(seq) for seq in range(kept[0].seq, 3003)]
    assert len(kept) > 60  # at least one file full


def test_more_at_once_than_a_file_holds_is_written_in_portions(tmp_path: Path) -> None:
    log = EventLog(tmp_path, rotate_bytes=10_000)
    log.append(event(seq) for seq in range(1000))
    assert all(path.stat().st_size <= 10_000 for path in tmp_path.iterdir())
    assert log.read()[-1] == event(999)


def test_a_torn_last_line_is_left_out_and_never_glued_to_the_next(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = EventLog(tmp_path)
    log.append([event(1), event(2)])
    content = log.path.read_bytes()
    for cut in range(1, 40):
        log.path.write_bytes(content[:-cut])
        assert [found.seq for found in log.read()] == [1] if cut > 1 else [1, 2]
        log.append([event(3)])
        assert [found.seq for found in log.read()][-1] == 3
    assert "1 lines make no sense" in caplog.text


@pytest.mark.parametrize(
    "line",
    [b"\xff\xfe", b"[]", b'{"seq": -1, "at": 1, "type": "A"}', b'{"seq": 1e300, "at": 1, "type": "A"}', b"\0" * 9],
)
def test_lines_that_make_no_sense_hide_no_others(tmp_path: Path, line: bytes) -> None:
    log = EventLog(tmp_path)
    log.append([event(1)])
    with log.path.open("ab") as file:
        file.write(line + b"\n")
    log.append([event(2)])
    assert log.read() == [event(1), event(2)]


def test_lines_of_a_later_version_are_read_as_far_as_they_are_known(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.path.write_bytes(b'{"seq": 7, "at": 1.5, "type": "Dreamt", "mood": "good"}\n')
    assert log.read() == [Event(seq=7, at=1.5, type="Dreamt")]


def test_a_file_that_has_grown_huge_is_read_from_its_end_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    log = EventLog(tmp_path, rotate_bytes=1000)
    log.path.write_bytes(b"x\n" * 10_000_000)
    EventLog(tmp_path, rotate_bytes=10**9).append([event(1)])
    assert log.read() == [event(1)]


def test_a_disk_that_fills_in_mid_line_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append([event(1)])
    before = log.path.read_bytes()
    with files_no_longer_than(len(before) + 50), pytest.raises(OSError, match="File too large"):
        log.append([event(2), event(3)])
    assert log.path.read_bytes() == before
    log.append([event(2), event(3)])
    assert log.read() == [event(1), event(2), event(3)]


def test_no_room_at_all_is_an_error_and_not_the_end(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    log = EventLog(tmp_path)
    assert log.read() == []
    with pytest.raises(OSError, match="No space left"):
        log.append([event(1)])
