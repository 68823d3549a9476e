"""`sidecar fmt`: which files, what is told, and what is left alone."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sidecar.surfaces.cli import main
from tests.support import write

MESSY, NEAT = "[models.m]\nmode='chat' # why\n", "[models.m]\nmode = 'chat' # why\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write(tmp_path, {"manifests/a.toml": MESSY, "manifests/b/c.toml": NEAT, "manifests/plugins/p.toml": MESSY})


def fmt(*arguments: str | Path, stdin: str | None = None) -> Result:
    """What the command says."""
    return CliRunner().invoke(main, ["fmt", *map(str, arguments)], input=stdin)


def test_all_manifests_of_a_directory_are_laid_out_and_nothing_else_is_touched(here: Path) -> None:
    before = (here / "manifests/b/c.toml").stat()
    result = fmt()
    assert (result.exit_code, result.stdout) == (0, "manifests/a.toml: laid out anew\n")
    assert result.stderr == "1 changed, 1 as they should be\n"
    assert (here / "manifests/a.toml").read_text() == NEAT
    assert (here / "manifests/plugins/p.toml").read_text() == MESSY  # no manifest
    assert (here / "manifests/b/c.toml").stat() == before
    assert fmt().stdout == ""


def test_check_and_diff_change_nothing(here: Path) -> None:
    checked = fmt("--check", "manifests", "manifests/a.toml")
    assert (checked.exit_code, checked.stdout) == (1, "manifests/a.toml: would be laid out anew\n")
    shown = fmt("--diff")
    assert (shown.exit_code, "\n-mode='chat' # why\n+mode = 'chat' # why\n" in shown.stdout) == (0, True)
    assert (here / "manifests/a.toml").read_text() == MESSY
    assert fmt("--check", "manifests/b").exit_code == 0


def test_one_that_is_faulty_is_told_and_the_others_are_laid_out(here: Path) -> None:
    write(here, {"manifests/bad.toml": "x = \n"})
    result = fmt("--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert (told["changed"], told["unchanged"]) == (["manifests/a.toml"], 1)
    assert [(one["file"], one["line"]) for one in told["problems"]] == [("manifests/bad.toml", 1)]
    assert (here / "manifests/bad.toml").read_text() == "x = \n"


def test_standard_input_is_printed(here: Path) -> None:
    assert fmt("-", stdin=MESSY).stdout == NEAT
    assert (fmt("-", "--check", stdin=MESSY).exit_code, fmt("-", "--check", stdin=NEAT).exit_code) == (1, 0)
    result = fmt("-", stdin="x")
    assert (result.exit_code, result.stdout, result.stderr[:10]) == (1, "", "<stdin>:1:")
    huge = fmt("-", stdin="#" * (4 * 2**20 + 1))
    assert (huge.exit_code, huge.stdout, huge.stderr) == (
        1,
        "",
        "<stdin>: is larger than 4 MiB, which no manifest is\n",
    )


@pytest.mark.parametrize("options", [["-", "manifests"], ["-", "--diff"], ["-", "--json"], ["--diff", "--json"]])
def test_what_cannot_be_had_together_is_wrong_usage(here: Path, options: list[str]) -> None:
    result = fmt(*options)
    assert (result.exit_code, "cannot be had together" in result.stderr) == (2, True)


def test_links_stay_links_and_modes_stay(here: Path) -> None:
    real = write(here, {"elsewhere.toml": MESSY}) / "elsewhere.toml"
    real.chmod(0o640)
    (here / "manifests/a.toml").unlink()
    (here / "manifests/a.toml").symlink_to(real)
    assert fmt().exit_code == 0
    assert (here / "manifests/a.toml").is_symlink()
    assert (real.read_text(), real.stat().st_mode & 0o777) == (NEAT, 0o640)


def test_what_would_be_undone_is_left_alone(here: Path) -> None:
    write(here, {"manifests/..data/a.toml": MESSY})
    (here / "manifests/a.toml").unlink()
    (here / "manifests/a.toml").symlink_to("..data/a.toml")
    result = fmt()
    assert result.exit_code == 1
    assert "stays as it is: " in result.stderr
    assert "ConfigMap" in result.stderr
    subprocess.run(["git", "init", "-q"], cwd=here, check=True)  # a branch: people work there
    assert fmt("manifests/b").exit_code == 0


def test_what_is_not_there_is_told(here: Path) -> None:
    result = fmt("nowhere.toml", "manifests/b")
    assert (result.exit_code, "nowhere.toml: cannot be read: No such file" in result.stderr) == (1, True)
