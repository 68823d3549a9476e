"""`sidecar plugin`: what authors write, check and read, and what operators see."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sidecar.surfaces.cli import main
from sidecar.surfaces.cli.plugin import WITH_SETTINGS
from sidecar.surfaces.cli.scaffold import KINDS
from sidecar.surfaces.plugins_api import percentile_ms
from tests.support import declare, model, write

BAD = """
from plugin_sdk import Auth, Config, Filter

class Settings(Config):
    word: str
    times: int = 1

class Door(Auth[Settings]):
    def authenticate(self, request): ...

class Window(Auth):
    def authenticat(self, request): ...

class Sieve(Filter):
    async def on_chunks(self, exchange): ...
    def open(self): ...
"""


def plugin(*arguments: str | Path) -> Result:
    """What the command says."""
    return CliRunner().invoke(main, ["plugin", *map(str, arguments)])


# --- new --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_is_fine_and_its_table_loads_beside_it(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "plugins"
    assert plugin("new", kind, f"my_{kind}", folder).exit_code == 0
    checked = plugin("check", folder / f"my_{kind}.py")
    assert (checked.exit_code, checked.stderr) == (0, "")
    assert f"{folder}/my_{kind}.py:" in checked.stdout
    assert f"{kind} plugin, found as my_{kind}" in checked.stdout
    table = (folder / f"my_{kind}.toml").read_text()
    loaded = declare(tmp_path, {"plugin.toml": table, "model.toml": model("m")}, {"MY_AUTH_TOKEN": "x"})
    problems = [str(problem) for problem in loaded.problems]
    assert problems == [] or (kind == "auth" and "MY_AUTH_TOKEN is not set" in problems[0])


def test_the_tests_of_all_new_plugins_pass(tmp_path: Path) -> None:
    for kind in KINDS:
        plugin("new", kind, f"my_{kind}", tmp_path)
    write(tmp_path, {"pytest.ini": "[pytest]\nasyncio_default_fixture_loop_scope = function\n"})
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "failed" not in result.stdout


def test_a_new_plugin_may_be_a_package_with_an_entry_point(tmp_path: Path) -> None:
    assert plugin("new", "device", "my_npu", tmp_path / "npu", "--package").exit_code == 0
    project = (tmp_path / "npu" / "pyproject.toml").read_text()
    assert '[project.entry-points."sidecar.plugins"]\nmy_npu = "my_npu:MyNpu"\n' in project
    assert 'name = "sidecar-plugin-my-npu"' in project


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path: Path) -> None:
    write(tmp_path, {"test_door.py": "mine"})
    result = plugin("new", "auth", "door", tmp_path)
    assert result.exit_code == 1
    assert f"already there: {tmp_path}/test_door.py" in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["test_door.py"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("my-gpu", "cannot name a module"),
        ("class", "cannot name a module"),
        ("test_gpu", "would not be looked at"),
        ("json", "is also installed (Python's standard library)"),
        ("cpu", "is a built-in"),
    ],
)
def test_a_name_that_could_not_be_used_is_refused(name: str, why: str, tmp_path: Path) -> None:
    result = plugin("new", "device", name, tmp_path)
    assert result.exit_code == 1
    assert why in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_class_does_not_get_the_name_of_what_it_imports(tmp_path: Path) -> None:
    plugin("new", "filter", "filter", tmp_path)
    assert "class FilterPlugin(Filter[Settings]):" in (tmp_path / "filter.py").read_text()


# --- check ------------------------------------------------------------------------------------------------------


def test_every_fault_of_a_file_is_told_with_its_line_and_what_is_meant(tmp_path: Path) -> None:
    file = write(tmp_path, {"bad.py": BAD}) / "bad.py"
    result = plugin("check", file, "--config", '{"wrd": "x", "times": "often"}')
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f'{file}:11: Window does not define authenticate, which an auth plugin must; is "authenticat" meant to be it?',
        f'{file}:14: Sieve.on_chunks is no hook; did you mean "on_chunk"?; hooks: on_chunk, on_end, on_event, '
        "on_request, on_response; Sieve.open must be `async def`",
        f'{file}:8: config.wrd: unknown key "wrd"; did you mean "word"?',
        f"{file}:8: config.times: expected int, got str",
        "4 faults",
    ]


def test_what_a_method_says_of_itself_is_compared_with_what_it_is_called_with(tmp_path: Path) -> None:
    code = "from plugin_sdk import auth\n\n@auth\ndef word(request: int): ...\n"
    file = write(tmp_path, {"word.py": code}) / "word.py"
    result = plugin("check", file)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"{file}:3: word.authenticate takes request: int, and is given Request\n1 fault")


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("\nimport nowhere_at_all\n", "{}:2: importing bad failed: ModuleNotFoundError: No module named "),
        ("\n\ndef x(:\n", "{}:3: importing bad failed: invalid syntax"),
        ("raise SystemExit(3)", "{}:1: importing bad failed: SystemExit: 3"),
    ],
)
def test_code_that_cannot_be_imported_is_told_with_its_line(code: str, told: str, tmp_path: Path) -> None:
    file = write(tmp_path, {"bad.py": code}) / "bad.py"
    result = plugin("check", file)
    assert result.exit_code == 1
    assert result.stderr.startswith(told.format(file))


def test_what_has_no_plugin_or_is_not_there_is_told(tmp_path: Path) -> None:
    assert "has no plugin" in plugin("check", write(tmp_path, {"empty.py": "x = 1"}) / "empty.py").stderr
    assert 'there is no file "nowhere.py"' in plugin("check", "nowhere.py").stderr
    assert "json:loads is no plugin" in plugin("check", "json:loads").stderr


def test_an_import_path_is_looked_for_beside_the_manifests_too(tmp_path: Path) -> None:
    write(tmp_path, {"house.py": BAD})
    result = plugin("check", "house:Door", "--plugins", tmp_path, "--config", '{"word": "x"}')
    assert (result.exit_code, result.stderr) == (0, "")
    assert "methods: authenticate (plain, in a thread)" in result.stdout
    assert '"required": ["word"]' in result.stdout


def test_settings_that_are_no_json_are_wrong_usage() -> None:
    assert plugin("check", "sidecar.builtin.keys:StaticKeys", "--config", "{").exit_code == 2


# --- docs -------------------------------------------------------------------------------------------------------


def test_the_reference_has_each_kind_with_its_methods() -> None:
    told = plugin("docs").stdout
    for kind, method in {"Filter": "on_event(exchange, event)", "Route": "resolve(request, targets)"}.items():
        assert f"\n{kind}\n" in told
        assert method in told
    assert plugin("docs", "auth").stdout.startswith("Auth\n  Who is calling.\n")


@pytest.mark.parametrize("name", ["limits", "usage", "chat", *WITH_SETTINGS])
def test_each_built_in_has_a_reference(name: str) -> None:
    result = plugin("docs", name)
    assert result.exit_code == 0
    assert ": sidecar.builtin." in result.stdout.splitlines()[0]


def test_the_reference_of_a_plugin_tells_types_and_defaults() -> None:
    told = plugin("docs", "limits").stdout
    assert "    requests_per_minute: integer (default 600)\n" in told
    assert '    recheck: string, such as "30s" (default "1s")\n' in plugin("docs", "keys").stdout


# --- list -------------------------------------------------------------------------------------------------------


def test_percentiles_are_of_the_nearest_rank() -> None:
    hundred = [number / 1000 for number in range(100, 0, -1)]
    assert (percentile_ms(hundred, 0.5), percentile_ms(hundred, 0.95)) == (50.0, 95.0)
    assert percentile_ms([0.004], 0.95) == 4.0
    assert percentile_ms([], 0.5) is None
