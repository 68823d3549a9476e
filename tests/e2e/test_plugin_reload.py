"""Plugins change under a running sidecar: no request fails, and none sees two generations."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import httpx

from tests.e2e.conftest import Run
from tests.e2e.harness import PATIENCE_S, Sidecar, stub, until

RELOADS = 20
REQUESTS = 1500
AT_ONCE = 16

VERSIONED = """
import asyncio, os
from plugin_sdk import Auth, Outcome, Principal, Request, Stats

VERSION = {version}

class Door(Auth):
    async def authenticate(self, request: Request) -> Principal:
        await asyncio.sleep(0.002)
        return Principal(f"v{VERSION}")

class Ledger(Stats):
    def record(self, outcome: Outcome) -> None:
        with open(os.environ["LEDGER"], "a") as file:
            file.write(f"{outcome.principal} v{VERSION} {outcome.status}\\n")
"""


def versioned(version: int) -> str:
    """A module whose door and ledger tell which version they are of."""
    return VERSIONED.replace("{version}", str(version))


def generation(sidecar: Sidecar) -> int:
    """The generation in force."""
    return int(sidecar.status()["generation"])


def reload(sidecar: Sidecar, version: int) -> None:
    """Write a version, and have it read in one of the ways that there are."""
    before = generation(sidecar)
    sidecar.write("plugins/versioned.py", versioned(version))
    if version % 7 == 3:
        sidecar.process.send_signal(signal.SIGHUP)
    elif version % 7 != 5:  # else the change is seen all by itself
        httpx.post(f"{sidecar.url}/-/reload", trust_env=False, timeout=PATIENCE_S).raise_for_status()
    until(lambda: generation(sidecar) > before, f"version {version} is in force")


async def ask_until(url: str, done: threading.Event) -> list[int]:
    """Ask without a pause, many at once, at least REQUESTS times and until `done`."""
    statuses: list[int] = []
    body = {"model": "m", "messages": []}
    limits = httpx.Limits(max_connections=AT_ONCE)
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=PATIENCE_S, limits=limits) as http:

        async def ask() -> None:
            while len(statuses) < REQUESTS or not done.is_set():
                statuses.append((await http.post("/v1/chat/completions", json=body)).status_code)

        await asyncio.gather(*(ask() for _ in range(AT_ONCE)))
    return statuses


def test_requests_across_twenty_reloads_do_not_fail_and_none_sees_two_generations(run: Run, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    sidecar = run(
        stub("m", model='chain = ["door", "ledger"]'),
        files={"plugins/versioned.py": versioned(0)},
        env={"LEDGER": str(ledger)},
    )
    sidecar.ask("m")
    done = threading.Event()
    statuses: list[int] = []
    asking = threading.Thread(target=lambda: statuses.extend(asyncio.run(ask_until(sidecar.url, done))))
    asking.start()
    try:
        for version in range(1, RELOADS + 1):
            reload(sidecar, version)
    finally:
        done.set()
        asking.join(PATIENCE_S)
    assert set(statuses) == {200}
    assert len(statuses) >= REQUESTS
    until(lambda: len(ledger.read_text().splitlines()) == len(statuses) + 1, "each outcome is recorded")
    seen = [line.split() for line in ledger.read_text().splitlines()]
    assert [line for line in seen if line[0] != line[1] or line[2] != "200"] == []
    assert {line[0] for line in seen} >= {f"v{version}" for version in range(1, RELOADS)}
    assert not [plugin for plugin in sidecar.status()["plugins"] if plugin["failed"] or plugin["behind"]]


def test_a_plugin_dropped_beside_the_manifests_is_in_force_by_itself(run: Run) -> None:
    """Nothing is declared: the file is there, and its device and its mode can be used."""
    code = """
from plugin_sdk import DeviceStatus, Endpoint, Interface, device

class Haiku(Interface):
    provides = "haiku"
    endpoints = (Endpoint("/v1/haiku", "haiku"),)

@device("my_gpu")
def my_gpu() -> DeviceStatus:
    return DeviceStatus(total_mb=16384, free_mb=8192)
"""
    sidecar = run(stub("other"))
    sidecar.write("plugins/extra.py", code)
    until(lambda: "my_gpu" in str(sidecar.status()["devices"]), "the device is seen")
    sidecar.write("basho.toml", stub("basho", mode="haiku", memory_mb=8000).replace('["cpu"]', '["my_gpu"]'))
    until(lambda: "basho" in str(sidecar.status()["models"]), "the model is declared")
    with sidecar.http() as http:
        assert http.post("/v1/haiku", json={"model": "basho", "prompt": "frog"}).status_code == 200


def test_a_version_that_breaks_leaves_the_one_before_in_force_and_is_told(run: Run, tmp_path: Path) -> None:
    sidecar = run(
        stub("m", model='chain = ["door"]'),
        files={"plugins/versioned.py": versioned(0)},
        env={"LEDGER": str(tmp_path / "ledger")},
    )
    sidecar.ask("m")
    sidecar.write("plugins/versioned.py", versioned(1).replace("VERSION = 1", "VERSION = 1\nimport acme_missing\n"))
    until(lambda: sidecar.status()["problems"] != [], "it is told")
    place = sidecar.folder / "manifests" / "plugins" / "versioned.py"
    assert f"{place}:6: importing versioned failed: ModuleNotFoundError" in sidecar.status()["problems"][0]
    assert sidecar.ask("m")
    answer = sidecar.cli("reload", check=False)
    assert answer.returncode == 1
    assert "door stays as it was: importing versioned failed" in answer.stderr
    assert "Plugins that stay as they were" in sidecar.cli("status").stdout
    sidecar.write("plugins/versioned.py", versioned(2))
    until(lambda: sidecar.status()["problems"] == [], "the mended one is taken over")
    assert sidecar.cli("reload").stdout.startswith("revision ")
    assert not [plugin for plugin in sidecar.status()["plugins"] if plugin["behind"]]


def test_a_packaged_plugin_is_usable_by_its_entry_point_and_read_again_on_demand(run: Run, tmp_path: Path) -> None:
    """A distribution that pip has installed."""
    door = "from plugin_sdk import Auth, Principal, Reject\nclass Door(Auth):\n    def authenticate(self, request):\n"
    wheel = tmp_path / "acme_door-1.0-py3-none-any.whl"
    info = "acme_door-1.0.dist-info"
    files = {
        "acme_door/__init__.py": "",
        "acme_door/doors.py": f"{door}        raise Reject(401, 'the first')\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: acme-door\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[sidecar.plugins]\nacme = acme_door.doors:Door\n",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD")))
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(site)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True, timeout=PATIENCE_S)
    sidecar = run(stub("m", model='chain = ["acme"]'), env={"PYTHONPATH": f"{site}:{Path.cwd()}"})

    def answer() -> str:
        body = {"model": "m", "messages": []}
        found = httpx.post(f"{sidecar.url}/v1/chat/completions", json=body, trust_env=False, timeout=PATIENCE_S)
        return str(found.json()["error"]["message"])

    assert "the first" in answer()
    (site / "acme_door" / "doors.py").write_text(f"{door}        raise Reject(401, 'the second')\n")
    assert "the first" in answer()
    sidecar.cli("reload")
    assert "the second" in answer()
