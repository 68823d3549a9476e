"""Databases of older versions, damaged ones, and such as may only be read."""

from __future__ import annotations

import asyncio
import os
import platform
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from plugin_sdk import PluginError
from sidecar.builtin.usage import Settings, Usage, read, sqlite
from sidecar.builtin.usage.rows import COLUMNS
from sidecar.builtin.usage.tables import VERSION
from tests.builtin.usage.samples import MIDNIGHT_S, outcome, recorded, rows, total
from tests.support import until, write

FIRST = (
    """CREATE TABLE requests (
        id INTEGER PRIMARY KEY, started_s REAL NOT NULL, duration_s REAL NOT NULL, queue_s REAL NOT NULL,
        first_byte_s REAL, principal TEXT NOT NULL, model TEXT NOT NULL, variant TEXT NOT NULL, mode TEXT NOT NULL,
        path TEXT NOT NULL, "end" TEXT NOT NULL, status INTEGER NOT NULL, code TEXT NOT NULL, streamed INTEGER NOT NULL,
        cold INTEGER NOT NULL, input_tokens INTEGER, output_tokens INTEGER, cached_tokens INTEGER, response_model TEXT,
        bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL, trace_id TEXT NOT NULL
    )""",
    "CREATE INDEX requests_by_time ON requests (started_s)",
)
SECOND = (
    *FIRST,
    "ALTER TABLE requests ADD COLUMN reasoning_tokens INTEGER",
    "ALTER TABLE requests ADD COLUMN input_tokens_per_s REAL",
    "ALTER TABLE requests ADD COLUMN output_tokens_per_s REAL",
)
ROW = (
    MIDNIGHT_S + 5,
    1.5,
    0.5,
    None,
    "anna",
    "qwen",
    "gpu",
    "chat",
    "/v1",
    "ok",
    200,
    "",
    1,
    1,
    7,
    4,
    2,
    None,
    10,
    20,
    "",
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "usage.db"


@pytest.mark.parametrize(("version", "made"), [(1, FIRST), (2, SECOND)])
async def test_an_older_database_is_brought_up_to_date_and_added_up(
    path: Path, version: int, made: tuple[str, ...]
) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        for statement in made:
            database.execute(statement)
        columns = len(database.execute("PRAGMA table_info(requests)").fetchall())
        marks = ", ".join(["?"] * len(ROW) + ["NULL"] * (columns - len(ROW) - 1))
        insert = f"INSERT INTO requests VALUES (NULL, {marks})"  # noqa: S608 - marks
        database.executemany(insert, [ROW] * 3)
        database.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(PluginError, match=f"has version {version}: the next sidecar that writes to it"):
        await rows(Settings(path=str(path)))
    await recorded(Settings(path=str(path)), [outcome(tokens=(1, 1))])
    found = await total(Settings(path=str(path)))
    assert (found.requests, found.cold, found.input_tokens, found.busy_s, found.unpriced) == (4, 3, 22, 4.5, 4)
    assert [row["node"] for row in read(path)] == ["", "", "", platform.node()]
    assert list(await rows(Settings(path=str(path)), "hour")) == [("2026-11-25T00",)]


def test_what_an_older_program_made_is_told_by_its_tables(path: Path) -> None:
    with closing(sqlite.connect(path)) as database:
        sqlite.update(database)
        sqlite.update(database)
        assert database.execute("PRAGMA user_version").fetchone() == (VERSION,)
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_a_database_that_is_damaged_is_put_aside_and_a_new_one_begun(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = Usage(Settings(path=str(path)), name="usage")
    await plugin.open()
    plugin.record_many([outcome()] * 300)
    await until(lambda: count(path) == 300, "they are written")
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    spoil(path)
    plugin._writer._database.disconnect()  # or the page cache would hide it for a while
    plugin.record_many([outcome()] * 7)
    await until(lambda: count(path) == 7, "a new one is begun")
    await plugin.close()
    assert plugin.dropped == 0
    [aside] = path.parent.glob("usage.db.damaged-*[0-9]")
    assert f"is damaged (database disk image is malformed): it is kept as {aside}" in caplog.text


def spoil(path: Path) -> None:
    """As a bad disk does, or a program that does not know whose file it is."""
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (path.stat().st_size - 4096))


def count(path: Path) -> int:
    """The rows; 0 while there is no database that can be read."""
    try:
        return len(read(path))
    except (sqlite3.Error, PluginError):
        return 0


async def test_what_a_server_did_not_tell_is_null_however_many_are_written_at_once(path: Path) -> None:
    """Many at once are handed to SQLite in another way than single ones."""
    told: dict[str, Any] = {"first_byte_s": 0.25, "streamed": True, "cold": True, "tokens": (7, 4)}
    both = [outcome(at_s=MIDNIGHT_S, tokens=None), outcome(at_s=MIDNIGHT_S + 1, **told)]
    await recorded(Settings(path=str(path)), both * sqlite.AT_ONCE + both[:1])
    untold, tells, *others = [{name: row[name] for name in row if name != "id"} for row in read(path)]
    assert others == [untold, tells] * (sqlite.AT_ONCE - 1) + [untold]
    lacking = [name for name, value in untold.items() if value is None]
    assert lacking == [name for name, kind in COLUMNS.items() if "NOT NULL" not in kind]
    assert (untold["streamed"], untold["cold"]) == (0, 0)
    kept = ("first_byte_s", "streamed", "cold", "input_tokens", "output_tokens", "cached_tokens", "input_tokens_per_s")
    assert [tells[name] for name in kept] == [0.25, 1, 1, 7, 4, 0, None]


async def test_a_damage_that_comes_again_and_again_does_not_fill_the_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(_: Path) -> sqlite3.Connection:
        error = sqlite3.DatabaseError("database disk image is malformed")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error

    plugin = Usage(Settings(path=str(path)), name="usage")
    await plugin.open()
    plugin._writer._database.disconnect()
    monkeypatch.setattr(sqlite, "connect", damaged)
    monkeypatch.setattr(sqlite, "MOST_PUT_ASIDE", 2)
    plugin.record(outcome())
    failures = plugin._writer
    await until(lambda: failures._failures > 5, "it has been tried often")
    assert len(list(path.parent.glob("usage.db.damaged-*"))) <= 2
    await plugin.close()
    assert plugin.dropped == 1


READ = """
import os, sys
from pathlib import Path
from typing import Any
from sidecar.builtin.usage import read
if os.getuid() == 0:
    os.seteuid(65534)  # root may write anywhere
print(len(read(Path(sys.argv[1]))))
"""


async def test_a_copy_in_a_folder_that_may_not_be_written_to_can_be_read() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "usage.db"
        await recorded(Settings(path=str(path)), [outcome()])
        assert len(read(path)) == 1
        assert os.listdir(folder) == ["usage.db"]  # noqa: PTH208 - ruff would have Path.iterdir in a thread
        os.chmod(folder, 0o555)  # noqa: PTH101, S103 - ruff would have Path.chmod in a thread
        command = [sys.executable, "-c", READ, str(path)]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
        os.chmod(folder, 0o755)  # noqa: PTH101, S103 - as it was made, more or less
    assert (done.stdout, done.stderr) == ("1\n", "")


async def test_where_nothing_was_recorded_nothing_is_made(path: Path) -> None:
    with pytest.raises(PluginError, match="nothing was recorded yet"):
        await rows(Settings(path=str(path)))
    assert list(path.parent.iterdir()) == []


async def test_an_empty_file_is_told_as_one(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("VACUUM")  # so that there is a file
    with pytest.raises(PluginError, match=r"no tables in .*: nothing was recorded yet, or it is another"):
        await rows(Settings(path=str(path)))


async def test_a_question_that_takes_too_long_is_broken_off(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await recorded(Settings(path=str(path)), [outcome()])
    monkeypatch.setattr(sqlite, "LATE_S", 0.0)
    monkeypatch.setattr(sqlite, "STEPS", 1)
    with pytest.raises(PluginError, match=r"usage\.db cannot be read: interrupted"):
        await rows(Settings(path=str(path)), "model")


async def test_what_is_no_database_cannot_be_read(path: Path) -> None:
    write(path.parent, {path.name: "not a database at all" * 100})
    with pytest.raises(PluginError, match="file is not a database"):
        await rows(Settings(path=str(path)))
