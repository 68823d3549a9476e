"""What holds for all commands: what prints data prints it as JSON, too, and exit codes mean what the help says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from sidecar.surfaces.cli import main
from tests.support import model, write
from tests.surfaces.cli.canned import Canned, canned

ROOT = Path(__file__).resolve().parents[3]
AWAY = ("--url", "http://127.0.0.1:1")
NO_DATA = {
    "run": "it serves, and speaks by its log",
    "schema": "what it prints is JSON",
    "completion": "what it prints is a script",
    "plugin docs": "what it prints is a text to read",
}


def commands(command: click.Command = main, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, by its words."""
    if not isinstance(command, click.Group):
        yield " ".join(path), command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None
        yield from commands(found, (*path, name))


ALL = dict(commands())


@pytest.fixture
def sidecar() -> Iterator[Canned]:
    with canned() as found:
        yield found


@pytest.mark.parametrize("name", ALL)
def test_what_prints_data_has_json_and_every_option_has_a_word_of_help(name: str) -> None:
    options = [one for one in ALL[name].params if isinstance(one, click.Option)]
    assert any("--json" in option.opts for option in options) != (name in NO_DATA)
    assert [option.opts for option in options if not (option.help or "").strip() and option.name != "log_level"] == []
    assert ALL[name].help


@pytest.mark.parametrize("name", [name for name in ALL if any("--url" in one.opts for one in ALL[name].params)])
def test_where_no_sidecar_answers_the_exit_code_is_3_unless_it_can_do_without(name: str, tmp_path: Path) -> None:
    write(tmp_path, {"s.toml": f'[sidecar]\nstate_dir = "{tmp_path}/state"\n', "m.toml": model("m")})
    required = {"calibrate": [str(tmp_path)], "top": ["--once"], "init": [str(tmp_path / "new")]}
    needed = [one for one in ALL[name].params if isinstance(one, click.Argument) and one.required]
    if name == "doctor" or name.startswith("import"):
        return  # they look for one, and end by what they find
    found = CliRunner().invoke(main, [*name.split(), *required.get(name, ["m"] * len(needed)), *AWAY])
    without = name in ("devices", "init")
    assert found.exit_code == (0 if without else 3), found.output
    assert without or "no sidecar answers at http://127.0.0.1:1" in found.stderr


@pytest.mark.parametrize("name", ALL)
def test_what_is_used_wrongly_ends_with_2(name: str) -> None:
    found = CliRunner().invoke(main, [*name.split(), "--no-such-option"])
    assert (found.exit_code, "No such option" in found.stderr) == (2, True)


def test_what_the_sidecar_refuses_ends_with_1_and_the_reason(sidecar: Canned) -> None:
    sidecar.no = "nvidia:0 has 5 MB too little"
    for verb in ("start", "stop", "drain", "undrain", "pin", "unpin"):
        found = CliRunner().invoke(main, [verb, "m", "--url", sidecar.url, "--json"])
        assert (found.exit_code, found.stdout) == (1, "")
        assert found.stderr == "sidecar: nvidia:0 has 5 MB too little (insufficient_memory)\n"


def test_what_is_no_sidecar_is_told_and_ends_with_1(sidecar: Canned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Canned, "get", lambda *_: (200, b"<html>hello</html>"))
    said = CliRunner().invoke(main, ["status", "--url", sidecar.url])
    assert (said.exit_code, "is no sidecar" in said.output) == (1, True)


def test_what_is_done_ends_with_0_and_is_told_as_json(sidecar: Canned) -> None:
    for verb in ("start", "stop", "drain", "undrain", "pin", "unpin"):
        found = CliRunner().invoke(main, [verb, "m", "--url", sidecar.url, "--json"])
        assert (found.exit_code, json.loads(found.stdout)["model"]) == (0, "m")


def test_the_help_and_the_readme_tell_the_exit_codes() -> None:
    told = CliRunner().invoke(main, ["--help"]).stdout
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    for text in (" ".join(told.split()), readme):
        assert "Exit codes: 0 done, 1 the answer is no" in text
        assert "2 wrong usage, 3 no sidecar answers" in text


def test_plugins_are_checked_and_written_for_programs_too(tmp_path: Path) -> None:
    written = CliRunner().invoke(main, ["plugin", "new", "filter", "mine", str(tmp_path), "--json"])
    files = json.loads(written.stdout)["files"]
    assert str(tmp_path / "mine.py") in files
    assert all(Path(file).exists() for file in files)
    good = CliRunner().invoke(main, ["plugin", "check", str(tmp_path / "mine.py"), "--json"])
    assert (good.exit_code, json.loads(good.stdout)["faults"]) == (0, [])
    assert json.loads(good.stdout)["plugins"][0]["place"].startswith(str(tmp_path / "mine.py"))
    (tmp_path / "bad.py").write_text("import no_such_thing\n")
    bad = CliRunner().invoke(main, ["plugin", "check", str(tmp_path / "bad.py"), "--json"])
    (fault,) = json.loads(bad.stdout)["faults"]
    assert (bad.exit_code, fault["place"]) == (1, f"{tmp_path}/bad.py:1")
    assert "no_such_thing" in fault["message"]


def test_what_a_plugin_prints_is_not_in_the_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = (
        'from plugin_sdk import DeviceStatus, device\nprint("read")\n@device("mine")\ndef mine() -> DeviceStatus:\n'
    )
    device += '    print("probed")\n    return DeviceStatus(total_mb=1, free_mb=1)\n'
    write(tmp_path, {"manifests/m.toml": model("m"), "manifests/plugins/mine.py": device})
    monkeypatch.chdir(tmp_path)
    for words in (
        "validate",
        "plan manifests",
        "diff manifests manifests",
        "devices --url http://127.0.0.1:1",
        "schema",
    ):
        found = CliRunner().invoke(main, [*words.split(), *([] if words == "schema" else ["--json"])])
        assert json.loads(found.stdout), words
        assert "read\n" in found.stderr, words
        assert ("probed\n" in found.stderr) == (words[:4] in ("plan", "devi")), words


def test_a_disk_that_is_full_is_told_and_ends_with_1() -> None:
    command = [sys.executable, "-m", "sidecar", "completion", "bash"]
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a device
        found = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    told = "Error: what there is to say cannot be written: No space left on device\n"
    assert (found.returncode, found.stderr) == (1, told)


def test_a_reader_that_goes_away_ends_it_quietly(sidecar: Canned) -> None:
    command = f"{sys.executable} -m sidecar top --json --interval 0.1 --url {sidecar.url} | head -n 1"
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30)
    assert json.loads(found.stdout)["report"]["version"]
    assert "Traceback" not in found.stderr
