"""examples/plugins/database_router: models that come and go in a SQLite table, beside a declared one."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from plugin_sdk.testing import contract
from tests.e2e.harness import PATIENCE_S, Sidecar, running, seen, until
from tests.examples import shipped
from tests.examples.copies import copied, problems
from tests.servers import HTTP_SERVER
from tests.support import Program, serving

EXAMPLE = shipped.PLUGINS / "database_router"
KEY = "sk-of-the-upstream"

example = shipped.module("database_router")


def with_models(root: Path) -> dict[str, Any]:
    """Settings that name a database with two models."""
    path = root / "models.db"
    example.add(path, "qwen", "http://127.0.0.1:9", upstream="qwen3", timeout_s=5.0)
    example.add(path, "llama", "http://127.0.0.1:9")
    return {"db_path": str(path)}


test_contract = contract(example.DatabaseRouter, config=with_models)


@pytest.fixture(scope="module")
def one() -> Iterator[Program]:
    with serving(HTTP_SERVER, "--name", "one") as server:
        yield server


@pytest.fixture(scope="module")
def two() -> Iterator[Program]:
    with serving(HTTP_SERVER, "--name", "two") as server:
        yield server


@pytest.fixture(scope="module")
def sidecar(one: Program, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """On the example's manifests, whose own model is on the first server; there is no table yet."""
    root = tmp_path_factory.mktemp("router")
    files = copied(EXAMPLE, root / "state", one.url)
    with running(root, files, env={"UPSTREAM_KEY": KEY}) as found:
        yield found


@pytest.fixture
def database(sidecar: Sidecar) -> Iterator[Path]:
    """The table, which is emptied at the end."""
    path = sidecar.folder / "state" / "models.db"
    yield path
    if path.exists():
        with closing(sqlite3.connect(path)) as found, found:
            found.execute("DELETE FROM models")


def ask(sidecar: Sidecar, model: str, **more: Any) -> httpx.Response:
    body = {"model": model, "messages": [], **more}
    return httpx.post(f"{sidecar.url}/v1/chat/completions", json=body, trust_env=False, timeout=PATIENCE_S)


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def listed(sidecar: Sidecar) -> dict[str, dict[str, Any]]:
    answer = httpx.get(f"{sidecar.url}/v1/models", trust_env=False, timeout=PATIENCE_S).json()
    return {entry["id"]: entry for entry in answer["data"]}


def plugin(sidecar: Sidecar) -> dict[str, Any]:
    plugins: list[dict[str, Any]] = httpx.get(f"{sidecar.url}/-/plugins", trust_env=False, timeout=PATIENCE_S).json()
    return next(found for found in plugins if found["name"] == "database_router")


def test_its_manifest_has_no_problems() -> None:
    assert problems(EXAMPLE) == ""


def test_without_a_database_its_models_are_not_to_be_had_and_the_declared_one_is(sidecar: Sidecar) -> None:
    until(lambda: ask(sidecar, "qwen").status_code == 200, "the declared model's server is known to be healthy")
    refused = ask(sidecar, "gpt-oss")
    assert code(refused) == (503, "route_unavailable")
    assert refused.headers["retry-after"] == "5"
    assert list(listed(sidecar)) == ["qwen"]
    found = plugin(sidecar)
    assert found["failed"] >= 2
    assert "with 0 models of its own; its list of models cannot be had anew: OperationalError" in found["state"]
    assert "sqlite3.OperationalError: unable to open database file" in found["last_error"]


def test_a_row_is_served_from_the_next_request_on_and_is_gone_when_it_is_removed(
    sidecar: Sidecar, two: Program, database: Path
) -> None:
    example.add(database, "other", two.url)
    assert ask(sidecar, "other").headers["x-served-by"] == "two"
    assert code(ask(sidecar, "gpt-oss")) == (404, "model_not_found")
    example.add(database, "gpt-oss", two.url, upstream="openai/gpt-oss-20b", key_env="UPSTREAM_KEY", timeout_s=30)
    answer = ask(sidecar, "gpt-oss")
    assert (answer.status_code, answer.headers["x-served-by"]) == (200, "two")
    got = seen(two.port)[-1]
    assert json.loads(got["body"])["model"] == "openai/gpt-oss-20b"
    assert dict(got["headers"])["authorization"] == f"Bearer {KEY}"
    until(lambda: set(listed(sidecar)) == {"qwen", "other", "gpt-oss"}, "it is in the list")
    entry = listed(sidecar)["gpt-oss"]
    assert (entry["owned_by"], entry["object"], entry["ready"]) == ("database_router", "model", None)
    assert entry == httpx.get(f"{sidecar.url}/v1/models/gpt-oss", trust_env=False).json()
    assert plugin(sidecar)["state"] == "in force, with 2 models of its own"

    assert example.remove(database, "gpt-oss") == 1
    gone = ask(sidecar, "gpt-oss")
    assert code(gone) == (404, "model_not_found")
    until(lambda: set(listed(sidecar)) == {"qwen", "other"}, "it is in the list no more")


def test_a_declared_name_stays_the_manifests(sidecar: Sidecar, two: Program, database: Path) -> None:
    example.add(database, "qwen", two.url)
    until(lambda: bool(listed(sidecar)) and "others have the names qwen" in plugin(sidecar)["state"], "it is told")
    assert ask(sidecar, "qwen").headers["x-served-by"] == "one"
    assert listed(sidecar)["qwen"]["owned_by"] == "sidecar"
    words = "the route plugin database_router lists qwen, which others have"
    until(lambda: any(words in line for line in list(sidecar.log)), "the log tells it, too")


def test_a_list_that_cannot_be_had_anew_stays(sidecar: Sidecar, two: Program, database: Path) -> None:
    example.add(database, "stays", two.url)
    until(lambda: "stays" in listed(sidecar), "it is in the list")
    aside = database.with_name("aside.db")
    database.rename(aside)
    until(lambda: bool(listed(sidecar)) and "cannot be had anew" in plugin(sidecar)["state"], "the list has failed")
    assert "stays" in listed(sidecar)
    assert code(ask(sidecar, "stays")) == (503, "route_unavailable")
    assert ask(sidecar, "qwen").status_code == 200
    aside.rename(database)
    assert ask(sidecar, "stays").status_code == 200


def test_a_key_that_is_not_there_is_told_to_the_operator_alone(sidecar: Sidecar, two: Program, database: Path) -> None:
    example.add(database, "keyless", two.url, key_env="NO_SUCH_KEY")
    refused = ask(sidecar, "keyless")
    assert code(refused) == (503, "route_unavailable")
    assert "NO_SUCH_KEY" not in refused.text
    assert "NO_SUCH_KEY" in plugin(sidecar)["last_error"]
