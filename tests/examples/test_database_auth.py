"""examples/plugins/database_auth: keys in SQLite, in front of a server; and a database that cannot be read."""

from __future__ import annotations

import datetime
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from plugin_sdk.testing import contract, samples
from tests.e2e.harness import PATIENCE_S, Sidecar, running, until
from tests.examples import shipped
from tests.examples.copies import copied, problems
from tests.servers import HTTP_SERVER
from tests.support import serving

example = shipped.module("database_auth")

# A second database, of somebody else's making: not in WAL mode, so that whoever writes does lock it.
PLAIN = """
[plugins.plain]
import = "database_auth:DatabaseAuth"
config = { db_path = "plain.db", patience = "100ms" }
deadline = "1s"

[models.plain]
mode = "chat"
chain = ["plain"]
variants = [{ url = "UPSTREAM" }]

[models.other]
mode = "chat"
chain = []
variants = [{ url = "UPSTREAM" }]
"""
PLAIN_SCHEMA = example.SCHEMA.replace("PRAGMA journal_mode = WAL;", "")


def with_key(root: Path) -> dict[str, Any]:
    """A database that knows the key of the contract."""
    with closing(sqlite3.connect(root / "auth.db")) as database, database:
        database.executescript(example.SCHEMA)
        database.execute("INSERT INTO api_keys (key_hash, user) VALUES (?, 'ada')", (example.hashed(samples.TOKEN),))
    return {"db_path": str(root / "auth.db")}


test_contract = contract(example.DatabaseAuth, config=with_key, token=samples.TOKEN)


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """A sidecar on the example, with a key of eve's so that there is a database; and on PLAIN, which has none yet."""
    root = tmp_path_factory.mktemp("database-auth")
    (root / "state").mkdir()
    example.add(root / "state" / "auth.db", "eve")
    with serving(HTTP_SERVER, "--name", "qwen") as server:
        files = copied(shipped.PLUGINS / "database_auth", root / "state", server.url)
        with running(root, {**files, "plain.toml": PLAIN.replace("UPSTREAM", server.url)}) as sidecar:
            models = ("qwen", "plain", "other")
            until(
                lambda: {sidecar.state(model) for model in models} == {"Serving"}, "the server is known to be healthy"
            )
            yield sidecar


def ask(sidecar: Sidecar, model: str, key: str = "none") -> httpx.Response:
    """The answer to whoever has this key."""
    headers = {"authorization": f"Bearer {key}"}
    body = {"model": model, "messages": []}
    return httpx.post(
        f"{sidecar.url}/v1/chat/completions", json=body, headers=headers, trust_env=False, timeout=PATIENCE_S
    )


def status(sidecar: Sidecar, key: str) -> int:
    """How the example's own model answers."""
    return ask(sidecar, "qwen", key).status_code


def auth_db(sidecar: Sidecar) -> Path:
    return sidecar.folder / "state" / "auth.db"


def test_the_manifest_is_sound_as_it_is_shipped() -> None:
    assert problems(shipped.PLUGINS / "database_auth") == ""


def test_a_key_of_the_table_comes_in_and_no_other(sidecar: Sidecar) -> None:
    today = datetime.datetime.now(datetime.UTC).date()
    key = example.add(auth_db(sidecar), "ann", today + datetime.timedelta(days=1))
    old = example.add(auth_db(sidecar), "bert", today - datetime.timedelta(days=1))
    assert (status(sidecar, key), status(sidecar, old), status(sidecar, "sk-unknown")) == (200, 401, 401)
    assert ask(sidecar, "qwen", old).json()["error"]["message"] == "the API key has expired"
    assert key.encode() not in auth_db(sidecar).read_bytes()


def test_a_key_that_is_deactivated_is_refused_from_the_next_request_on(sidecar: Sidecar) -> None:
    key = example.add(auth_db(sidecar), "carl")
    assert status(sidecar, key) == 200
    assert example.deactivate(auth_db(sidecar), "carl") == 1
    assert ask(sidecar, "qwen", key).json()["error"]["message"] == "the API key is not active any more"
    assert sidecar.status()["generation"] == 1


def test_whoever_writes_to_the_database_keeps_nobody_waiting(sidecar: Sidecar) -> None:
    key = example.add(auth_db(sidecar), "dora")
    with closing(sqlite3.connect(auth_db(sidecar), isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        writer.execute("UPDATE api_keys SET active = 0 WHERE user = 'dora'")
        assert status(sidecar, key) == 200
        writer.execute("COMMIT")
    assert status(sidecar, key) == 401


def test_a_database_that_cannot_be_read_opens_no_door_and_hurts_no_other_model(sidecar: Sidecar) -> None:
    path, key = sidecar.folder / "state" / "plain.db", "sk-plain"

    def refused() -> bool:
        answer = ask(sidecar, "plain", key)
        return (answer.status_code, answer.json()["error"]["code"]) == (503, "auth_unavailable")

    assert refused()  # there is none
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.executescript(PLAIN_SCHEMA)
        database.execute("INSERT INTO api_keys (key_hash, user) VALUES (?, 'pia')", (example.hashed(key),))
        assert ask(sidecar, "plain", key).status_code == 200
        database.execute("BEGIN EXCLUSIVE")
        refused_while_locked(sidecar, refused)
        database.execute("ROLLBACK")
        assert ask(sidecar, "plain", key).status_code == 200
    path.write_bytes(b"this is no database " * 1000)
    assert refused()
    path.unlink()
    assert refused()
    plugin = next(plugin for plugin in sidecar.status()["plugins"] if plugin["name"] == "plain")
    assert (plugin["failed"], plugin["blocked"]) == (3 + 12, 0)
    assert "plain.db: [Errno 2] No such file or directory" in "".join(sidecar.log)  # told at the start


def refused_while_locked(sidecar: Sidecar, refused: Callable[[], bool]) -> None:
    """More at once than the plugin has threads; meanwhile others are served."""
    began = time.monotonic()
    with ThreadPoolExecutor(12) as many:
        waiting = [many.submit(refused) for _ in range(12)]
        assert ask(sidecar, "other").status_code == 200
        assert all(one.result(PATIENCE_S) for one in waiting)
    assert time.monotonic() - began < 4  # the deadline is 1 s; sqlite3 alone would wait for 5
