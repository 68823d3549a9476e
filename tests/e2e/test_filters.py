"""Filters and routes in a running sidecar: what clients and servers see of them, and that bad ones harm nobody else."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import Run
from tests.e2e.harness import Sidecar, seen, until
from tests.servers import HTTP_SERVER
from tests.support import Program, free_port, serving

PLUGINS = """
import asyncio, json, os, sys, time
from plugin_sdk import Event, Filter, Headers, Reject, Response, Route, Stats, Target, inline
import msgspec

def note(*words):
    with open(os.environ["NOTES"], "a") as file:
        file.write(json.dumps(words) + "\\n")

class Stamp(Filter):
    def on_request(self, exchange):
        request = exchange.request
        body = json.loads(request.body) | {"seed": 7}
        headers = Headers((*request.headers.raw, (b"x-stamp", b"yes")))
        return msgspec.structs.replace(request, body=json.dumps(body).encode(), headers=headers, query="stamped=1")

    @inline
    def on_response(self, exchange):
        head = exchange.response
        return msgspec.structs.replace(head, headers=Headers((*head.headers.raw, (b"x-filtered", b"yes"))))

    async def on_end(self, exchange, outcome):
        note("end", outcome.end.value, outcome.status, outcome.code)

class Redact(Filter):
    @inline
    def on_event(self, exchange, event):
        if b"-1 " in event.data:
            return msgspec.structs.replace(event, data=event.data.replace(b"-1 ", b"-REDACTED "))

class Cache(Filter):
    @inline
    def on_request(self, exchange):
        return Response(headers=Headers(((b"content-type", b"application/json"),)), body=b'{"cached": true}')

class Stops(Filter):
    @inline
    def on_event(self, exchange, event):
        if b"-2 " in event.data:
            raise Reject(451, "not this", code="forbidden_word")

class Pick(Route):
    def resolve(self, request, targets):
        note("targets", *[[one.name, one.ready, one.in_flight] for one in targets])
        return targets[-1] if targets else None

    def finished(self, target, outcome):
        note("finished", target.name, outcome.end.value)

class Ledger(Stats):
    def record(self, outcome):
        one = outcome
        note("outcome", one.model, one.variant, one.end.value, one.status, one.code, one.bytes_out)

class Raises(Filter):
    def on_request(self, exchange): raise RuntimeError("oops")
class Exits(Filter):
    @inline
    def on_request(self, exchange): sys.exit(3)
class ExitsAsync(Filter):
    async def on_request(self, exchange): sys.exit(3)
class Hangs(Filter):
    async def on_request(self, exchange): await asyncio.Event().wait()
class HangsInThread(Filter):
    def on_request(self, exchange): time.sleep(2)
class Deaf(Filter):
    async def on_request(self, exchange):
        while True:
            try: await asyncio.sleep(60)
            except asyncio.CancelledError: pass
class Cancels(Filter):
    async def on_request(self, exchange): asyncio.current_task().cancel(); await asyncio.sleep(0)
class Nonsense(Filter):
    def on_request(self, exchange): return 42
class Smuggles(Filter):
    def on_request(self, exchange):
        return msgspec.structs.replace(exchange.request, headers=Headers(((b"a", b"1\\r\\n\\r\\nGET / HTTP/1.1"),)))
class Garbles(Filter):
    def on_request(self, exchange): return msgspec.structs.replace(exchange.request, body=b"no json")
class Mutates(Filter):
    def on_request(self, exchange): exchange.request.headers.raw = ()
class Spins(Filter):
    @inline
    def on_request(self, exchange):
        while True: pass
class Sleeps(Filter):
    async def on_request(self, exchange): time.sleep(60)
class Recurses(Filter):
    def on_request(self, exchange): return self.on_request(exchange)
class ExitsAtChunk(Filter):
    @inline
    def on_chunk(self, exchange, chunk): sys.exit(3)
class BadHead(Filter):
    def on_response(self, exchange): return Response(status=1)
class Blocks(Filter):
    @inline
    def on_request(self, exchange): time.sleep(0.3)
"""

GUARDS = {
    "stamp": "Stamp",
    "redact": "Redact",
    "cache": "Cache",
    "stops": "Stops",
    "pick": "Pick",
    "ledger": "Ledger",
    "blocks": "Blocks",
}
BAD = {
    "raises": "Raises",
    "exits": "Exits",
    "exits-async": "ExitsAsync",
    "hangs": "Hangs",
    "hangs-in-thread": "HangsInThread",
    "deaf": "Deaf",
    "nonsense": "Nonsense",
    "smuggles": "Smuggles",
    "mutates": "Mutates",
    "spins": "Spins",
    "sleeps": "Sleeps",
    "recurses": "Recurses",
    "bad-head": "BadHead",
}
REQUEST = {"messages": [{"role": "user", "content": "hi"}]}


def plugin(name: str, cls: str, lines: str = "") -> str:
    return f'[plugins.{name}]\nimport = "extra:{cls}"\n{lines}\n'


def elsewhere(name: str, chain: str, *urls: str, lines: str = "") -> str:
    """A model on servers that run already."""
    variants = "".join(f'[[models.{name}.variants]]\nname = "v{n}"\nurl = "{url}"\n' for n, url in enumerate(urls))
    return f'[models.{name}]\nmode = "chat"\nchain = ["keys"{chain}]\n{lines}\n{variants}'


@pytest.fixture
def upstream() -> Iterator[Program]:
    with serving(HTTP_SERVER, "--name", "word", "--chunks", "4") as program:
        yield program


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "notes"


def noted(notes: Path, kind: str) -> list[list[object]]:
    if not notes.exists():
        return []
    return [found[1:] for found in map(json.loads, notes.read_text().splitlines()) if found[0] == kind]


def start(run: Run, notes: Path, *models: str, plugins: str = "", **more: str) -> Sidecar:
    declared = "".join(plugin(name, cls) for name, cls in GUARDS.items()) + plugins
    files = {"plugins/extra.py": PLUGINS, "plugins.toml": declared}
    return run(*models, files=files, env={"NOTES": str(notes)}, **more)


def ask(http: httpx.Client, model: str, **more: object) -> httpx.Response:
    return http.post("/v1/chat/completions", json={"model": model, **REQUEST, **more})


def test_filters_change_requests_heads_and_bodies(run: Run, notes: Path, upstream: Program) -> None:
    sidecar = start(run, notes, elsewhere("m", ', "stamp", "redact", "ledger"', upstream.url))
    with sidecar.http() as http:
        whole = ask(http, "m")
        text = whole.json()["choices"][0]["message"]["content"]
        assert text == "word-0 word-REDACTED word-2 word-3 "
        assert int(whole.headers["content-length"]) == len(whole.content)
        assert whole.headers["x-filtered"] == "yes"
        streamed = ask(http, "m", stream=True)
        assert "word-REDACTED " in streamed.text
        assert "word-1 " not in streamed.text
        assert streamed.text.endswith("data: [DONE]\n\n")
    for request in seen(upstream.port):
        headers = {name.lower(): value for name, value in request["headers"]}
        assert (json.loads(request["body"])["seed"], headers["x-stamp"]) == (7, "yes")
        assert request["path"] == "/v1/chat/completions?stamped=1"
        assert headers["accept-encoding"] == "identity"
    until(lambda: noted(notes, "end") == [["ok", 200, ""]] * 2, "each end is told once")


def test_without_hooks_on_the_body_nothing_of_it_changes(run: Run, notes: Path, upstream: Program) -> None:
    sidecar = start(run, notes, elsewhere("plain", "", upstream.url), elsewhere("m", ', "stamp"', upstream.url))
    with sidecar.http() as http:
        for stream in (False, True):
            plain, filtered = ask(http, "plain", stream=stream, seed=7), ask(http, "m", stream=stream)
            assert filtered.text.replace('"m"', '"plain"') == plain.text
            assert filtered.headers.get("transfer-encoding") == plain.headers.get("transfer-encoding")
    assert "gzip" in {name.lower(): value for name, value in seen(upstream.port)[-1]["headers"]}["accept-encoding"]


def test_a_filter_answers_in_the_servers_place(run: Run, notes: Path, upstream: Program) -> None:
    sidecar = start(run, notes, elsewhere("m", ', "stamp", "cache", "ledger"', upstream.url))
    with sidecar.http() as http:
        answer = ask(http, "m")
    assert (answer.status_code, answer.json()) == (200, {"cached": True})
    assert not seen(upstream.port)
    until(lambda: noted(notes, "outcome") == [["m", "", "ok", 200, "answered_by:cache", 16]], "the outcome is told")
    until(lambda: noted(notes, "end") == [["ok", 200, "answered_by:cache"]], "the end is told")


def test_a_refusal_within_the_body_breaks_it_off(run: Run, notes: Path, upstream: Program) -> None:
    sidecar = start(run, notes, elsewhere("m", ', "stops", "ledger"', upstream.url))
    with sidecar.http() as http:
        whole = ask(http, "m")
        assert (whole.status_code, whole.json()["error"]["code"]) == (451, "forbidden_word")
        received = b""
        with (
            pytest.raises(httpx.RemoteProtocolError),
            http.stream("POST", "/v1/chat/completions", json={"model": "m", **REQUEST, "stream": True}) as streamed,
        ):
            for chunk in streamed.iter_raw():
                received += chunk
    assert b"word-1 " in received
    assert b"word-2 " not in received
    last = received.rstrip().rpartition(b"\n\ndata: ")[2]
    assert json.loads(last)["error"]["code"] == "forbidden_word"
    assert b"[DONE]" not in received
    until(lambda: len(noted(notes, "outcome")) == 2, "both are told")
    assert [outcome[2:5] for outcome in noted(notes, "outcome")] == [
        ["refused", 451, "forbidden_word"],
        ["refused", 200, "forbidden_word"],
    ]


def test_the_end_is_told_when_the_client_leaves(run: Run, notes: Path) -> None:
    with serving(HTTP_SERVER, "--chunks", "1000", "--interval", "0.05") as slow:
        sidecar = start(run, notes, elsewhere("m", ', "stamp", "redact"', slow.url))
        with (
            sidecar.http() as http,
            http.stream("POST", "/v1/chat/completions", json={"model": "m", **REQUEST, "stream": True}) as streamed,
        ):
            next(streamed.iter_raw())
        until(lambda: noted(notes, "end") == [["client_gone", 200, "client_gone"]], "the end is told")


def test_bad_filters_refuse_or_are_skipped_and_others_are_served(run: Run, notes: Path, upstream: Program) -> None:
    short = 'deadline = "100ms"'
    declared = "".join(plugin(name, cls, short) for name, cls in BAD.items())
    declared += "".join(plugin(f"lenient-{name}", cls, f'{short}\non_error = "skip"') for name, cls in BAD.items())
    models = [elsewhere(name, f', "{name}"', upstream.url) for name in BAD]
    models += [elsewhere(f"lenient-{name}", f', "lenient-{name}"', upstream.url) for name in BAD]
    sidecar = start(run, notes, *models, elsewhere("well", "", upstream.url), plugins=declared)
    with sidecar.http() as http:
        for name in BAD:
            refused, skipped = ask(http, name), ask(http, f"lenient-{name}")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "filter_unavailable"), name
            assert (skipped.status_code, skipped.json()["object"]) == (200, "chat.completion"), name
            assert ask(http, "well").status_code == 200
    plugins = {one["name"]: one for one in sidecar.status()["plugins"]}
    assert all(plugins[name]["failed"] >= 1 and plugins[f"lenient-{name}"]["failed"] >= 1 for name in BAD)


def test_a_filter_that_breaks_within_a_body_breaks_it_off(run: Run, notes: Path, upstream: Program) -> None:
    models = (elsewhere("m", ', "late"', upstream.url), elsewhere("lenient", ', "lenient"', upstream.url))
    declared = plugin("late", "ExitsAtChunk") + plugin("lenient", "ExitsAtChunk", 'on_error = "skip"')
    sidecar = start(run, notes, *models, plugins=declared)
    with sidecar.http() as http:
        for stream in (False, True):
            with pytest.raises(httpx.RemoteProtocolError):
                ask(http, "m", stream=stream)
            assert ask(http, "lenient", stream=stream).status_code == 200


def test_a_filter_that_makes_nonsense_of_a_body_is_told_as_such(run: Run, notes: Path, upstream: Program) -> None:
    sidecar = start(run, notes, elsewhere("m", ', "garbles"', upstream.url), plugins=plugin("garbles", "Garbles"))
    with sidecar.http() as http:
        answer = ask(http, "m")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "filter_failed")


def test_a_plugin_that_blocks_the_loop_is_named(run: Run, notes: Path, upstream: Program) -> None:
    sidecar = start(run, notes, elsewhere("m", ', "blocks"', upstream.url))
    with sidecar.http() as http:
        assert ask(http, "m").status_code == 200
    (blocks,) = [one for one in sidecar.status()["plugins"] if one["name"] == "blocks"]
    assert blocks["blocked"] == 1
    until(lambda: any("plugin blocks is blocking the event loop at" in line for line in sidecar.log), "it is named")


# --- routes ---------------------------------------------------------------------------------------------------------


def test_a_route_picks_a_target_and_another_when_nobody_answers(run: Run, notes: Path) -> None:
    with serving(HTTP_SERVER, "--name", "one") as one, serving(HTTP_SERVER, "--name", "two") as two:
        sidecar = start(run, notes, elsewhere("m", ', "pick", "ledger"', one.url, two.url))
        with sidecar.http() as http:
            asked: list[str] = []

            def served_by_two() -> bool:
                asked.append(ask(http, "m").headers["x-served-by"])
                return asked[-1] == "two"

            until(served_by_two, "both are known to be healthy")
            until(lambda: len(noted(notes, "outcome")) == len(asked), "all outcomes are noted")
            # One that came before any server was known to be healthy had nothing to choose from, and waited.
            until(lambda: len(noted(notes, "finished")) == sum(map(bool, noted(notes, "targets"))), "all choices are")
            notes.unlink()
            assert ask(http, "m").headers["x-served-by"] == "two"
            two.process.kill()
            two.process.wait()
            assert ask(http, "m").headers["x-served-by"] == "one"
        until(lambda: len(noted(notes, "finished")) == 3, "all choices are told of")
        until(lambda: len(noted(notes, "outcome")) == 2, "all outcomes are noted")
    assert noted(notes, "targets") == [
        [["v0", True, 0], ["v1", True, 0]],
        [["v0", True, 0], ["v1", True, 0]],
        [["v0", True, 0]],
    ]
    assert noted(notes, "finished") == [["v1", "ok"], ["v1", "upstream_failed"], ["v0", "ok"]]
    assert [outcome[1:3] for outcome in noted(notes, "outcome")] == [["v1", "ok"], ["v0", "ok"]]


def test_without_a_route_the_next_server_is_asked_too(run: Run, notes: Path) -> None:
    with serving(HTTP_SERVER, "--name", "one") as one, serving(HTTP_SERVER, "--name", "two") as two:
        sidecar = start(run, notes, elsewhere("m", "", one.url, two.url))
        with sidecar.http() as http:
            assert ask(http, "m").headers["x-served-by"] == "one"
            one.process.kill()
            one.process.wait()
            began = time.monotonic()
            assert ask(http, "m").headers["x-served-by"] == "two"
            assert time.monotonic() - began < 5


def test_a_route_that_sends_requests_elsewhere_is_followed(run: Run, notes: Path, upstream: Program) -> None:
    code = f"""
class Own(Route):
    def resolve(self, request, targets):
        return Target(name="mine", base_url="{upstream.url}", model="called-so")
"""
    declared = plugin("own", "Own")
    model = elsewhere("m", ', "own", "ledger"', f"http://127.0.0.1:{free_port()}")
    files = {
        "plugins/extra.py": PLUGINS + code,
        "plugins.toml": "".join(plugin(name, cls) for name, cls in GUARDS.items()) + declared,
    }
    sidecar = run(model, files=files, env={"NOTES": str(notes)})
    with sidecar.http() as http:
        assert ask(http, "m").headers["x-served-by"] == "word"
    (request,) = seen(upstream.port)
    assert json.loads(request["body"])["model"] == "called-so"
    until(lambda: [one[1:3] for one in noted(notes, "outcome")] == [["mine", "ok"]], "the outcome names the target")
