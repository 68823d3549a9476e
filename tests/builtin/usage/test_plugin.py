"""Usage in SQLite: every request a row, and a database in trouble is nobody else's trouble."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from plugin_sdk import Duration, End, Outcome, PluginError
from plugin_sdk import Usage as Tokens
from plugin_sdk.kinds import is_inline
from plugin_sdk.services import Standalone
from sidecar.builtin.usage import Price, Settings, Usage, read, sqlite, writer
from sidecar.builtin.usage.books import PRUNE_ROWS
from sidecar.builtin.usage.rows import COLUMNS, row
from sidecar.builtin.usage.sqlite import AT_ONCE, connect, update
from sidecar.builtin.usage.tables import VERSION
from tests.support import until, write

OUTCOME = Outcome(
    model="qwen",
    variant="one-gpu",
    mode="chat",
    path="/v1/chat/completions",
    principal="anna",
    key="laptop",
    status=200,
    streamed=True,
    started_s=time.time(),
    duration_s=1.5,
    queue_s=0.25,
    first_byte_s=0.5,
    bytes_in=100,
    bytes_out=2000,
    usage=Tokens(
        input_tokens=7,
        output_tokens=4,
        cached_tokens=2,
        reasoning_tokens=3,
        output_tokens_per_s=40.5,
        response_model="qwen3",
    ),
    trace_id="0af7",
)


def outcome(**fields: Any) -> Outcome:
    """An outcome of now."""
    return Outcome(**{"model": "m", "started_s": time.time(), **fields})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "usage.db"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for as long as in earnest."""
    monkeypatch.setattr(writer, "FLUSH_S", 0.01)
    monkeypatch.setattr(sqlite, "BUSY_S", 0.01)


@pytest.fixture
async def plugin(path: Path) -> AsyncIterator[Usage]:
    made = Usage(Settings(path=str(path), queue=100), name="usage")
    await made.open()
    yield made
    await made.close()


def rows(path: Path) -> list[dict[str, Any]]:
    """Those that there are; none while the database is not there yet, or is being made."""
    try:
        return read(path)
    except (sqlite3.OperationalError, PluginError):
        return []


async def test_a_request_is_a_row_with_all_that_is_known(plugin: Usage, path: Path) -> None:
    plugin.record(OUTCOME)
    [found] = await until(lambda: rows(path), "the row is written")
    assert found == {
        "id": 1,
        "started_s": OUTCOME.started_s,
        "duration_s": 1.5,
        "queue_s": 0.25,
        "first_byte_s": 0.5,
        "principal": "anna",
        "key": "laptop",
        "model": "qwen",
        "variant": "one-gpu",
        "mode": "chat",
        "path": "/v1/chat/completions",
        "end": "ok",
        "status": 200,
        "code": "",
        "streamed": 1,
        "cold": 0,
        "input_tokens": 7,
        "output_tokens": 4,
        "cached_tokens": 2,
        "reasoning_tokens": 3,
        "input_tokens_per_s": None,
        "output_tokens_per_s": 40.5,
        "response_model": "qwen3",
        "bytes_in": 100,
        "bytes_out": 2000,
        "trace_id": "0af7",
        "node": platform.node(),
        "cost": None,
        "currency": "",
    }


async def test_what_is_not_known_is_null(plugin: Usage, path: Path) -> None:
    plugin.record(outcome(model="", end=End.REFUSED, status=401, code="missing_api_key"))
    [found] = await until(lambda: rows(path), "the row is written")
    unknown = {"first_byte_s", "cost", *Tokens.__struct_fields__}
    assert {name for name, value in found.items() if value is None} == unknown
    assert (found["end"], found["status"], found["code"]) == ("refused", 401, "missing_api_key")


async def test_rows_can_be_asked_for_by_condition(plugin: Usage, path: Path) -> None:
    for status in (200, 200, 503):
        plugin.record(outcome(status=status))
    await until(lambda: len(rows(path)) == 3, "the rows are written")
    assert [found["id"] for found in read(path, "status = ?", 503)] == [3]


def test_every_field_of_an_outcome_has_a_column() -> None:
    in_the_request_log = {"method", "client", "request_id"}  # nobody is billed by them
    fields = {*Outcome.__struct_fields__, *Tokens.__struct_fields__} - {"usage"} - in_the_request_log
    assert fields == COLUMNS.keys() - {"node", "cost", "currency"}
    assert len(row(OUTCOME)) == len(COLUMNS)


async def test_what_is_recorded_before_it_closes_is_written(path: Path) -> None:
    plugin = Usage(Settings(path=str(path)))
    await plugin.open()
    for _ in range(5000):
        plugin.record(OUTCOME)
    await plugin.close()
    await plugin.close()
    assert (len(read(path)), plugin.dropped) == (5000, 0)


@pytest.mark.parametrize("count", [1, AT_ONCE - 1, AT_ONCE, AT_ONCE + 1, 3 * AT_ONCE + 7])
async def test_several_at_once_become_a_row_each_in_their_order(path: Path, count: int) -> None:
    plugin = Usage(Settings(path=str(path)))
    await plugin.open()
    plugin.record_many([outcome(model=str(number), usage=Tokens(input_tokens=number)) for number in range(count)])
    await plugin.close()
    assert [(found["model"], found["input_tokens"]) for found in read(path)] == [(str(n), n) for n in range(count)]


async def test_of_several_at_once_those_that_fit_are_kept_and_the_others_counted(
    lock: sqlite3.Connection, path: Path
) -> None:
    plugin = Usage(Settings(path=str(path), queue=100), name="usage")
    await plugin.open()
    plugin.record_many([OUTCOME] * 130)
    assert plugin.dropped == 30
    plugin.record_many([])
    lock.execute("COMMIT")
    await plugin.close()
    assert (len(read(path)), plugin.dropped) == (100, 30)


async def test_more_than_go_into_one_transaction_are_written_before_it_closes(path: Path) -> None:
    plugin = Usage(Settings(path=str(path), queue=20_000))
    await plugin.open()
    plugin.record_many([OUTCOME] * (3 * writer.AT_ONCE - 1))
    await plugin.close()
    assert (len(read(path)), plugin.dropped) == (3 * writer.AT_ONCE - 1, 0)


async def test_many_do_not_wait_for_more_so_that_there_is_room_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "FLUSH_S", 600.0)
    plugin = Usage(Settings(path=str(path), queue=100))
    await plugin.open()
    plugin.record_many([OUTCOME] * 60)
    await until(lambda: len(rows(path)) == 60, "the rows are written")
    await plugin.close()


async def test_from_many_threads_at_once_every_outcome_becomes_one_row(path: Path) -> None:
    plugin = Usage(Settings(path=str(path)))
    await plugin.open()

    def some(number: int) -> None:
        for _ in range(20):
            plugin.record(outcome(model=f"m{number}"))

    await asyncio.gather(*(asyncio.to_thread(some, number) for number in range(50)))
    await plugin.close()
    counts: dict[str, int] = {}
    for found in read(path):
        counts[found["model"]] = counts.get(found["model"], 0) + 1
    assert counts == {f"m{number}": 20 for number in range(50)}


async def test_two_plugins_may_write_to_the_same_database_as_during_a_reload(path: Path) -> None:
    plugins = [Usage(Settings(path=str(path))) for _ in range(4)]
    await asyncio.gather(*(plugin.open() for plugin in plugins))
    for _ in range(100):
        for plugin in plugins:
            plugin.record(OUTCOME)
        await asyncio.sleep(0)
    await asyncio.gather(*(plugin.close() for plugin in plugins))
    assert len(read(path)) + sum(plugin.dropped for plugin in plugins) == 400
    assert len(read(path)) == 400


class WithState(Standalone):
    """Services with a state directory."""

    def __init__(self, state_dir: Path) -> None:
        self.folder = state_dir

    @property
    def state_dir(self) -> Path:
        return self.folder


async def test_without_settings_it_is_in_the_state_directory(tmp_path: Path) -> None:
    plugin = Usage(name="usage", services=WithState(tmp_path))
    await plugin.open()
    plugin.record(OUTCOME)
    await plugin.close()
    assert len(read(tmp_path / "usage.db")) == 1


def test_recording_runs_on_the_loop() -> None:
    assert is_inline(Usage.record)
    assert is_inline(Usage.record_many)


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def test_nothing_is_left_behind(path: Path) -> None:
    before = descriptors()
    for _ in range(5):
        plugin = Usage(Settings(path=str(path)))
        await plugin.open()
        plugin.record(OUTCOME)
        await plugin.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("usage")]
    assert descriptors() <= before


# --- databases in trouble -------------------------------------------------------------------------------------------


@pytest.fixture
def lock(path: Path) -> Iterator[sqlite3.Connection]:
    """Somebody else writes, and takes his time."""
    path.parent.mkdir()
    with closing(connect(path)) as database:
        update(database)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    yield other
    other.close()


async def test_a_locked_database_is_waited_for(
    lock: sqlite3.Connection, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = Usage(Settings(path=str(path)))
    await plugin.open()
    plugin.record(OUTCOME)
    await until(lambda: caplog.records, "the trouble is logged")
    plugin.record(OUTCOME)
    lock.execute("COMMIT")
    await until(lambda: len(rows(path)) == 2, "the rows are written")
    await plugin.close()
    assert plugin.dropped == 0
    assert len([record for record in caplog.records if "locked" in record.getMessage()]) == 1


async def test_prices_are_written_down_once_the_lock_is_gone(
    lock: sqlite3.Connection, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = Usage(Settings(path=str(path), prices=(Price(model="*", request=Decimal(1)),)))
    await plugin.open()
    await until(lambda: caplog.records, "the trouble is logged")
    lock.execute("COMMIT")
    plugin.record(OUTCOME)
    await until(lambda: rows(path), "the row is written")
    await plugin.close()
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT COUNT(*) FROM usage_prices").fetchone() == (1,)


async def test_what_a_locked_database_leaves_no_room_for_is_dropped_and_counted(
    lock: sqlite3.Connection, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = Usage(Settings(path=str(path), queue=100))
    await plugin.open()
    began = time.perf_counter()
    for _ in range(1000):
        plugin.record(OUTCOME)
    assert time.perf_counter() - began < 1
    lock.execute("COMMIT")
    await plugin.close()
    assert plugin.dropped >= 800  # a batch may have been on its way
    assert len(read(path)) + plugin.dropped == 1000
    assert any("were dropped so far" in record.getMessage() for record in caplog.records)


async def test_a_database_that_stays_locked_does_not_keep_it_from_closing(lock: sqlite3.Connection, path: Path) -> None:
    plugin = Usage(Settings(path=str(path)))
    await plugin.open()
    plugin.record(OUTCOME)
    await plugin.close()
    assert plugin.dropped == 1


async def test_a_full_database_drops_and_counts_and_goes_on_when_there_is_room(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = True

    def small(path: Path) -> sqlite3.Connection:
        database = connect(path)
        if full:
            database.execute("PRAGMA max_page_count = 8")
        return database

    monkeypatch.setattr(sqlite, "connect", small)
    plugin = Usage(Settings(path=str(path), queue=100))
    await plugin.open()
    for _ in range(2000):
        plugin.record(OUTCOME)
        await asyncio.sleep(0)
    await until(lambda: any("full" in record.getMessage() for record in caplog.records), "it is full")
    full = False
    os.unlink(path)  # noqa: PTH108 - ruff would have Path.unlink in a thread
    before = plugin.dropped
    assert before > 0
    await until(lambda: len(rows(path)) > 0, "rows are written again")
    plugin.record(OUTCOME)
    await plugin.close()
    assert len(read(path)) >= 1


async def test_a_database_that_somebody_removes_is_made_anew(plugin: Usage, path: Path) -> None:
    plugin.record(OUTCOME)
    await until(lambda: rows(path), "the row is written")
    for file in path.parent.iterdir():
        file.unlink()
    plugin.record(OUTCOME)
    await until(lambda: rows(path), "the row is written to a new one")


async def test_a_file_that_is_no_database_keeps_it_from_opening(tmp_path: Path) -> None:
    path = write(tmp_path, {"usage.db": "not a database at all" * 100}) / "usage.db"
    with pytest.raises(PluginError, match="file is not a database"):
        await Usage(Settings(path=str(path))).open()


async def test_a_place_where_nothing_can_be_keeps_it_from_opening() -> None:
    with pytest.raises(PluginError, match=r"/proc/none/usage\.db"):
        await Usage(Settings(path="/proc/none/usage.db")).open()


async def test_a_database_of_a_newer_version_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version = {VERSION + 1}")
    database.close()
    with pytest.raises(PluginError, match=f"has version {VERSION + 1}, and this program knows none above {VERSION}"):
        await Usage(Settings(path=str(path))).open()


async def test_names_and_counts_that_nobody_can_store_are_made_fit(plugin: Usage, path: Path) -> None:
    plugin.record(outcome(model="a\ud800b", usage=Tokens(input_tokens=10**30)))
    [found] = await until(lambda: rows(path), "the row is written")
    assert (found["model"], found["input_tokens"]) == ("a?b", 2**63 - 1)


async def test_an_outcome_that_cannot_be_stored_costs_no_other(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plugin = Usage(Settings(path=str(path)), name="usage")
    await plugin.open()
    for principal in ("anna", object(), "bert", None, "carl"):  # what waits when it closes is one batch
        plugin.record(outcome(principal=principal))
    await plugin.close()
    assert [found["principal"] for found in read(path)] == ["anna", "bert", "carl"]
    assert plugin.dropped == 2
    assert "1 outcomes were dropped so far: one cannot be stored: " in caplog.text


async def test_among_many_one_that_cannot_be_stored_costs_no_other(path: Path) -> None:
    plugin = Usage(Settings(path=str(path)), name="usage")
    await plugin.open()
    principals: list[Any] = [f"team-{number}" for number in range(3 * AT_ONCE)]
    principals[AT_ONCE + 5] = object()
    plugin.record_many([outcome(principal=principal, model="\ud800") for principal in principals])
    await plugin.close()
    kept = [principal for principal in principals if isinstance(principal, str)]
    assert [(found["principal"], found["model"]) for found in read(path)] == [(principal, "?") for principal in kept]
    assert plugin.dropped == 1


async def test_old_rows_are_forgotten(path: Path) -> None:
    path.parent.mkdir()
    database = connect(path)
    update(database)
    old, young = time.time() - 7200, time.time() - 10
    insert = "INSERT INTO requests SELECT NULL, ?, " + ", ".join("0" for _ in range(len(COLUMNS) - 1))
    with closing(database):
        database.executemany(insert, [(old,)] * (PRUNE_ROWS * 2 + 10) + [(young,)] * 5)
    plugin = Usage(Settings(path=str(path), retention=Duration(3600)))
    await plugin.open()
    plugin.record(OUTCOME)
    await until(lambda: len(rows(path)) == 6, "the old ones are gone")
    await plugin.close()


PROGRAM = """
import asyncio, sys, time
from plugin_sdk import Outcome
from sidecar.builtin.usage import Settings, Usage

async def main():
    plugin = Usage(Settings(path=sys.argv[1], queue=1_000_000))
    await plugin.open()
    while True:
        plugin.record(Outcome(model="m", started_s=time.time()))
        print(time.time(), flush=True)
        await asyncio.sleep(0.001)

asyncio.run(main())
"""


def test_a_kill_loses_no_more_than_the_last_second(path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(float(line))
            if said[-1] - said[0] > 2.5 and process.poll() is None:
                process.send_signal(signal.SIGKILL)
    written = [found["started_s"] for found in read(path)]
    assert written
    assert said[-1] - max(written) < 1.0
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT SUM(requests) FROM usage_totals").fetchone() == (len(written),)
    kept = [moment for moment in said if moment <= max(written)]
    assert len(written) >= len(kept)  # and nothing in between


async def test_what_goes_wrong_is_logged_under_the_plugins_name(
    lock: sqlite3.Connection, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = Usage(Settings(path=str(path)), name="books")
    await plugin.open()
    plugin.record(OUTCOME)
    await plugin.close()
    assert {record.name for record in caplog.records if record.levelno >= logging.ERROR} == {"sidecar.plugins.books"}
