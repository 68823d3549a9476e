"""Usage and cost of a running sidecar: by its API, by the command line, and when it has ended or was killed."""

from __future__ import annotations

import csv
import io
import json
import signal
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from sidecar.surfaces.usage import COUNTS
from tests.builtin.test_keys import hashed
from tests.builtin.usage.server import running as postgres
from tests.e2e.conftest import free_block
from tests.e2e.harness import Sidecar, cli, running, settings, stub, until

CHAT: dict[str, Any] = {"messages": []}
PRICES = """
[plugins.usage]
import = "sidecar.builtin.usage:Usage"
config.currency = "EUR"
config.node = "box-1"
[[plugins.usage.config.prices]]
model = "dear"
input = 1000000
output = 0.5
hour = 3600
[[plugins.usage.config.prices]]
model = "ch*"
request = 0.25
"""
CHAIN = 'chain = ["keys", "usage"]'
NAMED = f'''
[plugins.named]
import = "sidecar.builtin.keys:StaticKeys"
config.keys."{hashed("sk-laptop")}" = {{ principal = "anna", attributes = {{ key = "laptop" }} }}
'''


def manifests(state: Path, table: str = PRICES) -> dict[str, str]:
    models = "".join(stub(name, model=CHAIN) for name in ("dear", "cheap", "free"))
    models += stub("named", model='chain = ["named", "usage"]')
    return {"sidecar.toml": settings(state, free_block()), "models.toml": models, "usage.toml": table, "k.toml": NAMED}


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """One that has served two requests of each model, and refused one."""
    folder = tmp_path_factory.mktemp("usage")
    with running(folder, manifests(folder / "state")) as started:
        with started.http() as http:
            for model in ("dear", "cheap", "free") * 2:
                assert http.post("/v1/chat/completions", json={**CHAT, "model": model}).status_code == 200
            refused = http.post("/v1/chat/completions", json={**CHAT, "model": "free"}, headers={"authorization": "no"})
            assert refused.status_code == 401
        until(lambda: get(started)["total"]["requests"] == 7, "all is written")
        yield started


def get(sidecar: Sidecar, **asked: str) -> dict[str, Any]:
    """What the API answers."""
    answer: dict[str, Any] = ask(sidecar, **asked).json()
    return answer


def ask(sidecar: Sidecar, accept: str = "*/*", **asked: str) -> httpx.Response:
    return httpx.get(f"{sidecar.url}/-/usage", params=asked, headers={"accept": accept}, trust_env=False)


def test_the_api_tells_what_was_used_and_what_it_costs(sidecar: Sidecar) -> None:
    found = get(sidecar)
    assert (found["plugin"], found["by"]) == ("usage", ["model"])
    cheap, dear, free = found["rows"]
    assert (cheap["model"], cheap["requests"], cheap["cost"]) == ("cheap", 2, {"EUR": "0.500000000"})
    assert (dear["model"], dear["input_tokens"], dear["output_tokens"]) == ("dear", 14, 8)
    assert Decimal(dear["cost"]["EUR"]) - 14 - Decimal("0.000004") == pytest.approx(
        Decimal(dear["loaded_s"]), abs=Decimal("0.1")
    )
    assert (free["requests"], free["refused"], free["unpriced"], free["cost"]) == (3, 1, 2, {})
    assert (found["total"]["requests"], found["total"]["unpriced"]) == (7, 2)
    assert set(COUNTS) < dear.keys()


def test_it_can_be_asked_by_several_things_and_about_some(sidecar: Sidecar) -> None:
    found = get(sidecar, by="principal,node", model="*e*", since="1h", until="2999-01-01")
    assert [(row["principal"], row["node"], row["requests"]) for row in found["rows"] if row["requests"]] == [
        ("anonymous", "box-1", 1),
        ("tester", "box-1", 6),
    ]
    assert found["until"] == "2999-01-01T00:00:00Z"
    assert found["since"].endswith(":00:00Z")
    assert get(sidecar, by="all", principal="t*")["rows"][0]["requests"] == 6
    twice = httpx.get(f"{sidecar.url}/-/usage?by=principal&by=model", trust_env=False)
    assert twice.json()["by"] == ["principal", "model"]
    assert get(sidecar, until="2020-01-01")["rows"] == []


@pytest.mark.parametrize(("accept", "asked"), [("text/csv", {}), ("*/*", {"format": "csv"})])
def test_csv_has_a_line_for_each_row(sidecar: Sidecar, accept: str, asked: dict[str, str]) -> None:
    answer = ask(sidecar, accept, **asked)
    assert answer.headers["content-type"] == "text/csv; header=present; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(row["model"], row["requests"]) for row in rows] == [("cheap", "2"), ("dear", "2"), ("free", "3")]
    assert (rows[0]["cost_EUR"], rows[2]["cost_EUR"]) == ("0.500000000", "")
    assert ask(sidecar, "text/csv", format="json").json()["by"] == ["model"]


@pytest.mark.parametrize(
    ("asked", "status", "told"),
    [
        ({"since": "soon"}, 400, "since: expected a time ago such as"),
        ({"until": "1h", "since": "1m"}, 400, "ends before it begins"),
        ({"by": "colour"}, 400, 'by \\"colour\\"; known: model, principal'),
        ({"by": "model,model"}, 400, "only once"),
        ({"by": ",".join("abcdefghi")}, 400, "at most 8 names"),
        ({"form": "csv"}, 400, "unknown field `form`"),
        ({"format": "xml"}, 400, 'format: expected \\"csv\\" or \\"json\\"'),
        ({"plugin": "keys"}, 404, 'no plugin \\"keys\\" in use can report usage; these can: usage'),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(
    sidecar: Sidecar, asked: dict[str, str], status: int, told: str
) -> None:
    answer = ask(sidecar, **asked)
    assert (answer.status_code, told in answer.text) == (status, True), answer.text


def test_it_is_for_operators_alone(sidecar: Sidecar) -> None:
    answer = httpx.get(f"{sidecar.url}/-/usage", headers={"origin": "https://elsewhere.example"}, trust_env=False)
    assert answer.status_code == 403


def test_the_command_shows_a_table_with_all_that_it_adds_up_to(sidecar: Sidecar) -> None:
    shown = sidecar.cli("usage").stdout.splitlines()
    titles = "MODEL REQUESTS FAILED REFUSED INPUT CACHED OUTPUT HOURS COST EUR UNPRICED"
    assert shown[0].split() == titles.split()
    rows = {line.split()[0]: line.split() for line in shown[1:]}
    assert list(rows) == ["cheap", "dear", "free", "all"]
    assert (rows["cheap"][1], rows["cheap"][-1]) == ("2", "0.5000")
    assert (rows["all"][1], rows["all"][-1]) == ("7", "2")
    two = sidecar.cli("usage", "--by", "model", "--by", "key").stdout.splitlines()
    assert [line.split()[:3] for line in two[1:]] == [
        ["cheap", "-", "2"],
        ["dear", "-", "2"],
        ["free", "-", "3"],
        ["all", "7", "0"],
    ]


def test_the_command_takes_what_the_api_takes(sidecar: Sidecar) -> None:
    found = json.loads(sidecar.cli("usage", "--by", "day", "--by", "model", "--model", "cheap", "--json").stdout)
    assert [(row["model"], row["requests"]) for row in found["rows"]] == [("cheap", 2)]
    printed = sidecar.cli("usage", "--by", "all", "--principal", "tester", "--csv").stdout
    assert next(csv.DictReader(io.StringIO(printed)))["requests"] == "6"
    assert "until 2020-01-01T00:00:00Z" in sidecar.cli("usage", "--until", "2020-01-01").stdout
    assert "Nothing was recorded in that time." in sidecar.cli("usage", "--until", "2020-01-01").stdout
    refused = sidecar.cli("usage", "--by", "colour", check=False)
    assert (refused.returncode, 'usage cannot be told by "colour"' in refused.stderr) == (1, True)
    assert sidecar.cli("usage", "--csv", "--json", check=False).returncode == 2


def test_the_file_can_be_read_beside_it(sidecar: Sidecar) -> None:
    file = str(sidecar.folder / "state" / "usage.db")
    assert json.loads(cli("usage", "--database", file, "--json").stdout)["total"]["requests"] == 7
    absent = cli("usage", "--database", f"{file}.not", check=False)
    assert (absent.returncode, "nothing was recorded yet" in absent.stderr) == (1, True)
    for more in (["--plugin", "usage"], [str(sidecar.folder)]):
        assert cli("usage", "--database", file, *more, check=False).returncode == 2


def test_killed_and_taken_over_it_has_lost_no_loaded_time_and_can_be_asked_when_none_runs(tmp_path: Path) -> None:
    files = manifests(tmp_path / "state")
    with running(tmp_path, files) as first:
        with first.http() as http:
            assert http.post("/v1/chat/completions", json={**CHAT, "model": "dear"}).status_code == 200
            asked = {**CHAT, "model": "named"}
            headers = {"authorization": "Bearer sk-laptop"}
            began = time.monotonic()
            assert http.post("/v1/chat/completions", json=asked, headers=headers).status_code == 200
        until(lambda: get(first)["total"]["requests"] == 2, "they are written")
        [by_key] = get(first, by="key", principal="anna")["rows"]
        assert (by_key["key"], by_key["requests"]) == ("laptop", 1)
        pid = first.pid("dear")
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
        first.close()
    with running(tmp_path, files) as second:
        assert second.pid("dear") == pid
        second.write("usage.toml", PRICES.replace("input = 1000000", "input = 500000"))
        until(lambda: any("generation 2" in line for line in second.log), "the new price is in force")
        second.ask("dear")
        loaded_s = time.monotonic() - began
        assert second.stop() == 0
    away = ["--url", "http://127.0.0.1:9"]
    told = cli("usage", str(tmp_path / "manifests"), *away, "--model", "dear", "--json")
    assert "reading what the plugin usage has left" in told.stderr
    [row] = json.loads(told.stdout)["rows"]
    assert row["requests"] == 2
    assert loaded_s <= row["loaded_s"] <= loaded_s + 30
    assert Decimal(row["cost"]["EUR"]) == pytest.approx(Decimal("10.5") + Decimal(row["loaded_s"]), abs=Decimal("0.1"))
    nowhere = cli("usage", str(tmp_path / "not"), *away, check=False)
    assert (nowhere.returncode, "no sidecar answers" in nowhere.stderr) == (3, True)


def test_it_may_be_in_postgresql(tmp_path: Path) -> None:
    with postgres() as server:
        table = '[plugins.usage]\nimport = "sidecar.builtin.usage:Usage"\nconfig.dsn = { env = "USAGE_DSN" }\n'
        env = {"USAGE_DSN": server.dsn()}
        with running(tmp_path, manifests(tmp_path / "state", table), env) as sidecar:
            with sidecar.http() as http:
                assert http.post("/v1/chat/completions", json={**CHAT, "model": "free"}).status_code == 200
            until(lambda: get(sidecar)["total"]["requests"] == 1, "it is written")
            server.kill()
            with sidecar.http() as http:
                assert http.post("/v1/chat/completions", json={**CHAT, "model": "free"}).status_code == 200
            answer = ask(sidecar)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "usage_unavailable")
            server.start()
            until(lambda: get(sidecar)["total"]["requests"] == 2, "what waited is written")
        told = cli("usage", str(tmp_path / "manifests"), "--url", "http://127.0.0.1:9", "--json", env=env)
        assert json.loads(told.stdout)["total"]["requests"] == 2
