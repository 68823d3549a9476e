"""A git repository as the source, from a real git server over HTTP, while requests flow."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from sidecar.surfaces.cli import main
from tests.e2e.conftest import free_block
from tests.e2e.harness import NO_TLS, Sidecar, cli, running, settings, stub, until
from tests.repository import AUTHOR, Repository, allow, ssh_key
from tests.servers import GIT_SERVER
from tests.support import Program, free_port, serving

SECRET = "hook-5ecret"
TOKEN = "t0ken-for-git"


class World:
    """A repository, the server that serves it, and the bootstrap file of a sidecar that follows it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repository = Repository(folder, really=True)
        self.key = ssh_key(folder / "key")
        self.port = free_port()
        self.env = {"GIT_TOKEN": TOKEN, "HOOK_SECRET": SECRET}
        self.state = folder / "state"
        allow(folder / "signers", self.key)
        (folder / "manifests").write_text(f"""
[source]
git = "http://127.0.0.1:{self.port}/manifests.git"
ref = "main"
path = "deploy"
interval = "0s"
timeout = "20s"
verify = "signed"
allowed_signers = "signers"
token = {{ env = "GIT_TOKEN" }}
webhook_secret = {{ env = "HOOK_SECRET" }}
state_dir = "{self.state}"
""")

    def push(self, message: str, files: dict[str, str | None], *, signed: bool = True) -> str:
        """Push files below `deploy`, and return the commit."""
        files = {f"deploy/{name}": text for name, text in files.items()}
        return self.repository.push(files, message, key=self.key if signed else None)

    @contextmanager
    def served(self) -> Iterator[Program]:
        """The git server, on the same port each time."""
        with serving(GIT_SERVER, "--root", str(self.folder), "--token", TOKEN, "--port", str(self.port)) as program:
            yield program

    def running(self) -> Any:
        """A sidecar on the bootstrap file."""
        return running(self.folder, {}, self.env)


class Asked:
    """What `POST /-/source/...` does to a running sidecar."""

    def __init__(self, sidecar: Sidecar) -> None:
        self.sidecar = sidecar

    def __call__(self, verb: str = "sync", status: int = 200, **params: str) -> dict[str, Any]:
        url = f"{self.sidecar.url}/-/source/{verb}"
        answer = httpx.post(url, params=params, trust_env=False, verify=NO_TLS, timeout=30)
        assert answer.status_code == status, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def history(self) -> list[dict[str, Any]]:
        """What came of the last commits."""
        answer = httpx.get(f"{self.sidecar.url}/-/source/history", trust_env=False, verify=NO_TLS, timeout=30)
        found: list[dict[str, Any]] = answer.json()["history"]
        return found


def said(sidecar: Sidecar, *arguments: str, code: int = 0) -> str:
    """What a command of the command line says of the sidecar; in this process, as starting one takes long."""
    done = CliRunner().invoke(main, [*arguments, "--url", sidecar.url])
    assert done.exit_code == code, done.output
    sidecar.told[" ".join(arguments)] = done.output
    return done.stdout


class Flow:
    """Requests to one model, one after the other, and one stream that goes on for all the time."""

    def __init__(self, sidecar: Sidecar, model: str) -> None:
        self.lost: list[str] = []
        self.answered = 0
        self.streamed = b""
        self._sidecar = sidecar
        self._model = model
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask), threading.Thread(target=self._stream)]

    def __enter__(self) -> Flow:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        with self._sidecar.http() as http:
            while not self._stop.is_set():
                answer = http.post("/v1/chat/completions", json={"model": self._model, "messages": []})
                if answer.status_code == 200:
                    self.answered += 1
                else:
                    self.lost.append(answer.text)
                self._stop.wait(0.05)

    def _stream(self) -> None:
        body = {"model": self._model, "messages": [], "stream": True, "max_tokens": 100000}
        try:
            with self._sidecar.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as answer:
                for piece in answer.iter_raw():
                    self.streamed += piece
                    if self._stop.is_set():
                        return
                self.lost.append("the stream has ended")
        except httpx.HTTPError as error:
            self.lost.append(repr(error))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_repository_is_followed_through_all_that_may_become_of_it_and_no_request_is_lost(world: World) -> None:
    own = settings(world.state, free_block())
    steady = stub("steady", "--interval", "0.05")
    first = world.push("Begin", {"sidecar.toml": own, "steady.toml": steady, "other.toml": stub("other")})
    with ExitStack() as server:
        server.enter_context(world.served())
        with world.running() as sidecar:
            asked = Asked(sidecar)
            assert sidecar.ask("steady")
            pid = sidecar.pid("steady")
            with Flow(sidecar, "steady") as flow:
                _good_and_bad(world, sidecar, asked)
                _signatures(world, sidecar, asked)
                _rewritten(world, sidecar, asked, first)
                _emptied_and_rolled_back(world, sidecar, asked, first)
                server.close()
                _without_a_server(world, sidecar, asked)
            assert not flow.lost
            assert flow.answered > 20
            assert len(flow.streamed) > 1000
            assert sidecar.pid("steady") == pid
            assert not any(secret in "".join(sidecar.log) for secret in (SECRET, TOKEN))
            assert not any(secret in json.dumps(sidecar.status()) for secret in (SECRET, TOKEN))


def _good_and_bad(world: World, sidecar: Sidecar, asked: Asked) -> None:
    good = world.push("An alias", {"other.toml": stub("other", model='aliases = ["second"]')})
    report = asked()
    assert (report["state"], report["commit"]) == ("in sync", good)
    assert sidecar.model("other")["aliases"] == ["second"]
    applied = sidecar.status()["applied"]

    bad = world.push("A typo", {"other.toml": stub("other").replace("memory_mb", "memroy_mb"), "new.toml": stub("new")})
    report = asked()
    assert (report["state"], report["commit"], report["attempted"]) == ("rejected", good, bad)
    assert report["messages"][0].startswith("deploy/other.toml:8: models.other.variants[0].memroy_mb: unknown key")
    status = sidecar.status()
    assert status["problems"] == report["messages"]
    assert status["applied"] == applied
    assert status["attempted"] not in ("", applied)
    assert [model["name"] for model in status["models"]] == ["other", "steady"]  # nothing of it, not even what is good
    assert sidecar.model("other")["aliases"] == ["second"]
    last = asked.history()[-1]
    assert (last["commit"]["id"], last["outcome"], last["trigger"]) == (bad, "rejected", "command")
    assert (last["commit"]["author"], last["commit"]["subject"]) == (AUTHOR, "A typo")
    assert last["reasons"] == report["messages"]
    assert f"from git {report['place']} main:deploy @ {good[:12]}, rejected" in said(sidecar, "status")
    shown = said(sidecar, "source", "history")
    assert f"{bad[:12]} deploy/other.toml:8: models.other" in shown
    events = said(sidecar, "events", "--json").splitlines()
    rejected = [event for event in map(json.loads, events) if event["type"] == "RevisionRejected"]
    assert "deploy/other.toml:8" in rejected[-1]["message"]
    assert "A typo" in rejected[-1]["message"]


def _signatures(world: World, sidecar: Sidecar, asked: Asked) -> None:
    good = {"other.toml": stub("other", model='aliases = ["third"]'), "new.toml": None}
    unsigned = world.push("Not signed", good, signed=False)
    report = asked()
    assert (report["state"], report["attempted"]) == ("rejected", unsigned)
    assert "is not signed by anybody who is trusted here: it has no signature" in report["messages"][0]
    stranger = ssh_key(world.folder / "stranger")
    world.repository.commit("Signed by somebody", key=stranger)
    report = asked()
    assert report["state"] == "rejected"
    assert "No principal matched" in report["messages"][0]
    assert sidecar.model("other")["aliases"] == ["second"]

    signed = world.repository.commit("Signed", key=world.key)
    body = b'{"ref": "refs/heads/main"}'
    headers = {
        "x-forwarded-for": "203.0.113.7",
        "x-hub-signature-256": "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest(),
    }
    url = f"{sidecar.url}/-/source/sync"
    for _ in range(3):
        answer = httpx.post(url, content=body, headers=headers, trust_env=False, verify=NO_TLS)
        assert (answer.status_code, answer.json()["accepted"]) == (202, True)
    until(lambda: sidecar.model("other")["aliases"] == ["third"], "the webhook's commit is in force")
    last = asked.history()[-1]
    assert (last["commit"]["id"], last["trigger"]) == (signed, "webhook")
    assert last["signed_by"].startswith("alice@example.com SHA256:")
    forged = httpx.post(url, content=body + b" ", headers=headers, trust_env=False, verify=NO_TLS)
    assert (forged.status_code, forged.json()["error"]["code"]) == (401, "invalid_signature")
    with httpx.Client(trust_env=False, verify=NO_TLS) as http:
        large = [http.post(url, content=bytes(2**18 + 1), headers=headers).status_code for _ in range(35)]
        assert (large[0], large[-1]) == (401, 429)
        assert http.post(url, content=body + b" ", headers=headers).status_code == 401
        assert http.post(url, content=body, headers=headers).status_code == 202  # whoever floods it keeps nobody out
    unnamed = httpx.post(url, headers={"x-forwarded-for": "203.0.113.7"}, trust_env=False, verify=NO_TLS)
    assert (unnamed.status_code, unnamed.json()["error"]["code"]) == (403, "not_loopback")


def _rewritten(world: World, sidecar: Sidecar, asked: Asked, first: str) -> None:
    world.repository.back_to(first)
    rewritten = world.push("Another history", {"other.toml": stub("other", model='aliases = ["fourth"]')})
    assert asked()["commit"] == rewritten
    assert asked.history()[-1]["rewritten"] is True
    assert sidecar.model("other")["aliases"] == ["fourth"]


def _emptied_and_rolled_back(world: World, sidecar: Sidecar, asked: Asked, first: str) -> None:
    empty = world.push("Emptied", {"steady.toml": None, "other.toml": None})
    report = asked()
    assert (report["state"], report["attempted"]) == ("rejected", empty)
    assert "declares no model any more" in report["messages"][0]
    world.push("All gone", {"sidecar.toml": None})
    assert "has no folder deploy" in asked()["messages"][0]
    assert {model["name"] for model in sidecar.status()["models"]} == {"steady", "other"}

    report = asked("pin", commit=first[:10])
    assert (report["state"], report["commit"], report["pinned"]) == ("pinned", first, first)
    assert sidecar.model("other")["aliases"] == []
    assert asked("pin", 409, commit=empty)["error"]["code"] == "commit_rejected"
    for unknown in ("0123456789", "0123456789" * 4):
        assert asked("pin", 404, commit=unknown)["error"]["code"] == "commit_not_found"
    world.repository.back_to(first)
    last = world.push("The last", {"other.toml": stub("other", model='aliases = ["fifth"]')})
    report = asked()
    assert (report["state"], report["commit"], report["head"]) == ("pinned", first, last)
    assert (asked("suspend")["state"], asked("unpin")["pinned"]) == ("suspended", "")
    assert asked("sync", 409)["error"]["code"] == "source_suspended"
    assert sidecar.model("other")["aliases"] == []
    assert asked("resume")["commit"] == last
    assert sidecar.model("other")["aliases"] == ["fifth"]


def _without_a_server(world: World, sidecar: Sidecar, asked: Asked) -> None:
    """It goes on without the server, and takes up what comes when it is back."""
    world.push("While nobody looks", {"other.toml": stub("other", model='aliases = ["late"]')})
    report = asked()
    assert report["state"] == "failing"
    assert "Failed to connect to 127.0.0.1" in report["messages"][0]
    assert asked("pin", 503, commit="0123456789" * 4)["error"]["code"] == "source_failed"
    assert said(sidecar, "source", code=1)
    assert sidecar.model("other")["aliases"] == ["fifth"]
    with world.served():
        assert asked()["state"] == "in sync"
    assert sidecar.model("other")["aliases"] == ["late"]
    kinds = {json.loads(line)["type"] for line in said(sidecar, "events", "--json").splitlines()}
    assert {"SourceFailed", "SourceRecovered", "SourcePinned", "SourceSuspended", "CommitApplied"} <= kinds


@pytest.mark.soak
def test_a_sidecar_without_its_server_starts_on_what_it_had(world: World) -> None:
    world.push("Begin", {"sidecar.toml": settings(world.state, free_block()), "m.toml": stub("m")})
    with world.served(), world.running() as sidecar:
        bad = world.push("Bad", {"m.toml": "no toml"})
        assert Asked(sidecar)()["attempted"] == bad
    with world.running() as sidecar:
        assert sidecar.ask("m")
        assert Asked(sidecar)()["state"] == "failing"
        assert [one["outcome"] for one in Asked(sidecar).history()] == ["applied", "rejected"]  # of the sidecar before
        assert said(sidecar, "reload")
        with world.served():
            assert Asked(sidecar)()["state"] == "rejected"


def test_a_first_commit_that_is_bad_starts_nothing_and_says_where(world: World) -> None:
    world.push("Bad", {"sidecar.toml": settings(world.state, free_block()), "m.toml": "[models.m]\nmode = 1\n"})
    with world.served():
        refused = harness_run(world)
    assert refused.returncode == 1
    assert "deploy/m.toml:2: models.m.mode: expected" in refused.stderr
    assert "nothing is started" in refused.stderr
    refused = harness_run(world)
    assert refused.returncode == 1
    assert "Failed to connect" in refused.stderr
    assert "there is no checkout yet" in refused.stderr


def harness_run(world: World) -> Any:
    """A sidecar that is expected to end by itself."""
    return cli("run", str(world.folder / "manifests"), check=False, env={**os.environ, **world.env})


@pytest.mark.soak
def test_a_sidecar_that_is_killed_at_any_moment_goes_on_with_what_is_whole(tmp_path: Path) -> None:
    world = World(tmp_path)
    text = (tmp_path / "manifests").read_text().replace('interval = "0s"', 'interval = "1s"')
    (tmp_path / "manifests").write_text(text)
    own = settings(world.state, free_block())
    world.push("Begin", {"sidecar.toml": own, "m.toml": stub("m")})
    chance = random.Random(7)  # noqa: S311 - for moments
    with world.served():
        for number in range(30):
            with world.running() as sidecar:
                (model,) = sidecar.status()["models"]
                assert model["aliases"] in ([], *([f"alias-{one}"] for one in range(number)))
                world.push(str(number), {"m.toml": stub("m", model=f'aliases = ["alias-{number}"]')})
                time.sleep(chance.uniform(0, 2))
                sidecar.process.kill()
                sidecar.process.wait()
        with world.running() as sidecar:
            until(lambda: sidecar.model("m")["aliases"] == ["alias-29"], "the last commit is in force")
            assert Asked(sidecar)()["state"] == "in sync"
    left = {
        path.name for path in (world.state / "source").rglob("*") if ".draft" in path.name or path.suffix == ".lock"
    }
    assert not left
    assert len(list((world.state / "source" / "checkouts").iterdir())) <= 3
