"""Shells complete commands and the names of models: of the sidecar that runs, or else of the manifests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner

from sidecar.surfaces.cli import main
from sidecar.surfaces.cli.completion import SHELLS
from tests.support import model, write
from tests.surfaces.cli.canned import Canned, canned


@pytest.fixture
def sidecar() -> Iterator[Canned]:
    with canned() as found:
        yield found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where somebody types: beside manifests."""
    write(
        tmp_path / "manifests", {"m.toml": model("declared-one") + model('"org/declared-two"'), "bad.toml": "[models"}
    )
    return tmp_path


def complete(*words: str) -> list[str]:
    """What the last word may become."""
    *before, last = words
    return [found.value for found in BashComplete(main, {}, "sidecar", "X").get_completions(before, last)]


def test_names_are_those_of_the_running_sidecar(sidecar: Canned, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert complete("stop", "--url", sidecar.url, "b") == ["bge-m3", "broken"]


def test_without_a_sidecar_they_are_those_of_the_manifests(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SIDECAR_URL", "http://127.0.0.1:1")
    for command in (["start"], ["explain"], ["pin"], ["logs"], ["events", "--model"], ["plan", "--want"]):
        assert complete(*command, "org") == ["org/declared-two"], command
    assert complete("dra") == ["drain"]
    monkeypatch.chdir("/")
    assert complete("start", "") == []
    assert capsys.readouterr() == ("", "")


def test_a_sidecar_that_hangs_holds_nobody_up_who_types(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with socket.create_server(("127.0.0.1", 0)) as hangs:
        began = time.monotonic()
        assert complete("start", "--url", f"http://127.0.0.1:{hangs.getsockname()[1]}", "org") == ["org/declared-two"]
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_gets_a_script_that_it_can_read(shell: str) -> None:
    script = CliRunner().invoke(main, ["completion", shell])
    assert script.exit_code == 0
    assert "_SIDECAR_COMPLETE" in script.stdout
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script.stdout, text=True, check=True)


def test_bash_completes_with_the_script(sidecar: Canned, folder: Path) -> None:
    script = CliRunner().invoke(main, ["completion", "bash"]).stdout
    program = f'{sys.executable} -c "from sidecar.surfaces.cli import main; main(prog_name=\'sidecar\')" "$@"'
    command = folder / "sidecar"
    command.write_text(f"#!/bin/sh\nexec {program}\n")
    command.chmod(0o755)
    typed = 'COMP_WORDS=(sidecar stop q); COMP_CWORD=2; _sidecar_completion sidecar; echo "${COMPREPLY[@]}"'
    env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "SIDECAR_URL": sidecar.url}
    answer = subprocess.run(
        ["bash", "-c", f"{script}\n{typed}"], env=env, cwd=folder, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "qwen3-32b"


def test_an_unknown_shell_is_wrong_usage() -> None:
    assert CliRunner().invoke(main, ["completion", "csh"]).exit_code == 2
