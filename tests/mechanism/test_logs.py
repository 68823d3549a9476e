"""The sidecar's own log: one event a line whatever it holds, never in anybody's way, and never full of the same."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from opentelemetry.trace import SpanKind

from sidecar.mechanism import logs
from sidecar.mechanism.logfloods import BURST, MOST, Floods
from sidecar.mechanism.logformat import MESSAGE_CHARS, JsonFormatter, TextFormatter
from sidecar.mechanism.logs import LogOptions, Logs, levels
from sidecar.mechanism.logstderr import Captured
from sidecar.mechanism.logwriter import Writer
from sidecar.mechanism.sampling import ALWAYS
from sidecar.mechanism.spans import MutedStage
from sidecar.mechanism.traces import Traces
from tests.support import until

log = logging.getLogger("sidecar.test")


class Kept(logging.Handler):
    """Keeps records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def kept() -> Iterator[Kept]:
    handler = Kept()
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    yield handler
    log.removeHandler(handler)
    log.setLevel(logging.NOTSET)


def as_json(record: logging.LogRecord) -> dict[str, Any]:
    text = JsonFormatter().format(record)
    assert "\n" not in text
    line: dict[str, Any] = json.loads(text)
    return line


def as_text(record: logging.LogRecord) -> str:
    return TextFormatter().format(record).split(" ", 2)[2]


# --- the form ---------------------------------------------------------------------------------------------------------


def test_an_event_is_a_json_object_with_its_time_in_utc(kept: Kept) -> None:
    log.warning("%s fell over", "qwen", extra={"model": "qwen", "port": 41000})
    line = as_json(kept.records[0])
    assert line.pop("ts").endswith("Z")
    assert line == {
        "level": "warning",
        "logger": "sidecar.test",
        "message": "qwen fell over",
        "model": "qwen",
        "fields": {"port": 41000},
    }


def test_for_people_it_is_aligned_and_ends_with_pairs(kept: Kept) -> None:
    log.info("all is well", extra={"model": "a b", "took_s": 0.12345, "none": ""})
    assert as_text(kept.records[0]) == 'INFO    sidecar.test: all is well  model="a b" took_s=0.123 none=""'


def test_an_exception_is_told_with_its_type_and_stack(kept: Kept) -> None:
    try:
        raise OSError(28, "No space left on device")
    except OSError:
        log.exception("cannot write")
    told = as_json(kept.records[0])["exception"]
    assert (told["type"], told["message"]) == ("OSError", "[Errno 28] No space left on device")
    assert told["stack"].startswith("Traceback (most recent call last):\n")
    lines = as_text(kept.records[0]).splitlines()
    assert lines[0] == "ERROR   sidecar.test: cannot write"
    assert all(line.startswith("    ") for line in lines[1:])
    assert lines[-1] == "    OSError: [Errno 28] No space left on device"


def test_nothing_that_is_said_can_pretend_to_be_an_event() -> None:
    said = "x\n2026-01-01 00:00:00.000 INFO sidecar: all is well\r\x1b[2J\u2028\ud800"
    record = logging.LogRecord("sidecar.test", logging.INFO, "", 0, "it said: %s", (said,), None)
    first, second = as_text(record).splitlines()
    assert first == "INFO    sidecar.test: it said: x"
    assert second == "    2026-01-01 00:00:00.000 INFO sidecar: all is well\\r\\x1b[2J\\u2028\\ud800"
    assert as_json(record)["message"].startswith("it said: x\n2026")


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


@pytest.mark.parametrize(
    "value", [Unprintable(), {1: {2: object()}}, float("nan"), 2**80, b"\xff", "\udc80", {"a": 2**80}]
)
def test_whatever_is_handed_over_there_is_a_line(kept: Kept, value: object) -> None:
    log.info("odd", extra={"value": value})
    assert as_json(kept.records[0])["message"] == "odd"
    if not isinstance(value, Unprintable):
        assert as_text(kept.records[0]).startswith("INFO    sidecar.test: odd  value=")


def test_values_that_do_not_fit_the_text_are_told_so() -> None:
    record = logging.LogRecord("sidecar.test", logging.INFO, "", 0, "%d of %d", ("x",), None)
    assert as_json(record)["message"] == "'%d of %d' with 1 values, which do not fit: TypeError"


def test_a_long_message_is_cut_in_the_middle(kept: Kept) -> None:
    log.info("<%s>", "x" * 10_000_000)
    message = as_json(kept.records[0])["message"]
    assert len(message) < MESSAGE_CHARS + 100
    assert (message[0], message[-1]) == ("<", ">")


def test_lines_of_a_plugin_name_it(kept: Kept) -> None:
    record = logging.LogRecord("sidecar.plugins.keys", logging.INFO, "", 0, "hello", None, None)
    assert as_json(record)["plugin"] == "keys"


def test_what_a_plugin_says_of_a_request_has_the_ids_of_its_trace(kept: Kept) -> None:
    trace = Traces(ALWAYS, lambda _: None).begin((), "chat", "POST", "/v1/chat/completions")
    log.info("said")
    with trace.stage("auth", SpanKind.INTERNAL) as stage:
        inside = as_json(kept.records[0])
    with MutedStage():
        muted = as_json(kept.records[0])
    assert (inside["trace_id"], inside["span_id"]) == (trace.id, f"{stage.span_id:016x}")
    assert "trace_id" not in muted
    log.info("given", extra={"trace_id": "abc", "span_id": ""})
    assert as_json(kept.records[1])["trace_id"] == "abc"
    assert "span_id" not in as_json(kept.records[1])


# --- how much ---------------------------------------------------------------------------------------------------------


def test_levels_are_read_for_all_and_for_single_loggers() -> None:
    assert levels("warning, sidecar.plugins=DEBUG") == LogOptions(level="warning", levels={"sidecar.plugins": "debug"})
    assert levels("") == LogOptions()
    for faulty in ("loud", "=debug", "a=loud", "info;debug"):
        with pytest.raises(ValueError, match="is neither one of debug, info, warning, error nor LOGGER=LEVEL"):
            levels(faulty)


class Now:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def admitted(floods: Floods, records: list[logging.LogRecord]) -> int:
    return sum(floods.admits(record, record.getMessage()) for record in records)


def test_a_flood_of_bad_requests_is_a_few_lines_and_a_count(kept: Kept) -> None:
    for number in range(1000):
        log.warning("%s: bad request %d", "qwen", number, extra={"per_request": True, "model": "qwen"})
    for number in range(3):
        log.warning("%s: bad request %d", "owl", number, extra={"per_request": True, "model": "owl"})
    now = Now()
    floods = Floods(clock=now)
    assert admitted(floods, kept.records[:-3]) == BURST
    assert admitted(floods, kept.records[-3:]) == 2 + 1  # another model's are others
    assert floods.due() == []
    now.now += 61
    [told] = floods.due()
    assert told.getMessage() == f"{1000 - BURST} more like this within a minute were left out: qwen: bad request 0"
    assert (told.levelno, told.name) == (logging.WARNING, "sidecar.test")
    assert floods.suppressed == 1000 - BURST
    assert floods.due() == []
    assert admitted(floods, kept.records[:1]) == 1  # a new minute


def test_of_all_else_only_the_very_same_warnings_are_left_out(kept: Kept) -> None:
    for number in range(100):
        log.info("a step")
        log.debug("a detail", extra={"per_request": True})
        log.warning("the same")
        log.warning("number %d", number)
    assert admitted(Floods(), kept.records) == 100 + 100 + BURST + 100


def test_what_is_remembered_of_floods_is_bounded_and_nothing_is_left_untold(kept: Kept) -> None:
    floods = Floods()
    for _ in range(BURST + 7):
        log.warning("first")
    for number in range(MOST + 10):
        log.warning("number %d", number)
    admitted(floods, kept.records)
    assert [told.suppressed for told in floods.due()] == [7]  # type: ignore[attr-defined] # given as `extra`
    for _ in range(BURST + 1):
        log.warning("second")
    admitted(floods, kept.records[-BURST - 1 :])
    assert [told.suppressed for told in floods.due(all_of_them=True)] == [1]  # type: ignore[attr-defined] # as above


# --- writing ----------------------------------------------------------------------------------------------------------


class Pipe:
    """A pipe of one page."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, 4096)

    def read_all(self) -> bytes:
        """Until nobody can write any more."""
        with os.fdopen(self.reader, "rb") as file:
            return file.read()


def told(count: int) -> bytes:
    return b"%d lost\n" % count


def test_who_logs_never_waits_for_who_reads_and_what_is_lost_is_told_in_its_place() -> None:
    pipe = Pipe()
    writer = Writer(pipe.writer, told, lines=100)
    began = time.monotonic()
    for number in range(10_000):
        writer.put(b"line %d %s\n" % (number, b"x" * 90))
    assert time.monotonic() - began < 1.0
    assert writer.lost > 9_000
    read = threading.Thread(target=lambda: content.append(pipe.read_all()))
    content: list[bytes] = []
    read.start()
    writer.close(10)
    os.close(pipe.writer)
    read.join(10)
    lines = content[0].splitlines()
    numbers = [int(line.split()[1]) for line in lines if line.startswith(b"line")]
    assert numbers == sorted(numbers)
    assert sum(int(line.split()[0]) for line in lines if line.endswith(b" lost")) == writer.lost
    assert len(numbers) + writer.lost == 10_000


def test_large_lines_are_bounded_by_their_size() -> None:
    pipe = Pipe()
    writer = Writer(pipe.writer, told, size=1_000_000)
    for _ in range(100):
        writer.put(b"x" * 100_000)
    assert 80 <= writer.lost <= 91
    os.close(pipe.reader)  # and now nobody ever will read
    writer.close(10)
    assert writer.lost == 100
    os.close(pipe.writer)


def test_closing_does_not_wait_for_a_reader_that_never_reads() -> None:
    pipe = Pipe()
    writer = Writer(pipe.writer, told)
    writer.put(b"x" * 100_000)
    began = time.monotonic()
    writer.close(0.1)
    assert time.monotonic() - began < 5.0
    os.close(pipe.reader)  # the thread ends with a broken pipe
    writer.close(10)
    os.close(pipe.writer)


def test_a_full_disk_costs_lines_and_nothing_else_and_none_is_glued_to_the_next() -> None:
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123 - a device
        writer = Writer(full.fileno(), told)
        for _ in range(5):
            writer.put(b"x\n")
        writer.close(10)
    assert writer.lost == 5


async def test_a_descriptor_that_does_not_block_is_waited_for() -> None:
    pipe = Pipe()
    os.set_blocking(pipe.writer, False)
    writer = Writer(pipe.writer, told)
    for number in range(2_000):
        writer.put(b"%d\n" % number)
    content = b""
    while content.count(b"\n") < 2_000:
        content += os.read(pipe.reader, 65536)
    assert content.split() == [b"%d" % number for number in range(2_000)]
    writer.close(10)
    os.close(pipe.reader)
    os.close(pipe.writer)
    await until(lambda: "log" not in {thread.name for thread in threading.enumerate()}, "the thread ends")


def test_the_log_of_a_process_takes_in_warnings_and_what_nobody_has_caught(tmp_path: Path) -> None:
    script = """
import logging, sys, threading, warnings
from sidecar.mechanism.logs import LogOptions, Logs
class Odd:
    def __del__(self): raise KeyError("odd")
with Logs(LogOptions("json", "info", {"sidecar.x": "debug"})):
    logging.getLogger("sidecar.x").debug("seen")
    logging.getLogger("sidecar.y").debug("not seen")
    logging.getLogger("httpx").info("not seen")
    warnings.warn("old")
    print("printed\\nby a", end=" ", file=sys.stderr); print("plugin", file=sys.stderr); sys.stderr.write("no end")
    thread = threading.Thread(target=lambda: 1 / 0, name="worker")
    thread.start(); thread.join()
    del (odd := [Odd()])[:]
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["logger"] for line in lines] == [
        "sidecar.x",
        "py.warnings",
        *("sidecar.stderr", "sidecar.stderr"),
        *("sidecar", "sidecar"),
        "sidecar.stderr",
    ]
    assert [lines[index]["message"] for index in (2, 3, 6)] == ["printed", "by a plugin", "no end"]
    assert lines[4]["message"] == "the thread worker failed"
    assert lines[4]["exception"]["type"] == "ZeroDivisionError"
    assert lines[5]["exception"]["message"] == "'odd'"


def test_colours_are_for_terminals_and_for_those_who_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    master, terminal = os.openpty()
    said: list[str] = []
    for no_color in ("", "1"):
        monkeypatch.setenv("NO_COLOR", no_color)
        with Logs(LogOptions(), terminal):
            log.error("red")
            assert logs.counts() == logs.LogCounts()
        said.append(os.read(master, 1000).decode())
    os.close(master)
    os.close(terminal)
    assert "\x1b[31mERROR  \x1b[0m sidecar.test: red" in said[0]
    assert "\x1b" not in said[1]


def test_who_prints_to_a_pipe_whose_reader_has_gone_is_not_told() -> None:
    pipe = Pipe()
    with Logs(LogOptions(), pipe.writer):
        log.warning("before")
        click.echo("\x1b[1mbold\x1b[0m \udcff", err=True)
        log.warning("after")
        assert sys.stderr.fileno() == pipe.writer
        assert not sys.stderr.isatty()
        sys.stderr.write("x" * 100_000)
        os.close(pipe.reader)
    os.close(pipe.writer)
    assert not isinstance(sys.stderr, Captured)


def test_printing_is_in_order_with_the_log() -> None:
    pipe = Pipe()
    with Logs(LogOptions(), pipe.writer):
        log.warning("before")
        click.echo("between", err=True)
        log.warning("after")
    os.close(pipe.writer)
    first, second, third = pipe.read_all().splitlines()
    assert (first[-6:], second, third[-5:]) == (b"before", b"between", b"after")


def test_logging_is_left_as_it_was() -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers), sys.excepthook, logging.getLogger("httpx").level)
    with Logs(LogOptions("text", "debug", {"httpx": "debug"}), 2):
        assert root.level == logging.DEBUG
    assert (root.level, list(root.handlers), sys.excepthook, logging.getLogger("httpx").level) == before


def test_closed_streams_become_nobodys_file() -> None:
    child = os.fork()
    if child == 0:
        os.closerange(0, 3)
        logs.hold_standard_streams()
        logs.hold_standard_streams()
        held = [str(Path(f"/proc/self/fd/{number}").readlink()) for number in range(3)]
        os._exit(0 if held == [os.devnull] * 3 and os.get_inheritable(2) else 1)
    assert os.waitpid(child, 0)[1] == 0
