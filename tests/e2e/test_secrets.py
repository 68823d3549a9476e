"""No key comes out anywhere: not in a log, a report, an error or a file of the sidecar's, whatever goes wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e import forked, leaks
from tests.e2e.conftest import free_block
from tests.e2e.harness import KEY, PATIENCE_S, Sidecar, cli, settings, stub, until, write
from tests.servers import HTTP_SERVER

UPSTREAM = "sk-upstream-5f0e9a"
FROM_FILE = "sk-from-file-77b1c2"
ADMIN = "admin-token-91d0e4"
PLUGIN = "plugin-secret-c0ffee"
SERVERS = "hf_servers_token_4d5e6f"
UNKNOWN = "sk-nobody-knows-this-8a9b"
IN_THE_CLEAR = "sk-in-the-clear-1f2e3d"
ALL = (KEY, UPSTREAM, FROM_FILE, ADMIN, PLUGIN, SERVERS, UNKNOWN, IN_THE_CLEAR)
ENV = {"UPSTREAM_KEY": UPSTREAM, "ADMIN": ADMIN, "PLUGIN_SECRET": PLUGIN, "HF_TOKEN": SERVERS}

TELLER = """
from plugin_sdk import Config, Filter, Secret


class Settings(Config):
    token: Secret


class Teller(Filter[Settings]):
    modes = ("chat",)

    async def open(self):
        self.log.warning("opened with %r and %s", self.config, self.config.token, extra={"settings": self.config})

    def on_request(self, exchange):
        token = self.config.token.reveal()
        raise RuntimeError(f"it fails on {exchange.request.path} with {self.config}") if token else None
"""


def manifests(folder: Path) -> dict[str, str]:
    write(folder / "upstream.key", FROM_FILE)
    said = ["--stderr-line", "my token is {env.HF_TOKEN}", "--stderr-line", f"it begins with {SERVERS[:6]}"]
    fragile = json.dumps(["{python}", HTTP_SERVER, "--port", "{port}", *said, "--exit-after", "0"])
    return {
        "sidecar.toml": settings(folder / "state", free_block(), 'admin_token = { env = "ADMIN" }'),
        "plugins/teller.py": TELLER,
        "plugins.toml": '[plugins.teller]\nimport = "teller:Teller"\nconfig = { token = { env = "PLUGIN_SECRET" } }\n'
        f'[plugins.requests]\nimport = "sidecar.builtin.log:Log"\nconfig = {{ path = "{folder}/requests.log" }}\n',
        "good.toml": stub(
            "good", model='chain = ["keys", "requests", "log"]', variant='env = { HF = "{env.HF_TOKEN}" }'
        ),
        "broken.toml": stub("broken", model='chain = ["keys", "teller", "log"]'),
        "fragile.toml": f"""
[models.fragile]
mode = "chat"
[[models.fragile.variants]]
required_devices = ["cpu"]
memory_mb = 100
command = {fragile}
""",
        "vault.toml": """
[models.vault]
mode = "chat"
variants = [{ url = "http://127.0.0.1:9", api_key = { env = "UPSTREAM_KEY" } }]
""",
        "other.toml": f"""
[models.other]
mode = "chat"
variants = [{{ url = "http://127.0.0.1:9", api_key = {{ file = "{folder}/upstream.key" }} }}]
""",
    }


FAULTY = f"""
[models.inline]
mode = "chat"
variants = [{{ url = "http://127.0.0.1:9", api_key = "{IN_THE_CLEAR}" }}]
[models.misplaced]
mode = "chat"
variants = [{{ url = "http://127.0.0.1:9", api_key = {{ env = "{IN_THE_CLEAR}" }} }}]
[models.userinfo]
mode = "chat"
variants = [{{ url = "http://user:{IN_THE_CLEAR}@127.0.0.1:9" }}]
[plugins.clear]
import = "sidecar.builtin.keys:StaticKeys"
config = {{ keys = {{ "{IN_THE_CLEAR}" = "bob" }} }}
[plugins.unknown]
import = "teller:Teller"
config = {{ token = "{IN_THE_CLEAR}", api_key = "{IN_THE_CLEAR}" }}
"""


class World:
    """A sidecar that says all that it can, and everything that it has said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, text in manifests(folder).items():
            write(folder / "manifests" / name, text)
        levels = "debug,httpx=debug,httpcore=debug,asyncio=debug,uvicorn=debug"
        command = ["run", str(folder / "manifests"), "--log-format", "json", "--log-level", levels]
        self.spans = (folder / "spans").open("wb")
        env = {**os.environ, **ENV, "OTEL_TRACES_EXPORTER": "console"}
        process = forked.spawn(command, env, out=self.spans.fileno())
        self.sidecar = Sidecar(folder, process)
        self.sidecar.wait_until_listening()
        self.said: dict[str, str] = {}

    def close(self) -> None:
        if self.sidecar.process.poll() is None:
            self.sidecar.stop()
        self.sidecar.close()
        self.spans.close()

    def ask(self, model: str, **headers: str) -> None:
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
        url = f"{self.sidecar.url}/v1/chat/completions"
        answer = httpx.post(url, json=body, headers=headers, timeout=PATIENCE_S, trust_env=False)
        self.said[f"{model} {sorted(headers)}"] = f"{answer.headers} {answer.text}"

    def look(self, path: str, **headers: str) -> str:
        answer = httpx.get(self.sidecar.url + path, headers=headers, timeout=PATIENCE_S, trust_env=False)
        self.said[path] = f"{answer.status_code} {answer.text}"
        return answer.text

    def run(self, *arguments: str) -> None:
        done = cli(*arguments, check=False, env=ENV)
        self.said[" ".join(arguments)] = done.stdout + done.stderr


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """After a broad run: good requests and bad ones, faulty manifests, servers and plugins."""
    world = World(tmp_path_factory.mktemp("secrets"))
    try:
        _live(world)
        yield world
    finally:
        world.close()


def _live(world: World) -> None:
    key = f"Bearer {KEY}"
    for model in ("good", "broken", "fragile", "vault", "other"):
        world.ask(model, authorization=key)
    world.ask("good", **{"x-api-key": KEY})
    world.ask("good", authorization=f"Bearer {UNKNOWN}")
    world.ask("good", **{"x-api-key": UNKNOWN})
    world.ask(UPSTREAM[:3], authorization=f"Basic {UNKNOWN}")
    world.look(f"/v1/models?key={KEY}", authorization=key)
    world.look("/-/status", authorization=f"Bearer {ADMIN}")
    world.look("/-/devices", authorization=f"Bearer {UNKNOWN}")
    write(world.folder / "manifests" / "faulty.toml", FAULTY)
    until(lambda: "inline" in world.look("/-/status"), "the faulty manifest is told")
    for path in ("plan", "plan?want=good", "events?limit=2000", "plugins", "measurements", "models/fragile/explain"):
        world.look(f"/-/{path}")
    world.look("/-/models/good/explain")
    world.look("/-/models/good/logs")
    world.run("validate", str(world.folder / "manifests"))
    world.run("plan", str(world.folder / "manifests"), "--json")
    for command in ("status", "events", "devices"):
        world.run(command, "--json", "--url", world.sidecar.url)
    world.run("plugin", "list", "--json", "--url", world.sidecar.url)
    assert world.sidecar.stop() == 0


def test_it_was_told_all_that_could_have_given_them_away(world: World) -> None:
    log = "".join(world.sidecar.log)
    assert "opened with" in log
    assert "it fails on" in log
    assert "the API key is not known" in world.said["good ['authorization']"] + world.said["good ['x-api-key']"]
    assert (
        "server exited" in world.said["fragile ['authorization']"]
        or "exited" in world.said["fragile ['authorization']"]
    )
    assert "my token is" in world.said["/-/models/fragile/explain"]
    for name in ("inline", "misplaced", "userinfo", "clear", "unknown"):
        assert name in world.said[f"validate {world.folder}/manifests"]
    assert (world.folder / "spans").stat().st_size
    assert (world.folder / "requests.log").stat().st_size


def test_no_answer_gives_a_key_away(world: World) -> None:
    assert leaks.found(world.said, ALL) == []


def test_the_log_gives_no_key_away(world: World) -> None:
    assert leaks.found({"log": "".join(world.sidecar.log)}, ALL) == []


def test_nothing_on_disk_gives_a_key_away_but_what_servers_have_written_themselves(world: World) -> None:
    own = leaks.files(world.folder / "state", world.folder / "spans", world.folder / "requests.log")
    assert any(name.endswith("events.jsonl") for name in own)
    assert leaks.found(own, ALL) == []


def test_the_search_would_find_them(tmp_path: Path) -> None:
    write(tmp_path / "state" / "a" / "events.jsonl", f"one\nkey {KEY}\n")
    write(tmp_path / "state" / "logs" / "m.err.log", KEY)
    [line] = leaks.found(leaks.files(tmp_path / "state"), leaks.among({"MY_KEY": KEY, "HOME": "/root", "A_KEY": "1"}))
    assert line.endswith(f"events.jsonl: key {KEY}")
