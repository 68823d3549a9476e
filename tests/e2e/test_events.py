"""What has happened is told over HTTP and on the command line, and to those who follow as it happens."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.conftest import Run, free_block
from tests.e2e.harness import PATIENCE_S, Sidecar, cli, running, settings, stub, until

ALIAS = 'aliases = ["short"]'


def ask(sidecar: Sidecar, **parameters: Any) -> httpx.Response:
    """`GET /-/events`."""
    return httpx.get(f"{sidecar.url}/-/events", params=parameters, trust_env=False, timeout=PATIENCE_S)


def types(events: list[dict[str, Any]]) -> list[str]:
    """The words alone."""
    return [event["type"] for event in events]


def told(event: dict[str, Any], heard: dict[str, Any]) -> bool:
    """Whether one who has heard this knows of the event: what has happened once more is told once, with a count."""
    return all(event[key] == heard[key] for key in ("type", "model", "reason")) and event["seq"] <= heard["seq"]


class Follower:
    """`sidecar events --follow --json` in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], output: Path) -> None:
        self.process = process
        self._output = output

    def heard(self) -> list[dict[str, Any]]:
        """The events that it has printed; it must be there still."""
        assert self.process.poll() is None
        *whole, _ = self._output.read_text().split("\n")  # the last line may be half written
        return [json.loads(line) for line in whole]

    def has(self, kind: str, times: int = 1) -> bool:
        """Whether it has heard of a type so often."""
        return types(self.heard()).count(kind) >= times


@contextmanager
def following(url: str, folder: Path, *options: str) -> Iterator[Follower]:
    """A follower, ended by Ctrl-C, which must be quiet."""
    output = folder / f"followed-{len(list(folder.iterdir()))}"
    command = [sys.executable, "-m", "sidecar", "events", "--follow", "--json", "--url", url, *options]
    with output.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.PIPE, text=True)
    try:
        yield Follower(process, output)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, said
        assert "Traceback" not in said
        assert "Aborted" not in said
    except BaseException:
        process.kill()
        sys.stderr.write(f"heard: {output.read_text()}\nsaid: {process.communicate()[1]}\n")
        raise


def test_a_models_life_is_told_in_order_by_name_and_alias(run: Run) -> None:
    sidecar = run(stub("m", model=ALIAS), stub("n"))
    sidecar.ask("m")
    sidecar.cli("stop", "m")
    found = ask(sidecar, model="m").json()
    told = types(found["events"])
    assert [kind for kind in told if kind in ("Started", "BecameReady", "Stopped")] == [
        "Started",
        "BecameReady",
        "Stopped",
    ]
    assert ask(sidecar, model="short").json() == found
    assert ask(sidecar, model="n").json()["events"] == []
    assert "RevisionApplied" in types(ask(sidecar, model="").json()["events"])
    first = ask(sidecar, after=0, limit=1).json()
    rest = ask(sidecar, after=first["last"]).json()
    assert first["events"] + rest["events"] == ask(sidecar).json()["events"]
    assert not rest["gap"]


def test_questions_without_an_answer_are_told(run: Run) -> None:
    sidecar = run(stub("mistral"))
    unknown = ask(sidecar, model="mistrl")
    assert unknown.status_code == 404
    assert "near it: mistral" in unknown.json()["error"]["message"]
    faulty = ask(sidecar, limit="many")
    assert (faulty.status_code, faulty.json()["error"]["code"]) == (400, "invalid_request")
    forwarded = httpx.get(
        f"{sidecar.url}/-/events?follow=true", headers={"x-forwarded-for": "1.2.3.4"}, trust_env=False
    )
    assert forwarded.status_code == 403


def test_a_stream_goes_on_after_the_last_event_that_was_heard_and_ends_with_the_sidecar(run: Run) -> None:
    sidecar = run(stub("m"))
    sidecar.ask("m")
    events = ask(sidecar, model="m").json()["events"]
    with (
        httpx.Client(base_url=sidecar.url, trust_env=False, timeout=PATIENCE_S) as http,
        http.stream(
            "GET",
            "/-/events?follow=true&model=m&after=0",
            headers={"last-event-id": str(events[0]["seq"])},
        ) as stream,
    ):
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = stream.iter_lines()
        heard: list[str] = []
        while len(heard) < len(events) - 1:
            heard += re.findall(r"^id: (\d+)", next(lines))
        assert heard == [str(event["seq"]) for event in events[1:]]
        began = time.monotonic()
        assert sidecar.stop() == 0
        assert time.monotonic() - began < 10.0  # nobody waits for those who follow
        assert not [line for line in lines if line.startswith("event:")]


def test_followers_on_the_command_line_hear_over_a_restart(tmp_path: Path) -> None:
    first, _, last = free_block().partition("-")  # below the ports that the system gives to whoever asks meanwhile
    ports = f"{int(first) + 1}-{last}"
    sidecar_toml = settings(tmp_path / "state", ports).replace("127.0.0.1:0", f"127.0.0.1:{first}")
    manifests = {"sidecar.toml": sidecar_toml, "m.toml": stub("m"), "n.toml": stub("n")}
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    with (
        running(tmp_path, manifests) as sidecar,
        following(sidecar.url, outputs) as all_of_it,
        following(sidecar.url, outputs, "--model", "m") as of_m,
    ):
        until(lambda: all_of_it.has("RevisionApplied"), "the history is heard")
        sidecar.ask("m")
        sidecar.ask("n")
        until(lambda: of_m.has("BecameReady") and all_of_it.has("BecameReady", 2), "both have heard")
        sidecar.stop()
        with running(tmp_path, manifests) as again:
            again.ask("m")
            until(lambda: of_m.has("BecameReady", 2) and all_of_it.has("BecameReady", 3), "both have heard again")
            everything = ask(again, limit=2000).json()["events"]
            until(lambda: all_of_it.heard()[-1]["seq"] >= everything[-1]["seq"], "the last is heard")
        heard, heard_of_m = all_of_it.heard(), of_m.heard()
    assert [event for event in everything if not any(told(event, one) for one in heard)] == []
    assert {"m", "n"} <= {event["model"] for event in heard if event["type"] == "Stopped"}  # told after the restart
    seqs = [event["seq"] for event in heard]
    assert seqs == sorted(set(seqs))
    assert {event["model"] for event in heard_of_m} == {"m"}


def test_people_get_a_table_and_programs_lines(run: Run) -> None:
    sidecar = run(stub("m"))
    sidecar.ask("m")
    table = sidecar.cli("events").stdout.splitlines()
    assert table[0].split() == ["TIME", "TYPE", "MODEL", "REASON", "MESSAGE"]
    assert any(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d +BecameReady +m ", line) for line in table)
    lines = sidecar.cli("events", "--json", "--model", "m", "--limit", "1").stdout.splitlines()
    assert [json.loads(line)["model"] for line in lines] == ["m"]
    assert sidecar.cli("events", "--model", "nm", check=False).returncode == 1
    assert sidecar.cli("events", "--follow", "--model", "nm", check=False).returncode == 1


def test_a_reader_that_goes_away_ends_it_quietly(run: Run) -> None:
    sidecar = run(stub("m"))
    command = f"{sys.executable} -m sidecar events --follow --url {sidecar.url}"
    process = subprocess.Popen(command.split(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("TIME")
    process.stdout.close()
    sidecar.ask("m")
    assert process.wait(PATIENCE_S) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()


def test_nobody_to_follow_is_exit_3() -> None:
    for options in ((), ("--follow",)):
        result = cli("events", "--url", "http://127.0.0.1:1", *options, check=False)
        assert result.returncode == 3
        assert "no sidecar answers" in result.stderr
