"""A server's two log files: kept short while it writes, and quoted when it fails."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import BinaryIO

import pytest

from sidecar.mechanism import serverlog
from sidecar.mechanism.redaction import Redactor
from sidecar.mechanism.serverlog import TAIL_BYTES, TAIL_LINES, ServerLog, forget, older


@pytest.fixture
def log(tmp_path: Path) -> ServerLog:
    return ServerLog(tmp_path / "logs", "qwen3-8b")


def run(log: ServerLog, out: bytes = b"", err: bytes = b"") -> None:
    """One run that writes and ends."""
    stdout, stderr = log.open()
    with stdout, stderr:
        stdout.write(out)
        stderr.write(err)


def test_a_run_writes_to_files_of_its_own(log: ServerLog, tmp_path: Path) -> None:
    run(log, b"out", b"err")
    assert (tmp_path / "logs" / "qwen3-8b.out.log").read_bytes() == b"out"
    assert (tmp_path / "logs" / "qwen3-8b.err.log").read_bytes() == b"err"
    assert (tmp_path / "logs").stat().st_mode & 0o777 == 0o700


def test_the_run_before_is_kept_and_no_more(log: ServerLog) -> None:
    for number in (b"1", b"2", b"3"):
        run(log, err=number)
    assert log.err.read_bytes() == b"3"
    assert log.previous.err.read_bytes() == b"2"
    assert len(list(log.err.parent.rglob("*.log"))) == 4


def test_what_was_cut_from_the_run_before_is_not_taken_for_the_new_ones(log: ServerLog) -> None:
    run(log, err=b"x" * 1000)
    log.look(100)
    run(log, err=b"second")
    assert older(log.previous.err).exists()
    assert not older(log.err).exists()
    run(log)
    assert not older(log.previous.err).exists()


def test_under_another_name_there_is_all_of_it_and_the_writer_goes_on(log: ServerLog) -> None:
    run(log, err=b"before\n")
    stdout, stderr = log.open()
    with stdout, stderr:
        stderr.write(b"x" * 200)
        log.look(100)
        new = log.renamed("new")
        stderr.write(b"more\n")
    assert (new.err.read_bytes(), older(new.err).exists()) == (b"more\n", True)
    assert new.now.times.last.bases == (0, 200)
    assert new.previous.err.read_bytes() == b"before\n"
    assert not log.now.exist()
    assert not log.previous.exist()
    log.look(100)  # somebody who has not heard of it yet
    assert not log.now.times.path.exists()


def test_what_a_name_had_before_becomes_the_run_before(log: ServerLog) -> None:
    new = ServerLog(log.out.parent, "new")
    run(new, err=b"an old run of the new name\n")
    assert log.renamed("new").err.read_bytes().startswith(b"an old run")  # there is nothing to come in its place
    run(log, err=b"the run\n")
    assert log.renamed("qwen3-8b").err.read_bytes() == b"the run\n"
    assert log.renamed("new").err.read_bytes() == b"the run\n"
    assert new.previous.err.read_bytes() == b"an old run of the new name\n"


def test_a_name_stays_in_the_folder(tmp_path: Path) -> None:
    log = ServerLog(tmp_path, "Qwen/../Qwen3:8B@main")
    run(log, b"x")
    assert log.out.parent == tmp_path
    assert {path.parent for path in tmp_path.rglob("*")} == {tmp_path}


def test_names_that_differ_have_files_that_differ(tmp_path: Path) -> None:
    names = ["a/b", "a_b", "a:b", "a@b"]
    assert len({ServerLog(tmp_path, name).err for name in names}) == len(names)


def test_a_file_within_the_limit_is_left_alone(log: ServerLog) -> None:
    run(log, b"x" * 100, b"y" * 100)
    log.look(100)
    assert log.err.read_bytes() == b"y" * 100
    assert len(list(log.err.parent.glob("*.log*"))) == 2


def test_a_file_over_the_limit_is_cut_and_its_last_half_kept(log: ServerLog) -> None:
    stdout, stderr = log.open()
    with stdout, stderr:
        stderr.write(b"old " * 50 + b"last" * 25)
        log.look(200)
        assert log.err.read_bytes() == b""
        assert log.err.with_name("qwen3-8b.err.log.1").read_bytes() == b"last" * 25
        stderr.write(b"goes on")  # the writer has the file open still: no hole of zeros may come of it
    assert log.err.read_bytes() == b"goes on"


def test_capping_before_the_first_run_is_harmless(log: ServerLog) -> None:
    log.out.parent.mkdir()
    log.look(10)
    assert log.tail() == []


def test_a_server_that_writes_without_end_takes_no_more_than_the_limit_and_a_half(log: ServerLog) -> None:
    stdout, stderr = log.open()
    with stdout, stderr:
        for _ in range(50):
            stderr.write(b"x" * 90)
            stdout.write(b"x" * 90)
            log.look(200)
            assert sum(path.stat().st_size for path in log.err.parent.glob("*.log*")) <= 2 * (200 + 100)


def test_lines_that_come_while_it_is_cut_are_kept(log: ServerLog, monkeypatch: pytest.MonkeyPatch) -> None:
    stdout, stderr = log.open()
    copied = serverlog._copy

    def copy_and_write(source: BinaryIO, copy: BinaryIO) -> None:
        copied(source, copy)
        if not late.closed:
            stderr.write(late.read())
            late.close()

    late = io.BytesIO(b"late\n")
    monkeypatch.setattr(serverlog, "_copy", copy_and_write)
    with stdout, stderr:
        stderr.write(b"x" * 200 + b"\n")
        log.look(100)
    assert older(log.err).read_bytes().endswith(b"x\nlate\n")
    assert log.now.times.last.bases == (0, 206)


def test_of_what_is_written_faster_than_it_is_copied_no_more_is_kept(
    log: ServerLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdout, stderr = log.open()
    copied = serverlog._copy

    def copy_and_write(source: BinaryIO, copy: BinaryIO) -> None:
        copied(source, copy)
        stderr.write(b"y" * 1000)

    monkeypatch.setattr(serverlog, "_copy", copy_and_write)
    with stdout, stderr:
        stderr.write(b"x" * 200)
        log.look(100)
    assert older(log.err).stat().st_size == 50
    assert log.err.stat().st_size == 0


def test_on_a_full_disk_a_log_is_cut_all_the_same_and_it_is_told(
    log: ServerLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(log, err=b"x" * 200)

    def full(source: BinaryIO, copy: BinaryIO) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(serverlog, "_copy", full)
    with pytest.raises(OSError, match="No space left"):
        log.look(100)
    assert log.err.read_bytes() == b""
    assert not older(log.err).exists()


def test_how_long_it_was_is_noted_whenever_it_has_grown(log: ServerLog) -> None:
    stdout, stderr = log.open()
    with stdout, stderr:
        for text in (b"12345", b"", b"6789"):
            stderr.write(text)
            log.look(1000)
        stderr.write(b"x" * 2000)
        log.look(1000)
        stderr.write(b"abc")
        log.look(1000)
    looks = [(look.ends, look.bases) for look in ServerLog(log.out.parent, "qwen3-8b").now.times.read()]
    assert looks == [
        ((0, 0), (0, 0)),
        ((0, 5), (0, 0)),
        ((0, 9), (0, 0)),
        ((0, 2009), (0, 2009)),
        ((0, 2012), (0, 2009)),
    ]


def test_a_cut_that_nobody_could_note_moves_the_place_on(log: ServerLog) -> None:
    run(log, err=b"x" * 100)
    log.look(1000)
    log.err.write_bytes(b"y" * 10)
    again = ServerLog(log.out.parent, "qwen3-8b")
    again.look(1000)
    assert (again.now.times.last.ends, again.now.times.last.bases) == ((0, 110), (0, 100))


def test_the_tail_is_the_last_lines_of_stderr(log: ServerLog) -> None:
    run(log, b"not this", b"\n".join(b"line %d  " % number for number in range(100)) + b"\n\n  \n")
    assert log.tail() == [f"line {number}" for number in range(100 - TAIL_LINES, 100)]


def test_the_tail_is_stdouts_where_stderr_is_silent(log: ServerLog) -> None:
    run(log, b"panic: no GPU\n", b"\n \n")
    assert log.tail() == ["panic: no GPU"]


def test_the_tail_of_nothing_is_nothing(log: ServerLog) -> None:
    run(log)
    assert log.tail() == []


def test_the_tail_of_one_endless_line_is_short(log: ServerLog) -> None:
    run(log, err=b"x" * 1_000_000)
    [line] = log.tail()
    assert len(line) <= 16 * 1024


def test_the_tail_does_not_begin_in_the_middle_of_a_key(log: ServerLog) -> None:
    hiding = ServerLog(log.out.parent, "qwen3-8b", Redactor({"A_KEY": "abcdefghijklmnop"}))
    run(hiding, err=b"key abcdefghijklmnop" + b"x" * (TAIL_BYTES - 8))
    [line] = hiding.tail()
    assert set(line) == {"x"}


def test_the_tail_survives_bytes_that_are_no_text(log: ServerLog) -> None:
    run(log, err=b"caf\xe9 \xff\n\x00\x1b[31mred\n")
    assert len(log.tail()) == 2
    assert log.tail()[0].startswith("caf")


def test_logs_of_models_that_are_long_gone_are_deleted_whole_and_nothing_else(tmp_path: Path) -> None:
    logs = {name: ServerLog(tmp_path, name) for name in ("a/declared", "gone", "gone.lately", "gone-too")}
    (tmp_path / "notes.txt").write_text("mine")
    for log in logs.values():
        for _ in range(2):
            run(log, err=b"x" * 200)
            log.look(100)
    for path in tmp_path.rglob("*.*"):
        os.utime(path, (1000, 1000))
    os.utime(logs["gone.lately"].previous.err, (3000, 3000))
    assert forget(tmp_path, ["a/declared"], 2000) == {"gone", "gone-too"}
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(("gone.e", "gone.o", "gone.t", "gone-"))]
    for name in ("a/declared", "gone.lately"):
        assert all(path.exists() for path in (*logs[name].now.streams, logs[name].now.times.path)), name
    assert (tmp_path / "notes.txt").exists()
    assert forget(tmp_path / "none", [], 2000) == set()
