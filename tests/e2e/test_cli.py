"""The command line: what people read, what programs read, and the exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import Run
from tests.e2e.harness import ROOT, cli, settings, stub, write


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """A directory with a good model and a bad one."""
    folder = tmp_path / "manifests"
    write(folder / "sidecar.toml", settings(tmp_path / "state", "21000-21001"))
    write(folder / "good.toml", stub("good"))
    write(folder / "bad.toml", stub("bad").replace('mode = "chat"', 'mode = "chta"').replace("= 100", '= "much"'))
    return folder


def test_validate_prints_every_problem_with_its_place_and_exits_1(faulty: Path) -> None:
    result = cli("validate", str(faulty), check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        f'{faulty}/bad.toml:3: models.bad.mode: unknown mode "chta"; did you mean "chat"?; '
        "known: base, chat, classifier, embedding, image, messages, realtime, "
        "reranker, responses, speech, transcription",
        f"{faulty}/bad.toml:8: models.bad.variants[0].memory_mb: expected int | table, got str",
        "1 model is fine, 2 problems",
    ]
    assert [
        problem["line"]
        for problem in json.loads(cli("validate", str(faulty), "--json", check=False).stdout)["problems"]
    ] == [3, 8]


def test_validate_of_the_sample_exits_0() -> None:
    assert cli("validate", str(ROOT / "manifests")).stdout == "3 models are fine, 0 problems\n"


def test_plan_of_a_directory_says_what_would_start(faulty: Path) -> None:
    result = cli("plan", str(faulty), "--want", "good", "--json", check=False)
    assert result.returncode == 1  # for what is faulty, and is not in the plan
    actions = json.loads(result.stdout)["actions"]
    assert [(action["action"], action["model"]) for action in actions] == [("Start", "good")]
    assert "bad.toml:3" in result.stderr
    assert "fits on cpu" in cli("plan", str(faulty), "--want", "good", check=False).stdout


def test_a_missing_directory_is_told(tmp_path: Path) -> None:
    for command in ("run", "validate", "plan"):
        result = cli(command, str(tmp_path / "nowhere"), check=False)
        assert result.returncode == 1
        assert f"{tmp_path}/nowhere: no such directory" in result.stderr


def test_a_faulty_sidecar_table_starts_nothing(tmp_path: Path) -> None:
    for text in ("[sidecar]\nlisen = 1\n", "[sidecar", '[sidecar]\nlisten = "0.0.0.0:0"\n'):
        write(tmp_path / "sidecar.toml", text)
        result = cli("run", str(tmp_path), check=False)
        assert result.returncode == 1
        assert "nothing is started" in result.stderr
        assert f"{tmp_path}/sidecar.toml:" in result.stderr


def test_an_unknown_exporter_is_told(tmp_path: Path) -> None:
    write(tmp_path / "sidecar.toml", settings(tmp_path / "state", "21000-21001"))
    result = cli("run", str(tmp_path), check=False, env={"OTEL_TRACES_EXPORTER": "jaegr"})
    assert result.returncode == 1
    assert "OTEL_TRACES_EXPORTER: there is no exporter jaegr" in result.stderr


def test_nobody_answering_is_exit_3_and_wrong_usage_2() -> None:
    for command in (("status",), ("start", "m"), ("stop", "m"), ("plan",)):
        result = cli(*command, "--url", "http://127.0.0.1:1", check=False)
        assert result.returncode == 3
        assert "no sidecar answers at http://127.0.0.1:1" in result.stderr
    assert cli("start", check=False).returncode == 2


def test_devices_are_shown_without_a_sidecar_too() -> None:
    result = cli("devices", "--url", "http://127.0.0.1:1", "--json")
    assert "looking for myself" in result.stderr
    found = json.loads(result.stdout)
    assert (found["kind"], found["version"], found["running"]) == ("sidecar/devices", 1, False)
    assert any(device["device_class"] == "cpu" for device in found["devices"])


def test_status_start_and_stop_of_a_running_sidecar(run: Run) -> None:
    sidecar = run(stub("m"), stub("broken").replace('"{python}"', '"no-such-engine"'))
    assert sidecar.cli("start", "m").stdout.startswith("m is ready (")
    table = sidecar.cli("status").stdout
    assert "cpu" in table
    assert any(line.startswith("m ") and "ready" in line for line in table.splitlines())
    assert json.loads(sidecar.cli("status", "--json").stdout)["models"][-1]["server"]["state"] == "ready"
    failed = sidecar.cli("start", "broken", check=False)
    assert failed.returncode == 1
    assert 'command not found: "no-such-engine"' in failed.stderr
    assert sidecar.cli("start", "nm", check=False).returncode == 1
    assert sidecar.cli("stop", "m").stdout == "m is stopped\n"
    assert sidecar.cli("stop", "m").stdout == "m is stopped: it was not running\n"
