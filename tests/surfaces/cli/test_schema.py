"""`sidecar schema`: printed, written, and held up to date."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sidecar.surfaces.cli import main
from tests.support import model, write

TAPLO = Path(sysconfig.get_path("scripts")) / "taplo"
MANIFESTS = (Path(__file__).resolve().parents[3] / "manifests" / "README.md").read_text(encoding="utf-8")
MODE = """
from plugin_sdk import Config, Endpoint, Interface

class Settings(Config):
    \"\"\"words: how many there are.\"\"\"

    words: int

class Poems(Interface[Settings]):
    provides = "poems"
    endpoints = (Endpoint("/v1/poems", "poems"),)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def schema(*arguments: str | Path) -> Result:
    """What the command says."""
    return CliRunner().invoke(main, ["schema", *map(str, arguments)])


def settings(made: Any, path: str) -> Any:
    """What the schema says of `config` with that import path."""
    for condition in made["definitions"]["PluginDeclaration"]["allOf"]:
        if condition["if"]["properties"]["import"]["const"] == path:
            return condition["then"]
    raise KeyError(path)


def test_without_manifests_it_has_what_is_built_in(here: Path) -> None:
    made = json.loads(schema().stdout)
    assert "chat" in made["definitions"]["Model"]["properties"]["mode"]["examples"]
    assert settings(made, "sidecar.builtin.keys:StaticKeys")["properties"]["on_error"] == {"enum": ["deny"]}


def test_plugins_beside_the_manifests_are_in_it_with_their_settings(here: Path) -> None:
    write(here / "mine", {"plugins/poems.py": MODE, "m.toml": model("m")})
    made = json.loads(schema("mine").stdout)
    assert settings(made, "poems:Poems")["required"] == ["config"]
    told = made["definitions"]["poems:Poems.Settings"]["properties"]["words"]
    assert told == {"type": "integer", "description": "how many there are."}
    other = json.loads(schema("--plugins", here / "mine" / "plugins").stdout)
    assert settings(other, "poems:Poems") == settings(made, "poems:Poems")


def test_a_plugin_that_breaks_is_told_and_the_rest_is_there(here: Path) -> None:
    write(here / "manifests", {"plugins/poems.py": "1/0\n", "m.toml": model("m")})
    result = schema()
    assert result.exit_code == 0
    assert f"{here}/manifests/plugins/poems.py:1: " in result.stderr
    assert "its settings are not in the schema" in result.stderr
    assert "definitions" in json.loads(result.stdout)


def test_settings_that_no_schema_can_tell_are_told_and_may_be_anything(here: Path) -> None:
    code = MODE.replace("words: int", "words: object | complex")
    write(here / "manifests", {"plugins/poems.py": code, "m.toml": model("m")})
    result = schema()
    assert "poems:Poems: its settings cannot be told" in result.stderr
    assert "config" not in settings(json.loads(result.stdout), "poems:Poems")["properties"]


def test_a_file_is_up_to_date_until_a_name_is_added(here: Path) -> None:
    write(here / "manifests", {"m.toml": model("m")})
    assert schema("--out", "s.json", "--check").exit_code == 1
    assert schema("--out", "s.json").stdout == ""
    assert schema("--out", "s.json", "--check").exit_code == 0
    write(here / "manifests", {"d.toml": "[devices.big]\nmatch = { index = 0 }\n"})
    result = schema("--out", "s.json", "--check")
    assert (result.exit_code, result.stderr) == (
        1,
        "sidecar: s.json is not up to date; to write it anew, run this without --check\n",
    )
    assert [file.name for file in sorted(here.iterdir())] == ["manifests", "s.json"]


def test_what_cannot_be_is_refused(here: Path) -> None:
    assert schema("nowhere").exit_code == 1
    assert schema("--strict").exit_code == 1
    assert schema("--check").exit_code == 2
    assert schema("--plugins", "nowhere").exit_code == 2
    result = schema("--out", here / "no" / "s.json")
    assert (result.exit_code, "cannot be written: No such file or directory" in result.stderr) == (1, True)


def test_a_link_stays_one_and_what_is_no_file_is_neither_read_nor_replaced(here: Path) -> None:
    (here / "link.json").symlink_to("real.json")
    assert schema("--out", "link.json").exit_code == 0
    assert ((here / "link.json").is_symlink(), (here / "real.json").is_file()) == (True, True)
    os.mkfifo(here / "pipe")
    for place in ("pipe", "/dev/zero"):
        for more in ([], ["--check"]):
            result = schema("--out", place, *more)
            assert (result.exit_code, result.stderr) == (
                1,
                f"sidecar: {place} is no regular file; without --out it is printed\n",
            )
    assert (here / "pipe").is_fifo()


def test_bootstrap_files_have_one_of_their_own(here: Path) -> None:
    assert schema("--bootstrap", "--out", "bootstrap.json").exit_code == 0
    assert schema("--bootstrap", "--out", "bootstrap.json", "--check").exit_code == 0
    assert schema("--bootstrap", "--strict").exit_code == 2
    good = '[source]\ngit = "https://git.example/m.git"\ninterval = "30s"\ntoken = { env = "T" }\n'
    assert taplo(write(here, {"good.toml": good}) / "good.toml") == 0
    mistakes = {"git =": "gti =", '"30s"': "30", "env": "evn", "[source]": "[sidecar]", '"T" }': '"T", file = "x" }'}
    for number, (right, wrong) in enumerate(mistakes.items()):
        bad = write(here, {f"bad{number}.toml": good.replace(right, wrong)}) / f"bad{number}.toml"
        assert taplo(bad) == 1, wrong


def taplo(file: Path) -> int:
    """The exit code of a check by the schema of bootstrap files."""
    command = [str(TAPLO), "check", "--no-auto-config", "--schema", f"file://{file.parent}/bootstrap.json", str(file)]
    return subprocess.run(command, capture_output=True, check=False).returncode


def test_a_folder_of_manifests_can_name_the_schema_once_for_all(here: Path) -> None:
    (config,) = re.findall(r"```ini\n# .taplo.toml\n(.*?)```", MANIFESTS, re.DOTALL)
    write(here / "manifests", {".taplo.toml": config, "good.toml": model("m"), "more/bad.toml": 'models = "m"\n'})
    assert schema("--out", "manifests/sidecar.schema.json").exit_code == 0
    command = [str(TAPLO), "check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=here / "manifests", check=False)
    assert done.returncode == 1
    assert "more/bad.toml" in done.stderr
    assert "good.toml:" not in done.stderr
    assert schema("--out", "manifests/sidecar.schema.json", "--check").exit_code == 0  # it is no manifest itself
