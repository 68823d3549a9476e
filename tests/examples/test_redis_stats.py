"""examples/plugins/redis_stats: what a real Redis has counted, and that nobody notices when it is killed."""

from __future__ import annotations

import signal
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
import redis

from plugin_sdk.config import convert
from plugin_sdk.testing import contract, faults
from tests.e2e.harness import PATIENCE_S, Sidecar, running, until
from tests.examples import shipped
from tests.examples.copies import copied, problems
from tests.servers import HTTP_SERVER
from tests.support import serving

example = shipped.module("redis_stats")

SHIPPED_URL = "redis://127.0.0.1:6379/0"
KEY = {"authorization": "Bearer sk-local"}  # of ann, in the shipped manifest

# What tests.servers says that each request has taken: 7 tokens in, 4 out.
EACH = {"requests": 1, "input_tokens": 7, "output_tokens": 4, "total_tokens": 11}

test_contract_without_redis = contract(example.RedisStats, config={"url": "unix:///nowhere/redis", "every": "10ms"})


class Server:
    """A redis-server of the test's own, which keeps nothing on disk."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.url = f"unix://{folder}/redis"
        self._folder = folder
        self.client = stack.enter_context(redis.Redis.from_url(self.url, decode_responses=True))
        self._process = self.start()
        stack.callback(self.kill)

    def start(self) -> subprocess.Popen[bytes]:
        """Run it, and wait until it answers."""
        options = ["--port", "0", "--unixsocket", f"{self._folder}/redis", "--save", "", "--dir", str(self._folder)]
        self._process = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
        until(self._answers, "redis-server answers")
        return self._process

    def kill(self) -> None:
        """With SIGKILL."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def connections(self) -> set[str]:
        """The ids of other clients' connections."""
        return {one["id"] for one in self.client.client_list()} - {str(self.client.client_id())}

    def counted(self, model: str = "qwen", principal: str = "ann") -> dict[str, int]:
        """The hash of a model and principal."""
        return {field: int(value) for field, value in self.client.hgetall(f"stats:{model}:{principal}").items()}

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.ConnectionError:
            return False


@contextmanager
def redis_server() -> Iterator[Server]:
    """In a folder with a short name, as a socket must have."""
    with tempfile.TemporaryDirectory(prefix="redis-") as folder, ExitStack() as stack:
        yield Server(Path(folder), stack)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def sidecar(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """A sidecar on the example."""
    root = tmp_path_factory.mktemp("redis-stats")
    with serving(HTTP_SERVER, "--name", "qwen") as upstream:
        changes = {SHIPPED_URL: server.url, '"500ms"': '"50ms"'}
        files = copied(shipped.PLUGINS / "redis_stats", root / "state", upstream.url, changes)
        with running(root, files) as sidecar:
            until(lambda: sidecar.state("qwen") == "Serving", "the server is known to be healthy")
            yield sidecar


def ask(sidecar: Sidecar, times: int) -> None:
    """So many requests, some at once, none of which may fail."""
    url, body = f"{sidecar.url}/v1/chat/completions", {"model": "qwen", "messages": []}
    with httpx.Client(headers=KEY, trust_env=False, timeout=PATIENCE_S) as http, ThreadPoolExecutor(8) as many:
        assert {answer.status_code for answer in many.map(lambda _: http.post(url, json=body), range(times))} == {200}


def times(count: int) -> dict[str, int]:
    """What so many requests add up to."""
    return {field: amount * count for field, amount in EACH.items()}


def dropped(sidecar: Sidecar) -> int:
    """What the plugin says that it could not count."""
    listed = httpx.get(f"{sidecar.url}/-/plugins", trust_env=False, timeout=PATIENCE_S).json()
    plugin = next(plugin for plugin in listed if plugin["name"] == "redis_stats")
    return int(sum(one["value"] for one in plugin["counters"] if one["name"] == "dropped"))


def test_the_manifest_is_sound_as_it_is_shipped() -> None:
    assert problems(shipped.PLUGINS / "redis_stats") == ""


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"url": "http://127.0.0.1"}, "must specify one of the following schemes"),
        ({"url": "redis://:hunter2@127.0.0.1"}, "a secret never stands in a manifest"),
        ({"every": "0s"}, "every and patience must be longer than nothing"),
    ],
)
def test_settings_that_make_no_sense_are_refused_at_load(settings: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        convert(settings, example.Settings)
    assert "hunter2" not in str(refused.value)


def test_requests_and_tokens_are_counted_and_a_dead_redis_is_noticed_by_nobody(
    server: Server, sidecar: Sidecar
) -> None:
    server.client.flushall()
    before = dropped(sidecar)
    ask(sidecar, 30)
    until(lambda: server.counted() == times(30), "30 requests are counted")
    reloaded_keeps_its_connection(server, sidecar)
    ask(sidecar, 10)
    until(lambda: server.counted() == times(40), "40 requests are counted")
    assert dropped(sidecar) == before
    server.kill()
    ask(sidecar, 20)
    until(lambda: dropped(sidecar) == before + 20, "20 requests are told to be lost")
    server.start()
    ask(sidecar, 5)
    until(lambda: server.counted() == times(5), "it is connected to again")
    until(lambda: "outcomes are counted in Redis again" in "".join(sidecar.log), "that is told")
    assert dropped(sidecar) == before + 20


def test_the_contract_is_kept_with_a_redis_that_answers(server: Server) -> None:
    assert faults(example.RedisStats, config={"url": server.url, "every": "10ms"}) == {}


def reloaded_keeps_its_connection(server: Server, sidecar: Sidecar) -> None:
    """Another version of the plugin's file goes on with the client of the one before."""
    before = server.connections()
    assert len(before) == 1
    generation = sidecar.status()["generation"]
    file = "plugins/redis_stats.py"
    sidecar.write(file, (sidecar.folder / "manifests" / file).read_text() + "\n# edited\n")
    until(lambda: sidecar.status()["generation"] > generation, "the edited file is in force")
    assert server.connections() == before


def test_what_redis_refuses_is_dropped_alone(server: Server, sidecar: Sidecar) -> None:
    server.client.flushall()
    before = dropped(sidecar)
    server.client.set("stats:qwen:ann", "no hash")
    ask(sidecar, 3)
    until(lambda: dropped(sidecar) == before + 3, "3 requests are told to be lost")
    server.client.delete("stats:qwen:ann")
    ask(sidecar, 2)
    until(lambda: server.counted() == times(2), "the next ones are counted")
