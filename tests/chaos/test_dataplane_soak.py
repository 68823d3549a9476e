"""The data plane under everything at once, for as long as `SIDECAR_SOAK_S` says: nothing leaks, nothing is miscounted.

By `./tests/run -m soak`, with `-s` to see the figures.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from sidecar.mechanism.memory import EVERY_S
from tests.chaos.churn import Client, Tally
from tests.chaos.conftest import SMALL
from tests.chaos.world import accounted_for, servers
from tests.e2e.conftest import free_block
from tests.e2e.harness import KEY, Sidecar, running, settings, until
from tests.servers import BUSY_SERVER
from tests.support import free_port

pytestmark = pytest.mark.soak

SOAK_S = float(os.environ.get("SIDECAR_SOAK_S", "900"))
ROUNDS = 3  # after the first, all that is kept on purpose is there
CLIENTS = 24
PLAIN, SEEN = ("steady", "single"), ("checked", "moving")  # without and with a filter
EXPECTED = {200, 400, 404, 413, 502, 503}
IDLE_S = 6.0  # connections to servers are kept for less

PLUGINS = """
import asyncio, gc, json
from plugin_sdk import Event, Exchange, Filter, Response, inline

class Stamp(Filter):
    version = 0

    async def on_request(self, exchange: Exchange) -> None:
        await asyncio.sleep(0)

    @inline
    def on_event(self, exchange: Exchange, event: Event) -> None:
        exchange.state["version"] = self.version

class Debug(Filter):
    async def on_request(self, exchange: Exchange) -> Response:
        gc.collect()
        found = {"objects": len(gc.get_objects()), "tasks": len(asyncio.all_tasks())}
        return Response(status=200, body=json.dumps(found).encode())
"""


def manifests(state: Path, first: int, second: int) -> dict[str, str]:
    """Models elsewhere, of which the one at `second` has nobody to take over, and two that do not fit together."""
    small = "\n".join(
        f"""
[models.small{number}]
mode = ["chat", "realtime"]
chain = []
min_residency = "0s"
[[models.small{number}.variants]]
required_devices = ["cpu"]
memory_mb = 300
command = ["{{python}}", "{BUSY_SERVER}", "--port", "{{port}}"]
"""
        for number in (1, 2)
    )
    elsewhere = f"""
[plugins.stamp]
import = "soak:Stamp"
[plugins.debug]
import = "soak:Debug"

[models.steady]
mode = ["chat", "realtime"]
chain = []
variants = [{{ name = "a", url = "http://127.0.0.1:{first}" }}, {{ name = "b", url = "http://127.0.0.1:{second}" }}]

[models.checked]
mode = "chat"
chain = ["keys", "stamp"]
variants = [{{ url = "http://127.0.0.1:{first}", model_name = "org/checked" }}]

[models.single]
mode = ["chat", "realtime"]
chain = ["keys"]
variants = [{{ url = "http://127.0.0.1:{second}" }}]

[models.debug]
mode = "chat"
chain = ["debug"]
variants = [{{ url = "http://127.0.0.1:{first}" }}]
"""
    extra = 'body_timeout = "90s"\n'
    return {
        "sidecar.toml": settings(state, free_block(), extra) + SMALL,
        "elsewhere.toml": elsewhere,
        "moving.toml": moving(first, 0),
        "small.toml": small,
        "plugins/soak.py": PLUGINS,
    }


def moving(port: int, version: int) -> str:
    """A model that is another one each time."""
    return f"""
[models.moving]
mode = "chat"
chain = ["stamp"]
aliases = ["moving-{version}"]
variants = [{{ url = "http://127.0.0.1:{port}", model_name = "moving-{version}" }}]
"""


class Elsewhere:
    """A server that somebody else runs, and that dies now and then."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen([sys.executable, BUSY_SERVER, "--port", str(self.port)])

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Quiet(msgspec.Struct, frozen=True):
    """What there is when nothing goes on."""

    fds: int
    rss_mb: float
    in_use_mb: float  # the least of a while in which what is free in its heaps is given back
    objects: int
    tasks: int


class Soak:
    """A sidecar, all its clients so far, and those who will not let it rest."""

    def __init__(self, sidecar: Sidecar, first: Elsewhere, second: Elsewhere) -> None:
        self.sidecar = sidecar
        self.tally = Tally()
        self.asked = 0  # for figures
        self.version = 0
        self._elsewhere = (first, second)
        self._random = random.Random(0)  # noqa: S311 - no secret is made of it
        self.port = int(sidecar.url.rpartition(":")[2])
        self._proc = Path(f"/proc/{sidecar.process.pid}")

    # --- the noise ----------------------------------------------------------------------------------------------

    async def round(self, number: int, duration_s: float) -> list[float]:
        """Everything at once; the sidecar's memory, second by second."""
        ended = asyncio.Event()
        seeds = itertools.count(number * 1000)
        clients = [Client(self.port, self.tally, next(seeds), (*PLAIN, *SEEN), PLAIN) for _ in range(CLIENTS)]
        swapping = [Client(self.port, self.tally, next(seeds), (name,), ()) for name in ("small1", "small2")]
        works = [client.run(ended) for client in clients] + [client.swap(ended) for client in swapping]
        others = [self._every(2.0, self._move), self._every(3.0, self._renew), self._every(4.0, self._kill)]
        disturbing = [asyncio.ensure_future(one) for one in others]
        working = [asyncio.ensure_future(one) for one in works]
        samples = []
        end = time.monotonic() + duration_s
        while time.monotonic() < end:
            await asyncio.sleep(1)
            samples.append(self.rss_mb())
        ended.set()
        await asyncio.gather(*working)
        for one in disturbing:
            one.cancel()
        await asyncio.wait(disturbing)
        return samples

    async def _every(self, pause_s: float, work: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(pause_s * (0.5 + self._random.random()))
            await asyncio.shield(asyncio.to_thread(work))

    def _move(self) -> None:
        self.version += 1
        self.sidecar.write("moving.toml", moving(self._elsewhere[0].port, self.version))

    def _renew(self) -> None:
        self.version += 1
        self.sidecar.write("plugins/soak.py", PLUGINS.replace("version = 0", f"version = {self.version}"))
        if self._random.random() < 0.3:
            httpx.post(f"{self.sidecar.url}/-/reload", trust_env=False, timeout=30).raise_for_status()

    def _kill(self) -> None:
        one = self._random.choice(self._elsewhere)
        one.kill()
        time.sleep(self._random.random() / 2)
        one.start()

    # --- the silence --------------------------------------------------------------------------------------------

    def rss_mb(self) -> float:
        return int((self._proc / "status").read_text().partition("VmRSS:")[2].split()[0]) / 1024

    def requests(self) -> dict[str, Any]:
        found: dict[str, Any] = self.sidecar.status()["requests"]
        return found

    def quiet(self) -> Quiet:
        """Fail unless nothing is in flight; what there is then."""
        until(lambda: self.requests()["in_flight"] == 0, f"no request is in flight: {self.requests()}", 15)
        until(lambda: self.requests()["connections"] == 1, "all clients have gone but this one")
        for name in servers(self.sidecar):
            self.sidecar.cli("stop", name)
        status = self.sidecar.status()
        assert not any(model["waiting"] for model in status["models"])
        assert not any(model["server"] for model in status["models"])
        accounted_for(self.sidecar)
        time.sleep(IDLE_S)
        self.asked += 1
        found = httpx.post(
            f"{self.sidecar.url}/v1/chat/completions",
            json={"model": "debug", "messages": []},
            headers={"authorization": f"Bearer {KEY}"},
            trust_env=False,
            timeout=30,
        ).json()
        fds = len(list((self._proc / "fd").iterdir()))
        return Quiet(fds, self.rss_mb(), self._least_mb(), found["objects"], found["tasks"])

    def _least_mb(self) -> float:
        end, least = time.monotonic() + EVERY_S + 5, self.rss_mb()
        while time.monotonic() < end:
            time.sleep(1)
            least = min(least, self.rss_mb())
        return least

    def add_up(self) -> None:
        """Fail unless clients and sidecar have counted the same."""
        requests, tally = self.requests(), self.tally
        certain, unsure = tally.certain + self.asked, tally.left + tally.lost + len(tally.hung)
        assert not tally.hung, tally.hung
        assert certain <= requests["accepted"] <= certain + unsure, (requests, vars(tally))
        assert requests["ended"]["client_gone"] + requests["abandoned"] <= unsure, (requests, vars(tally))
        assert tally.statuses[200] + self.asked <= requests["ended"]["ok"] + requests["listed"], (requests, vars(tally))
        assert tally.statuses.keys() <= EXPECTED, tally.statuses


@pytest.fixture
def soak(tmp_path: Path) -> Iterator[Soak]:
    first, second = Elsewhere(free_port()), Elsewhere(free_port())
    try:
        with running(tmp_path, manifests(tmp_path / "state", first.port, second.port)) as sidecar:
            yield Soak(sidecar, first, second)
    finally:
        first.kill()
        second.kill()


@pytest.mark.timeout(SOAK_S * 2 + 300 + ROUNDS * 2 * EVERY_S)
def test_nothing_leaks_and_everything_is_counted_whatever_goes_on(soak: Soak) -> None:
    assert not soak.sidecar.status()["problems"]
    seen: list[Quiet] = [soak.quiet()]
    for number in range(ROUNDS):
        samples = asyncio.run(soak.round(number, SOAK_S / ROUNDS))
        seen.append(soak.quiet())
        sys.stderr.write(f"round {number}: {seen[-1]}, at most {max(samples):.0f} MB, {soak.requests()}\n")
        sys.stderr.write(f"clients: {vars(soak.tally)}\n")
        soak.add_up()
    half = len(samples) // 2  # bodies that plugins see come and go: the least is what stays
    assert min(samples[half:]) - min(samples[:half]) < 5, "memory grows under load"
    start, warm, before, last = seen[0], seen[1], seen[-2], seen[-1]
    assert last.in_use_mb - warm.in_use_mb < 5, seen
    assert abs(last.fds - start.fds) <= 4, seen
    assert last.tasks <= start.tasks + 2, seen
    assert last.rss_mb - before.rss_mb < 5, seen
    assert last.rss_mb - start.rss_mb < 40, "what was used once is not given back"
    assert last.objects - before.objects < 2000, seen
    noise = [line for line in soak.sidecar.log if "Traceback" in line or "never retrieved" in line]
    assert not noise, noise[:5]
