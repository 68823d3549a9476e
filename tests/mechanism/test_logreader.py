"""Servers' lines are read in order, from any moment and place, whatever a server writes and whoever cuts its log."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest

from sidecar.mechanism import logreader
from sidecar.mechanism.logreader import Found, PatternError, Place, Wanted, matcher, news, read, stamp
from sidecar.mechanism.logrun import LINE_BYTES, Stream
from sidecar.mechanism.logtimes import Times
from sidecar.mechanism.redaction import Redactor
from sidecar.mechanism.serverlog import ServerLog, left_alone, older


class Server:
    """Writes to its log, while somebody looks at it, on a clock that is turned by hand."""

    def __init__(self, folder: Path) -> None:
        self.log = ServerLog(folder, "m")
        self.now = 1_000.0
        self.out: BinaryIO
        self.err: BinaryIO
        self.limit = 10**9
        self.log.now.times = Times(self.log.now.times.path, lambda: self.now)
        self.start()

    def start(self) -> None:
        self.now += 1
        self.log.now.times = Times(self.log.now.times.path, lambda: self.now)
        self.out, self.err = self.log.open()

    def says(self, err: str = "", out: str = "") -> None:
        """It writes, and a second later somebody looks."""
        self.err.write(err.encode())
        self.out.write(out.encode())
        self.now += 1
        self.log.look(self.limit)

    def close(self) -> None:
        self.out.close()
        self.err.close()


class Hiding(Redactor):
    """Calls what it is given for each line."""

    def __init__(self, hide: Callable[[str], str]) -> None:
        super().__init__({})
        self._hide = hide

    def __call__(self, text: str) -> str:
        return self._hide(text)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "logs")
    yield server
    server.close()


def texts(found: Found) -> list[str]:
    return [line.text for line in found.lines]


def numbered(first: int, last: int) -> str:
    return "".join(f"line {number}\n" for number in range(first, last))


def all_news(server: Server, place: Place, wanted: Wanted = Wanted()) -> tuple[list[str], Place, bool]:  # noqa: B008 - frozen
    """Until nothing comes any more."""
    seen, gone = [], False
    while (found := news(server.log, place, wanted)).lines:
        seen += texts(found)
        place, gone = found.place, gone or found.gone
    return seen, found.place, gone or found.gone


# --- what there is ----------------------------------------------------------------------------------------------------


def test_both_streams_are_merged_by_when_they_were_seen(server: Server) -> None:
    server.says(err="e1\n", out="o1\n")
    server.says(out="o2\n")
    server.says(err="e2\n")
    found = read(server.log, Wanted())
    assert [(line.stream, line.text, line.at) for line in found.lines] == [
        ("out", "o1", 1002.0),
        ("err", "e1", 1002.0),
        ("out", "o2", 1003.0),
        ("err", "e2", 1004.0),
    ]
    assert texts(read(server.log, Wanted(stream="err"))) == ["e1", "e2"]


def test_what_nobody_has_looked_at_yet_is_of_now(server: Server) -> None:
    server.err.write(b"fresh\n")
    [line] = read(server.log, Wanted()).lines
    assert abs(line.at - time.time()) < 60


def test_the_tail_is_of_all_that_is_wanted(server: Server) -> None:
    for first in range(0, 30_000, 1000):
        server.says(err=numbered(first, first + 1000))
    assert texts(read(server.log, Wanted(tail=3))) == ["line 29997", "line 29998", "line 29999"]
    assert texts(read(server.log, Wanted(tail=2, pattern="7$"))) == ["line 29987", "line 29997"]
    assert read(server.log, Wanted(tail=0)).lines == []
    assert not read(server.log, Wanted(tail=3)).gone


def test_since_leaves_out_what_was_seen_before(server: Server) -> None:
    for number in range(10):
        server.says(err=f"second {number}\n")
    assert texts(read(server.log, Wanted(since=1008.5))) == ["second 7", "second 8", "second 9"]
    assert texts(read(server.log, Wanted(since=5.0))) == [f"second {number}" for number in range(10)]
    assert texts(read(server.log, Wanted(since=2000.0))) == []


def test_a_line_that_was_begun_before_is_told_whole(server: Server) -> None:
    server.says(err="half a ")
    server.says(err="line\nnext\n")
    assert texts(read(server.log, Wanted(since=server.now))) == []
    assert texts(read(server.log, Wanted(since=server.now - 0.5))) == ["half a line", "next"]


def test_a_last_line_without_an_end_is_told_but_not_to_those_who_follow(server: Server) -> None:
    server.says(err="done\nloading 10")
    assert texts(read(server.log, Wanted())) == ["done", "loading 10"]
    found = read(server.log, Wanted(), whole=True)
    assert texts(found) == ["done"]
    server.says(err="0 %\n")
    assert texts(news(server.log, found.place, Wanted())) == ["loading 100 %"]


def test_the_run_before_is_kept_apart(server: Server) -> None:
    server.says(err="first run\n")
    server.close()
    server.start()
    server.says(err="second run\n")
    assert texts(read(server.log, Wanted())) == ["second run"]
    assert texts(read(server.log, Wanted(), previous=True)) == ["first run"]


def test_without_any_run_there_is_nothing(tmp_path: Path) -> None:
    log = ServerLog(tmp_path, "never")
    assert read(log, Wanted()) == Found([], [], Place())
    assert news(log, Place(), Wanted()) == Found([], [], Place())


def test_a_log_from_before_there_were_looks_is_read_as_well(tmp_path: Path) -> None:
    log = ServerLog(tmp_path, "old")
    log.err.write_text("an old line\n")
    assert texts(read(log, Wanted())) == ["an old line"]


# --- what servers write -----------------------------------------------------------------------------------------------


def test_ten_megabytes_in_a_line_are_shown_in_short_and_the_next_line_is_found(server: Server) -> None:
    server.says(err="x" * 10_000_000 + "\nnext\n")
    long, following = texts(read(server.log, Wanted()))
    assert (len(long), long[-6:], following) == (LINE_BYTES + 6, " [...]", "next")


@pytest.mark.parametrize("before", range(LINE_BYTES - 60, LINE_BYTES + 3, 15))
def test_no_part_of_a_key_stands_where_a_line_is_cut(server: Server, before: int) -> None:
    key = "".join(map(chr, range(ord("A"), ord("Z"))))
    server.log.hide = Redactor({"A_KEY": key})
    server.says(err=f"{key} {key}{'x' * (before - 2 * len(key))}{key}{'x' * 100}\n{'x' * (LINE_BYTES - 3)}{key}\n")
    for text in texts(read(server.log, Wanted())):
        assert text == text.lower(), text[-100:]


def test_bytes_that_are_no_text_are_replaced(server: Server) -> None:
    server.err.write(b"caf\xe9 \xff\x00\x1b[31mred\r\n\n")
    assert texts(read(server.log, Wanted())) == ["caf\ufffd \ufffd\x00\x1b[31mred", ""]


def test_too_many_lines_are_told_of(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.says(err=numbered(0, 100))
    monkeypatch.setattr(logreader, "LINES_MOST", 10)
    found = read(server.log, Wanted(since=1.0, tail=10))
    assert (texts(found)[0], found.gone) == ("line 90", True)
    monkeypatch.undo()
    monkeypatch.setattr(logreader, "BYTES_MOST", 50)
    found = read(server.log, Wanted(since=1.0))
    assert (len(texts(found)), found.gone) == (7, True)


# --- cuts -------------------------------------------------------------------------------------------------------------


def test_lines_are_read_over_a_cut_and_what_was_cut_away_is_told(server: Server) -> None:
    server.limit = 10_000
    for first in range(0, 3000, 100):
        server.says(err=numbered(first, first + 100))
    assert older(server.log.err).exists()
    kept = texts(read(server.log, Wanted()))
    first = int(kept[0].split()[1])
    assert kept == [f"line {number}" for number in range(first, 3000)]
    assert 0 < first < 2600
    assert read(server.log, Wanted(since=1.0)).gone
    [*_, (_, at)] = [(line.text, line.at) for line in read(server.log, Wanted(tail=50)).lines]
    assert at == server.now


def test_who_follows_hears_each_line_once_over_cuts_and_restarts(server: Server) -> None:
    server.limit = 10_000
    place, heard = Place(), list[str]()
    for first in range(0, 5000, 100):
        if first % 1000 == 500:
            server.close()
            server.start()
        server.says(err=numbered(first, first + 50))
        server.err.write(numbered(first + 50, first + 100).encode())
        more, place, gone = all_news(server, place)
        assert not gone
        heard += more
    assert heard == [f"line {number}" for number in range(5000)]


def test_a_log_that_is_cut_as_it_is_read_is_read_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for first in range(0, 50_000, 10_000):
        server.says(err=numbered(first, first + 10_000))
    lines = Stream.lines
    runs: list[int] = []

    def lines_and_cut(stream: Stream, begin: int, *, whole: bool = False) -> Iterator[tuple[int, bytes]]:
        runs.append(stream.index)
        if len(runs) == 1:
            server.log.look(200_000)
            server.says(err="afterwards\n")
        return lines(stream, begin, whole=whole)

    monkeypatch.setattr(Stream, "lines", lines_and_cut)
    heard = texts(read(server.log, Wanted(stream="err")))
    assert len(runs) == 2
    assert heard[-2:] == ["line 49999", "afterwards"]


def test_lines_of_before_and_after_a_cut_are_never_mixed(server: Server) -> None:
    server.limit = 400_000
    for text in "ab":
        server.says(err=f"{text * 99}\n" * 4_001)  # each is cut at once, and leaves as much as the other
    old = server.log.hide
    seen: list[str] = []

    def hide(text: str) -> str:
        seen.append(text)
        if len(seen) == 10:
            server.says(err=f"{'c' * 99}\n" * 4_001)
        return old(text)

    server.log.hide = Hiding(hide)
    lines = texts(read(server.log, Wanted(stream="err")))
    assert set(lines) == {"c" * 99}
    assert seen[0] == "b" * 99


def test_nobody_reads_while_a_log_is_cut(server: Server) -> None:
    server.says(err="one\n")
    with ThreadPoolExecutor(1) as threads:
        with left_alone(server.log.now, fcntl.LOCK_EX):
            reading = threads.submit(read, server.log, Wanted())
            with pytest.raises(TimeoutError):
                reading.result(0.05)
        assert texts(reading.result(5)) == ["one"]


def test_who_is_too_slow_is_told_of_the_gap_and_goes_on(server: Server) -> None:
    server.limit = 10_000
    server.says(err=numbered(0, 10))
    _, place, _ = all_news(server, Place())
    for first in range(10, 5000, 100):
        server.says(err=numbered(first, first + 100))
    more, _, gone = all_news(server, place)
    assert gone
    numbers = [int(line.split()[1]) for line in more]
    assert numbers == list(range(numbers[0], 5010))


def test_two_runs_later_the_gap_is_told(server: Server) -> None:
    server.says(err="first\n")
    _, place, _ = all_news(server, Place())
    for _ in range(2):
        server.close()
        server.start()
    server.says(err="third\n")
    assert all_news(server, place)[::2] == (["third"], True)


def test_portions_are_small_and_each_line_has_its_place(server: Server) -> None:
    server.says(err=numbered(0, 2500), out=numbered(0, 10))
    found = news(server.log, Place(), Wanted(stream="err"))
    assert len(found.lines) == len(found.places) == 1000
    again, _, _ = all_news(server, found.places[499], Wanted(stream="err"))
    assert again == [f"line {number}" for number in range(500, 2500)]
    assert Place.read(str(found.places[3])) == found.places[3]


@pytest.mark.parametrize("text", ["", "1", "1.2", "1.2.3.4", "a.b.c", "-1.0.0", "1.-2.0", "1.2.3 or 4"])
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no place in a log"):
        Place.read(text)


def test_the_stamp_changes_with_each_byte_and_each_run(server: Server) -> None:
    stamps = [stamp(server.log)]
    server.err.write(b"x")
    stamps.append(stamp(server.log))
    server.close()
    server.start()
    stamps.append(stamp(server.log))
    assert len(set(stamps)) == 3
    assert stamp(server.log) == stamps[-1]


# --- patterns ---------------------------------------------------------------------------------------------------------


def test_no_pattern_takes_long(server: Server) -> None:
    server.says(err="a" * 16_000 + "!\n")
    began = time.monotonic()
    for pattern in (r"(a+)+$", r"(a|a)*b", r"(.*)*x", r"(a*)*(a*)*(a*)*b"):
        assert read(server.log, Wanted(pattern=pattern)).lines == []
    assert time.monotonic() - began < 2.0


@pytest.mark.parametrize(
    "pattern", ["(", "(?=x)", r"(a)\1", "x{1001}", "((a{1,100}){1,100}){1,100}", "x" * 1001, "\ud800"]
)
def test_a_faulty_pattern_is_told(pattern: str) -> None:
    with pytest.raises(PatternError):
        matcher(pattern)


def test_a_search_that_takes_too_long_is_given_up_and_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.says(err=numbered(0, 100))
    monkeypatch.setattr(logreader, "SEARCH_S", 0.0)
    assert read(server.log, Wanted(pattern="7")).given_up
