"""The request log: a line for each request, in the sidecar's own log or in a file that is put aside in time."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from plugin_sdk import ByteSize, Duration, End, Outcome, Usage
from plugin_sdk.testing.host import Host
from sidecar.builtin import rotating
from sidecar.builtin.log import Log, Settings
from sidecar.builtin.rotating import RotatingFile, Rotation
from sidecar.mechanism.logformat import JsonFormatter, TextFormatter

OUTCOME = Outcome(
    model="qwen",
    variant="one-gpu",
    mode="chat",
    method="POST",
    path="/v1/chat/completions",
    client="192.0.2.7",
    principal="team-a",
    status=200,
    cold=True,
    started_s=1_700_000_000.25,
    duration_s=1.23456789,
    first_byte_s=0.5,
    queue_s=0.25,
    bytes_in=100,
    bytes_out=2000,
    usage=Usage(input_tokens=7, output_tokens=4),
    trace_id="0af7",
    request_id="req-17",
    key="laptop",
)
TOLD = {
    "time": "2023-11-14T22:13:20.250000Z",
    "trace_id": "0af7",
    "request_id": "req-17",
    "principal": "team-a",
    "key": "laptop",
    "model": "qwen",
    "variant": "one-gpu",
    "mode": "chat",
    "method": "POST",
    "path": "/v1/chat/completions",
    "status": 200,
    "end": "ok",
    "code": "",
    "streamed": False,
    "cold": True,
    "queue_s": 0.25,
    "first_byte_s": 0.5,
    "duration_s": 1.234568,
    "bytes_in": 100,
    "bytes_out": 2000,
    "input_tokens": 7,
    "output_tokens": 4,
    "cached_tokens": 0,
    "reasoning_tokens": 0,
}
REFUSED = Outcome(model="", end=End.REFUSED, status=401, code="missing_api_key", method="GET", path="/v1/models")


def logged(caplog: pytest.LogCaptureFixture, outcome: Outcome, settings: Settings | None = None) -> logging.LogRecord:
    """What goes to the sidecar's own log."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "sidecar.plugins.audit"):
        Log(settings or Settings(), name="audit").record_many([outcome])
    [record] = caplog.records
    assert record.name == "sidecar.plugins.audit"
    return record


async def written(folder: Path, *outcomes: Outcome, **settings: Any) -> list[str]:
    """The lines of a file of its own."""
    plugin = Log(Settings(path=str(folder / "requests.log"), **settings))
    await plugin.open()
    plugin.record_many(outcomes)
    await plugin.close()
    return (folder / "requests.log").read_text(encoding="utf-8").removesuffix("\n").split("\n")


# --- in the sidecar's own log -----------------------------------------------------------------------------------------


def test_without_a_file_of_its_own_it_is_in_the_sidecars_log_in_the_format_of_that(
    caplog: pytest.LogCaptureFixture,
) -> None:
    record = logged(caplog, OUTCOME)
    line = json.loads(JsonFormatter().format(record))
    fields = {name: value for name, value in TOLD.items() if value not in ("", None)}
    for common in ("time", "model", "trace_id"):
        del fields[common]
    assert line.pop("ts")
    assert line == {
        "level": "info",
        "logger": "sidecar.plugins.audit",
        "message": "POST /v1/chat/completions 200",
        "trace_id": "0af7",
        "model": "qwen",
        "plugin": "audit",
        "fields": fields,
    }
    text = TextFormatter().format(record)
    assert text.endswith("input_tokens=7 output_tokens=4 cached_tokens=0 reasoning_tokens=0")
    assert (
        " POST /v1/chat/completions 200  trace_id=0af7 model=qwen request_id=req-17 principal=team-a key=laptop "
        in text
    )


def test_what_did_not_happen_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    text = TextFormatter().format(logged(caplog, REFUSED))
    assert (
        " GET /v1/models 401  method=GET path=/v1/models status=401 end=refused code=missing_api_key streamed=False "
        in text
    )
    assert "tokens" not in text
    assert "first_byte_s" not in text


def test_where_nobody_wants_to_read_it_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "sidecar.plugins.audit"):
        Log(name="audit").record_many([OUTCOME])
    assert not caplog.records


# --- in a file --------------------------------------------------------------------------------------------------------


async def test_a_file_has_an_object_a_line_with_the_same_names_in_each(tmp_path: Path) -> None:
    first, second = map(json.loads, await written(tmp_path, OUTCOME, REFUSED))
    assert first == TOLD
    assert second.keys() == first.keys()
    assert (second["first_byte_s"], second["input_tokens"], second["code"]) == (None, None, "missing_api_key")


def test_its_names_are_those_that_are_documented() -> None:
    readme = (Path(__file__).resolve().parents[2] / "manifests" / "README.md").read_text(encoding="utf-8")
    listed = readme.partition("**The request log** is the plugin `log`: ")[2].partition(". Bodies")[0]
    assert re.findall(r"`(\w+)`", listed) == list(TOLD)


async def test_for_people_it_has_pairs(tmp_path: Path) -> None:
    [line] = await written(tmp_path, OUTCOME, format="text")
    assert line == (
        "2023-11-14T22:13:20.250000Z trace_id=0af7 request_id=req-17 principal=team-a key=laptop model=qwen "
        "variant=one-gpu mode=chat method=POST path=/v1/chat/completions status=200 end=ok streamed=False cold=True "
        "queue_s=0.25 first_byte_s=0.5 duration_s=1.234568 bytes_in=100 bytes_out=2000 input_tokens=7 "
        "output_tokens=4 cached_tokens=0 reasoning_tokens=0"
    )


async def test_the_clients_address_is_told_only_if_that_is_wanted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [line] = await written(tmp_path, OUTCOME, client=True)
    assert json.loads(line)["client"] == "192.0.2.7"
    assert "192.0.2.7" not in TextFormatter().format(logged(caplog, OUTCOME))


@pytest.mark.parametrize(
    "name", ["a\nprincipal=root", "a principal=root", "a\u2028b", "a\x1b[2K", "'a'", '"a"', "a\\n", "\ud800"]
)
async def test_no_name_can_pretend_to_be_a_line_or_a_pair(name: str, tmp_path: Path) -> None:
    [line] = await written(tmp_path, msgspec.structs.replace(OUTCOME, principal=name), format="text")
    shown = name if name.isascii() or name == "a\u2028b" else "\\ud800"
    assert f" principal={shown!a} key=laptop " in line
    assert line.isprintable()
    (tmp_path / "requests.log").unlink()
    [line] = await written(tmp_path, msgspec.structs.replace(OUTCOME, principal=name))
    assert json.loads(line)["principal"] in (name, "\\ud800")


async def test_a_server_may_count_anything(tmp_path: Path) -> None:
    usage = Usage(input_tokens=10**30, output_tokens=-1)
    [line] = await written(tmp_path, msgspec.structs.replace(OUTCOME, usage=usage, principal="\ud800"))
    assert (json.loads(line)["input_tokens"], json.loads(line)["output_tokens"]) == (None, -1)


async def test_a_relative_path_is_in_the_state_directory(tmp_path: Path) -> None:
    host = Host()
    plugin = Log(Settings(path="logs/requests.jsonl"), services=host)
    await plugin.open()
    await plugin.close()
    assert (host.state_dir / "logs" / "requests.jsonl").stat().st_mode & 0o777 == 0o640
    await host.close()


async def test_a_path_that_cannot_be_written_keeps_it_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    plugin = Log(Settings(path=str(tmp_path / "file" / "requests.log")))
    with pytest.raises(OSError, match="File exists"):
        await plugin.open()
    await plugin.close()


async def test_a_full_disk_is_counted_and_raised_and_costs_what_was_to_be_written_and_no_more() -> None:
    host = Host()
    plugin = Log(Settings(path="/dev/full"), services=host)
    await plugin.open()
    with pytest.raises(OSError, match="No space left"):
        plugin.record_many([OUTCOME, OUTCOME])
    await plugin.close()
    assert host.metrics.counts["lost"] == 2


@pytest.mark.parametrize("given", [{"keep": -1}, {"keep": 1001}, {"rotate_size": ByteSize(-1)}])
def test_settings_that_make_no_sense_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected 0 to 1000 files|cannot be less than 0"):
        Settings(**given)


# --- putting aside ----------------------------------------------------------------------------------------------------


def lines_of(path: Path) -> list[int]:
    return [int(line.split()[1]) for line in path.read_text().splitlines()]


def line(number: int, time: str = "2026-01-01T00:00:00Z") -> bytes:
    return f"{time} {number}\n".encode()


def test_a_file_that_would_grow_too_large_is_put_aside_and_so_many_are_kept(tmp_path: Path) -> None:
    file = RotatingFile(tmp_path / "r", Rotation(100, 0, 2))
    for number in range(20):
        file.append(line(number))
    file.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r", "r.1", "r.2"]
    assert lines_of(tmp_path / "r.2") + lines_of(tmp_path / "r.1") + lines_of(tmp_path / "r") == list(range(8, 20))
    assert all(path.stat().st_size <= 100 for path in tmp_path.iterdir())


def test_with_none_to_keep_it_begins_anew(tmp_path: Path) -> None:
    file = RotatingFile(tmp_path / "r", Rotation(100, 0, 0))
    for number in range(20):
        file.append(line(number))
    file.close()
    assert [path.name for path in tmp_path.iterdir()] == ["r"]
    assert lines_of(tmp_path / "r") == [16, 17, 18, 19]


def test_a_batch_larger_than_a_file_may_be_is_written_whole(tmp_path: Path) -> None:
    file = RotatingFile(tmp_path / "r", Rotation(100, 0, 5))
    file.append(b"".join(map(line, range(50))))
    file.append(line(50))
    file.close()
    assert lines_of(tmp_path / "r.1") == list(range(50))


def test_age_counts_from_the_first_line_over_restarts(tmp_path: Path) -> None:
    now = 1_767_225_600.0  # 2026-01-01
    first = RotatingFile(tmp_path / "r", Rotation(0, 3600, 5), lambda: now)
    first.append(line(1))
    first.close()
    second = RotatingFile(tmp_path / "r", Rotation(0, 3600, 5), lambda: now + 3000)
    second.append(line(2))
    second.close()
    third = RotatingFile(tmp_path / "r", Rotation(0, 3600, 5), lambda: now + 3700)
    third.append(line(3, "2026-01-01T01:01:40Z"))
    third.append(line(4))
    third.close()
    assert lines_of(tmp_path / "r.1") == [1, 2]
    assert lines_of(tmp_path / "r") == [3, 4]


def test_what_logrotate_has_moved_or_somebody_has_removed_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "r"
    file = RotatingFile(path, Rotation(0, 0, 5))
    file.append(line(1))
    path.rename(tmp_path / "moved")
    file.append(line(2))
    assert (lines_of(tmp_path / "moved"), lines_of(path)) == ([1], [2])
    path.unlink()
    file.append(line(3))
    file.close()
    assert lines_of(path) == [3]


def write_many(path: Path, first: int) -> None:
    file = RotatingFile(path, Rotation(1000, 0, 1000))
    for number in range(first, first + 300):
        file.append(line(number))
    file.close()


def test_a_pipe_is_written_to_and_one_that_nobody_reads_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "r")
    monkeypatch.setattr(rotating, "PATIENCE_MS", 1)
    reader = os.open(tmp_path / "r", os.O_RDONLY | os.O_NONBLOCK)
    file = RotatingFile(tmp_path / "r", Rotation(100, 1, 2))
    file.append(b"".join(map(line, range(50))))
    assert os.read(reader, 10_000) == b"".join(map(line, range(50)))
    with pytest.raises(OSError, match="nobody reads"):
        file.append(line(1) * 10_000)
    assert set(os.read(reader, 2**20).splitlines(keepends=True)) == {line(1)}
    file.append(line(2))
    assert os.read(reader, 10_000) == line(2)
    file.close()
    os.close(reader)
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_half_a_batch_is_not_taken_back_when_another_has_written_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = RotatingFile(tmp_path / "r", Rotation(0, 0, 1))
    file.append(line(1))
    write = os.write

    def half(descriptor: int, content: bytes) -> int:
        written = write(descriptor, content[:5])
        with (tmp_path / "r").open("ab") as other:
            other.write(line(7))
        return written

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OSError, match="No space left"):
        file.append(line(2))
    monkeypatch.undo()
    file.close()
    assert line(7) in (tmp_path / "r").read_bytes()


def test_several_writers_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(tmp_path / "r", 1000 * number)) for number in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
    numbers = sorted(number for path in tmp_path.iterdir() for number in lines_of(path))
    assert numbers == [*range(300), *range(1000, 1300)]


def test_half_a_batch_on_a_full_disk_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = RotatingFile(tmp_path / "r", Rotation(0, 0, 1))
    file.append(line(1))
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: write(descriptor, content[:5]))
    with pytest.raises(OSError, match="No space left"):
        file.append(line(2))
    monkeypatch.undo()
    file.append(line(3))
    file.close()
    assert lines_of(tmp_path / "r") == [1, 3]


def test_the_age_is_a_duration() -> None:
    assert Settings(rotate_age=Duration.parse("1d")).rotate_age == Duration(86_400)
