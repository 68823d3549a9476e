"""`sidecar validate`: formats, and what hooks hand over."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sidecar.core.manifest import Problem
from sidecar.surfaces.cli import main
from sidecar.surfaces.cli.validate import annotation
from tests.support import model, write

GOOD = {"manifests/sidecar.toml": "[sidecar]\n", "manifests/models/a.toml": model("a")}
BAD = {**GOOD, "manifests/models/b.toml": model("b").replace('"chat"', '"chta"')}


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory."""
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def validate(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["validate", *arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["manifests"],
        ["manifests/models/a.toml", "manifests/models/b.toml"],
        ["manifests/plugins/p.py"],
        ["manifests/sidecar.toml", "manifests"],
    ],
)
def test_files_stand_for_the_directory_that_they_belong_to(repo: Path, arguments: list[str]) -> None:
    write(repo, {**BAD, "manifests/plugins/p.py": ""})
    assert validate(*arguments, code=1).stderr.startswith("manifests/models/b.toml:3: models.b.mode: unknown mode")
    write(repo, GOOD)
    (repo / "manifests/models/b.toml").unlink()
    left = [one for one in arguments if not one.endswith("b.toml")]
    assert validate(*left).stdout == "1 model is fine, 0 problems\n"


def test_files_below_manifests_need_no_settings_and_others_do(repo: Path) -> None:
    write(repo, {"manifests/a.toml": model("a"), "elsewhere/b.toml": model("b"), "elsewhere/broken.toml": "["})
    validate("manifests/a.toml")
    assert "no folder above it has a [sidecar] table" in validate("elsewhere/b.toml", code=2).stderr
    assert "check one at a time" in validate("manifests/a.toml", "elsewhere", code=2).stderr
    assert "no such directory" in validate("nowhere", code=1).stderr
    os.mkfifo(repo / "manifests/waits.toml")  # whoever opens it waits for somebody who writes
    assert "manifests/waits.toml: cannot be read: not a regular" in validate("manifests/a.toml", code=1).stderr


def test_where_nothing_is_declared_nothing_is_fine(repo: Path) -> None:
    write(repo, {"manifests/plugins/no.toml": model("a"), "manifests/none.toml": "# nothing\n"})
    assert validate(code=1).stderr.startswith("manifests: nothing is declared here: expected manifests (*.toml)\n")
    assert validate("--format", "github", code=1).stdout.startswith("::error file=manifests,title=sidecar validate::")


def test_annotations_are_relative_to_the_checkout_and_escaped(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(repo, BAD)
    result = validate("--format", "github", code=1)
    assert result.stdout.startswith(
        "::error file=manifests/models/b.toml,line=3,title=sidecar validate::models.b.mode: unknown mode"
    )
    monkeypatch.setenv("GITHUB_WORKSPACE", str(repo / "manifests"))
    assert "::error file=models/b.toml,line=3," in validate("--format", "github", code=1).stdout
    problem = Problem(file="/a,b:c.toml", message="100 %\r\nof it: bad")
    told = "::error file=/a%2Cb%3Ac.toml,title=sidecar validate::100 %25%0D%0Aof it: bad"
    assert annotation(problem, repo) == told


def test_json_has_the_problems_and_what_is_elsewhere(repo: Path) -> None:
    write(repo, {**BAD, "manifests/c.toml": model("c", 'nodes = { gpu = "h200" }')})
    found = json.loads(validate("--json", "--label", "gpu=a100", code=1).stdout)
    assert found == json.loads(validate("--format", "json", "--label", "gpu=a100", code=1).stdout)
    assert "cannot be had together" in validate("--json", "--format", "github", code=2).stderr
    assert [problem["subject"] for problem in found["problems"]] == [["models", "b"]]
    assert found["elsewhere"] == {"c": "gpu = h200"}


def test_models_are_checked_whatever_their_nodes_and_those_of_others_are_counted(repo: Path) -> None:
    write(repo, {**GOOD, "manifests/c.toml": model("c", 'nodes = { gpu = "h200" }')})
    assert validate().stdout == "2 models are fine, 1 of them for some nodes only, 0 problems\n"
    assert validate("--label", "gpu=a").stdout == "1 model is fine, 0 problems; 1 model is for other nodes: c\n"
    bad = model("c", 'nodes = { gpu = "h200" }').replace('"cpu"', '"cpx"')
    write(repo, {"manifests/c.toml": bad})
    assert 'unknown device "cpx"' in validate("--label", "gpu=a", code=1).stderr
    assert "expected KEY=VALUE" in validate("--label", "gpu", code=2).stderr


def test_variables_and_secrets_of_another_machine_need_not_be_here(repo: Path) -> None:
    secret = '[sidecar]\nadmin_token = { env = "NOT_SET" }\n'
    write(repo, {"manifests/sidecar.toml": secret, "manifests/m.toml": model("m", variant='cwd = "{env.NOT_SET}"')})
    assert len(validate(code=1).stderr.splitlines()) == 3
    assert validate("--elsewhere").stdout == "1 model is fine, 0 problems\n"
