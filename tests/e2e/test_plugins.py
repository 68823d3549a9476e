"""Plugins from the manifests' own folder; and auth that fails closed, whatever happens to it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.e2e.conftest import Run
from tests.e2e.harness import stub, until

HEAD = """
from plugin_sdk import Auth, DeviceStatus, Endpoint, Interface, Outcome, Principal, Reject, Request, Stats, device
"""

GOOD = """
class Door(Auth):
    def authenticate(self, request: Request) -> Principal:
        if request.bearer_token != "open-sesame":
            raise Reject(403, "say the word", code="wrong_word")
        return Principal("ali")
"""


def door(body: str) -> dict[str, str]:
    """A plugin module beside the manifests, and its declaration."""
    return {"plugins/doors.py": HEAD + body, "doors.toml": '[plugins.door]\nimport = "doors:Door"\n'}


def guarded(name: str = "m") -> str:
    """A model behind the door."""
    return stub(name, model='chain = ["door"]')


def test_an_auth_plugin_beside_the_manifests_decides(run: Run) -> None:
    sidecar = run(guarded(), files=door(GOOD))
    with sidecar.http() as http:
        body = {"model": "m", "messages": []}
        refused = http.post("/v1/chat/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "wrong_word")
        admitted = http.post("/v1/chat/completions", json=body, headers={"authorization": "Bearer open-sesame"})
        assert admitted.status_code == 200


def test_a_door_that_does_not_work_stays_shut_and_other_models_serve(run: Run) -> None:
    """tests/e2e/test_bad_plugins.py has all the ways in which it may not work."""
    sidecar = run(guarded(), stub("other"), files=door("raise RuntimeError('at import')\n"))
    with sidecar.http() as http:
        headers = {"authorization": "Bearer open-sesame"}
        answer = http.post("/v1/chat/completions", json={"model": "m", "messages": []}, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "auth_unavailable")
    assert sidecar.starts("m") == 0
    assert sidecar.ask("other").startswith("other-0")


def test_a_mode_and_a_device_class_come_from_plugins(run: Run) -> None:
    code = """
class Haiku(Interface):
    provides = "haiku"
    endpoints = (Endpoint("/v1/haiku", "haiku"),)

@device("my_gpu")
def my_gpu() -> DeviceStatus:
    return DeviceStatus(total_mb=16384, free_mb=8192)
"""
    declared = '[plugins.haiku]\nimport = "extra:Haiku"\n[plugins.my_gpu]\nimport = "extra:my_gpu"\n'
    model = stub("basho", mode="haiku", memory_mb=8000).replace('["cpu"]', '["my_gpu"]')
    sidecar = run(model, files={"plugins/extra.py": HEAD + code, "extra.toml": declared})
    with sidecar.http() as http:
        assert http.post("/v1/haiku", json={"model": "basho", "prompt": "frog"}).status_code == 200
    reports = {device["device_class"]: device for device in sidecar.status()["devices"]}
    assert reports["my_gpu"]["reserved_mb"] == 8000


def test_a_stats_plugin_sees_every_outcome_and_its_failure_hurts_nobody(run: Run) -> None:
    code = """
import json, os
class Ledger(Stats):
    def record(self, outcome: Outcome) -> None:
        if outcome.model == "poison":
            raise RuntimeError("cannot write")
        with open(os.environ["LEDGER"], "a") as file:
            file.write(json.dumps([outcome.model, outcome.principal, outcome.end.value, outcome.status]) + "\\n")
"""
    declared = '[plugins.ledger]\nimport = "extra:Ledger"\n'
    chain = 'chain = ["keys", "ledger"]'
    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder) / "ledger"
        sidecar = run(
            stub("m", model=chain),
            stub("poison", model=chain),
            files={"plugins/extra.py": HEAD + code, "extra.toml": declared},
            env={"LEDGER": str(ledger)},
        )
        assert sidecar.ask("poison")
        assert sidecar.ask("m")
        until(lambda: ledger.exists() and '["m", "tester", "ok", 200]' in ledger.read_text(), "the outcome is recorded")
        plugin = next(plugin for plugin in sidecar.status()["plugins"] if plugin["name"] == "ledger")
        assert plugin["failed"] == 1


def test_a_plugin_that_cancels_or_exits_ends_nothing_but_its_own_call(run: Run) -> None:
    """An interface that throws what is not for it to throw: its models do not come up, and everything else goes on."""
    code = """
import asyncio, sys
class Selfish(Interface):
    provides = "selfish"
    endpoints = (Endpoint("/v1/selfish", "selfish"),)
    async def ready(self, upstream):
        raise asyncio.CancelledError
    async def close(self):
        sys.exit(3)
"""
    declared = '[plugins.selfish]\nimport = "extra:Selfish"\n'
    model = stub("mine", mode="selfish", variant='load_timeout = "2s"')
    elsewhere = '[models.ext]\nmode = "selfish"\nvariants = [{ url = "http://127.0.0.1:1" }]\n'
    files = {"plugins/extra.py": HEAD + code, "extra.toml": declared, "ext.toml": elsewhere}
    sidecar = run(model, stub("other"), files=files)
    with sidecar.http() as http:
        answer = http.post("/v1/selfish", json={"model": "mine"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "load_timeout")
        assert "the interface's probe failed" in answer.json()["error"]["message"]
    assert sidecar.starts("mine") == 1
    sidecar.write("late.toml", stub("late"))
    until(lambda: any(one["name"] == "late" for one in sidecar.status()["models"]), "manifests are still looked at")
    assert sidecar.ask("other").startswith("other-0")
