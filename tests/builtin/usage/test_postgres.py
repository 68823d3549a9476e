"""A PostgreSQL server that is not there, dies, hangs, and comes back."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from plugin_sdk import PluginError, Secret
from sidecar.builtin.usage import Settings, Usage, postgres, read, writer
from sidecar.builtin.usage.sqlite import AT_ONCE
from tests.builtin.usage.samples import outcome, recorded, rows, total
from tests.builtin.usage.server import Server
from tests.support import until


@pytest.fixture
def mortal(server: Server) -> Iterator[Server]:
    """The server, which a test may kill."""
    yield server
    if server.process is None or server.process.poll() is not None:
        server.start()


@pytest.fixture
def settings(mortal: Server) -> Settings:
    """A database that is empty, on a server that runs."""
    mortal.ask("DROP SCHEMA public CASCADE")
    mortal.ask("CREATE SCHEMA public")
    return Settings(dsn=Secret(mortal.dsn()), node="here", queue=1000)


def count(server: Server) -> int:
    """The rows in the database."""
    [[found]] = server.ask("SELECT COUNT(*) FROM usage_requests")
    return int(found)


async def opened(settings: Settings) -> Usage:
    plugin = Usage(settings, name="usage")
    await plugin.open()
    return plugin


async def test_all_columns_are_as_they_are_in_sqlite(settings: Settings, mortal: Server, tmp_path: Path) -> None:
    one = outcome(tokens=(7, 4), duration_s=1.5, queue_s=0.25, first_byte_s=0.5, streamed=True, trace_id="0af7")
    await recorded(settings, [one])
    await recorded(Settings(path=str(tmp_path / "usage.db"), node="here"), [one])
    [in_file] = read(tmp_path / "usage.db")
    names = ", ".join(f'"{name}"' for name in in_file)
    [on_server] = mortal.ask(f"SELECT {names} FROM usage_requests")  # noqa: S608 - names of columns
    assert on_server == tuple(in_file.values())


async def test_a_server_that_dies_and_comes_back_costs_no_row_and_nobody_waits(
    settings: Settings, mortal: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    plugin = await opened(settings)
    plugin.record_many([outcome(tokens=(1, 0))] * 10)
    await until(lambda: count(mortal) == 10, "they are written")
    await asyncio.to_thread(mortal.kill)
    began = time.perf_counter()
    for _ in range(500):
        plugin.record(outcome(tokens=(1, 0)))
    assert time.perf_counter() - began < 0.5
    await until(lambda: "cannot be written" in caplog.text, "the trouble is told")
    await asyncio.to_thread(mortal.start)
    await until(lambda: count(mortal) == 510, "all are written")
    await until(lambda: "can be written again" in caplog.text, "that is told, too")
    await plugin.close()
    assert plugin.dropped == 0
    assert (await total(settings)).input_tokens == 510


async def test_what_there_is_no_room_for_meanwhile_is_dropped_and_counted(settings: Settings, mortal: Server) -> None:
    plugin = await opened(settings)
    await asyncio.to_thread(mortal.kill)
    for _ in range(15):
        plugin.record_many([outcome()] * 100)
    assert plugin.dropped == 500
    await asyncio.to_thread(mortal.start)
    await until(lambda: count(mortal) == 1000, "what was kept is written")
    await plugin.close()


async def test_a_server_that_is_not_there_yet_is_waited_for(settings: Settings, mortal: Server) -> None:
    await asyncio.to_thread(mortal.stop)
    plugin = await opened(settings)
    plugin.record_many([outcome()] * (3 * AT_ONCE))
    await asyncio.to_thread(mortal.start)
    await until(lambda: count_if_any(mortal) == 3 * AT_ONCE, "they are written")
    await plugin.close()


def count_if_any(server: Server) -> int:
    try:
        return count(server)
    except psycopg.errors.UndefinedTable:
        return 0


async def test_a_server_that_never_comes_does_not_keep_it_from_closing(settings: Settings, mortal: Server) -> None:
    await asyncio.to_thread(mortal.stop)
    plugin = await opened(settings)
    plugin.record_many([outcome()] * 7)
    began = time.perf_counter()
    await plugin.close()
    assert time.perf_counter() - began < 5
    assert plugin.dropped == 7


async def test_a_server_that_hangs_keeps_nobody_waiting(
    settings: Settings, mortal: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = await opened(settings)
    plugin.record(outcome())
    await until(lambda: count(mortal) == 1, "the first is written")
    [[backend]] = mortal.ask("SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'sidecar usage%'")
    os.kill(backend, signal.SIGSTOP)
    try:
        began = time.perf_counter()
        for _ in range(30):
            plugin.record_many([outcome()] * 100)
            await asyncio.sleep(0)
        assert time.perf_counter() - began < 0.5
        assert plugin.dropped >= 1000
        monkeypatch.setattr(writer, "CLOSE_S", 0.2)
        await plugin.close()
        assert "because the database hangs" in caplog.text
    finally:
        os.kill(backend, signal.SIGCONT)
    thread = plugin._writer._thread
    assert thread is not None
    await asyncio.to_thread(thread.join, 10)
    assert count(mortal) + plugin.dropped == 3001


async def test_a_connection_that_breaks_is_made_anew(settings: Settings, mortal: Server) -> None:
    plugin = await opened(settings)
    for number in range(1, 6):
        plugin.record(outcome())
        await until(lambda: count(mortal) == number, "it is written")  # noqa: B023 - called within the turn
        mortal.ask(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'sidecar usage%'"
        )
    await plugin.close()
    assert plugin.dropped == 0


@pytest.mark.parametrize("committed", [True, False])
async def test_a_commit_of_which_nobody_knows_is_found_out_about(
    settings: Settings, mortal: Server, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    """The connection breaks in the moment of the commit: before the server has it, or before its answer has come."""
    broken: list[bool] = []
    decisive = postgres.Postgres._decisive

    def breaking(self: postgres.Postgres) -> Any:
        return _breaking(self, decisive, broken, committed=committed)

    monkeypatch.setattr(postgres.Postgres, "_decisive", breaking)
    plugin = await opened(settings)
    plugin.record_many([outcome(tokens=(1, 0))] * 20)
    await until(lambda: broken, "it breaks")
    plugin.record_many([outcome(tokens=(1, 0))] * 5)
    await until(lambda: count(mortal) == 25, "all are written once")
    await plugin.close()
    assert (count(mortal), plugin.dropped) == (25, 0)
    assert (await total(settings)).input_tokens == 25


def _breaking(database: postgres.Postgres, decisive: Any, broken: list[bool], *, committed: bool) -> Any:
    @contextmanager
    def first() -> Iterator[None]:
        manager = decisive(database)
        manager.__enter__()
        yield
        if broken:
            manager.__exit__(None, None, None)
            return
        broken.append(True)
        connection = database._connected()
        [[number]] = database.run("SELECT txid_current()")
        if committed:
            manager.__exit__(None, None, None)
        connection.close()  # without a commit the server rolls back
        database._doubtful = number
        raise psycopg.OperationalError("the connection was lost")

    return first()


PROGRAM = """
import asyncio, sys, time
from plugin_sdk import Outcome, Secret
from sidecar.builtin.usage import Settings, Usage

async def main():
    plugin = Usage(Settings(dsn=Secret(sys.argv[1]), queue=1_000_000))
    await plugin.open()
    while True:
        plugin.record(Outcome(model="m", started_s=time.time()))
        print(time.time(), flush=True)
        await asyncio.sleep(0.001)

asyncio.run(main())
"""


@pytest.mark.soak
def test_a_kill_loses_no_more_than_the_last_second(settings: Settings, mortal: Server) -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM, mortal.dsn()], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(float(line))
            if said[-1] - said[0] > 2.5 and process.poll() is None:
                process.send_signal(signal.SIGKILL)
    [[written, latest]] = mortal.ask("SELECT COUNT(*), MAX(started_s) FROM usage_requests")
    assert said[-1] - latest < 1.0
    assert written >= len([moment for moment in said if moment <= latest])  # and nothing in between
    assert mortal.ask("SELECT SUM(requests) FROM usage_totals") == [(written,)]


async def test_tables_that_are_taken_away_do_not_end_it(settings: Settings, mortal: Server) -> None:
    plugin = await opened(settings)
    mortal.ask("DROP SCHEMA public CASCADE")
    mortal.ask("CREATE SCHEMA public")
    plugin.record(outcome())
    await until(lambda: count_if_any(mortal) == 1, "they are made anew")
    await plugin.close()


async def test_two_that_begin_at_once_make_the_tables_once(settings: Settings, mortal: Server) -> None:
    plugins = await asyncio.gather(*(opened(settings) for _ in range(6)))
    for plugin in plugins:
        plugin.record(outcome())
    await asyncio.gather(*(plugin.close() for plugin in plugins))
    assert [count(mortal), *mortal.ask("SELECT version FROM usage_schema")] == [6, (3,)]


async def test_tables_of_another_version_are_left_alone(settings: Settings, mortal: Server) -> None:
    await recorded(settings)
    mortal.ask("UPDATE usage_schema SET version = 9")
    with pytest.raises(PluginError, match="has tables of version 9, and this program knows 3"):
        await opened(settings)
    with pytest.raises(PluginError, match="version 9"):
        await rows(settings)


async def test_a_user_who_may_not_write_keeps_it_from_opening(settings: Settings, mortal: Server) -> None:
    mortal.ask("CREATE ROLE guest LOGIN")
    mortal.ask("GRANT USAGE ON SCHEMA public TO guest")
    guest = f"host={mortal.folder} dbname=postgres user=guest"
    with pytest.raises(PluginError, match="permission denied for schema public"):
        await opened(Settings(dsn=Secret(guest)))


@pytest.mark.parametrize("part", ["dbname=nowhere user=postgres", "dbname=postgres user=nobody_of_that_name"])
async def test_what_the_server_does_not_know_keeps_it_from_opening(
    settings: Settings, mortal: Server, part: str
) -> None:
    with pytest.raises(PluginError, match="does not exist"):
        await opened(Settings(dsn=Secret(f"host={mortal.folder} {part}")))


async def test_a_dsn_that_makes_no_sense_is_not_repeated() -> None:
    with pytest.raises(PluginError, match="dsn makes no sense") as caught:
        await opened(Settings(dsn=Secret("postgresql://anna:sesame word@[")))
    assert "sesame" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_a_password_is_never_told(
    settings: Settings, mortal: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.to_thread(mortal.stop)
    plugin = await opened(Settings(dsn=Secret(f"{mortal.dsn()} password=sesame-4711")))
    plugin.record(outcome())
    await until(lambda: "cannot be written" in caplog.text, "the trouble is told")
    await plugin.close()
    assert "sesame" not in caplog.text
    with pytest.raises(PluginError, match="cannot be read"):
        await rows(Settings(dsn=Secret(f"{mortal.dsn()} password=sesame-4711")))


async def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(PluginError, match=r'pip install "llm-sidecar\[postgres\]"'):
        await opened(Settings(dsn=Secret("dbname=x")))


def test_a_path_and_a_dsn_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="either path"):
        Settings(path="usage.db", dsn=Secret("dbname=x"))


async def test_reports_change_nothing(settings: Settings, mortal: Server) -> None:
    await recorded(settings, [outcome()])
    assert settings.dsn is not None
    reader = postgres.Reader(settings.dsn)
    with pytest.raises(PluginError, match="read-only transaction"):
        list(reader.run("DELETE FROM usage_totals"))
    reader.close()
