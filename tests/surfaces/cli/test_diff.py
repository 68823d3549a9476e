"""`sidecar diff`, on directories and on a real git repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from sidecar.core.nodes import Node
from sidecar.surfaces import snapshot
from sidecar.surfaces.cli import main
from tests.core.build import NOW, gpu, server
from tests.core.build import model as built
from tests.core.build import variant as way
from tests.mechanism.test_gittree import git
from tests.support import model, write

ON_GPU = model("m", 'nodes = { gpu = "h200" }').replace('"cpu"', '"nvidia"')


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two commits and a change in the working tree; the current directory."""
    git(tmp_path, "init", "-q")
    for memory_mb in ("100", "200", "0"):
        write(tmp_path, {"manifests/m.toml": ON_GPU.replace("= 100", f"= {memory_mb}"), "manifests/n.toml": model("n")})
        git(tmp_path, "add", "-A")
        if memory_mb != "0":
            git(tmp_path, "commit", "-qm", memory_mb)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def diff(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["diff", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def told(*arguments: str | Path, code: int = 0) -> Any:
    return json.loads(diff(*arguments, "--json", code=code).stdout)


@pytest.mark.parametrize(
    "operands",
    [
        ["HEAD~1:manifests", "HEAD:manifests"],
        ["HEAD~1:./manifests", "HEAD:manifests/"],
        ["--git", "HEAD~1", "HEAD"],
        ["--git", "HEAD~1", "main", "--path", "manifests"],
    ],
)
def test_two_revisions_are_compared_however_they_are_named(repo: Path, operands: list[str]) -> None:
    found = told(*operands)
    (change,) = found["changes"]
    assert (change["name"], change["impact"], found["no_op"], found["planned"]) == ("m", "restart", False, False)
    assert change["file"] == "manifests/m.toml"
    assert change["fields"] == [{"key": "variants.default.memory_mb", "before": "100", "after": "200"}]


@pytest.mark.parametrize("operands", [["HEAD:manifests"], ["--git", "HEAD"], ["HEAD:manifests", "manifests"]])
def test_without_b_the_working_tree_is_meant_and_files_are_told_as_they_are_known(
    repo: Path, operands: list[str]
) -> None:
    found = told(*operands, code=1)
    (fault,) = found["faults"]
    assert (fault["new"], found["kept"]) == (True, ["m"])
    assert fault["problem"]["file"] == "manifests/m.toml"
    assert "sidecar-diff-" not in diff(*operands, code=1).stdout


def test_directories_that_are_the_same_are_no_op(repo: Path) -> None:
    assert "Nothing changes" in diff("manifests", "manifests", "--fail-on", "change").stdout


def test_a_folder_may_be_told_from_the_root_of_the_disk(repo: Path) -> None:
    found = told("--git", "HEAD~1", "HEAD", "--path", repo / "manifests")
    assert [change["file"] for change in found["changes"]] == ["manifests/m.toml"]


def test_what_is_refused_whole_does_not_mean_the_same(repo: Path) -> None:
    (repo / "empty").mkdir()
    found = told("HEAD:manifests", "empty", code=1)
    assert (found["faults"][0]["new"], found["same_meaning"]) == (True, [])
    write(
        repo, {"a/m.toml": "[sidecar]\nheadroom_mb = 1\n", "a/n.toml": model("n"), "b/n.toml": "# same\n" + model("n")}
    )
    assert told("a", "b", code=1)["same_meaning"] == ["b/n.toml"]  # and what [sidecar] said is kept


def test_what_is_failed_on_can_be_chosen(repo: Path) -> None:
    revisions = ("--git", "HEAD~1", "HEAD")
    for choice, code in (("nothing", 0), ("problem", 0), ("interruption", 1), ("change", 1)):
        diff(*revisions, "--fail-on", choice, code=code)
    diff("--git", "HEAD", "--fail-on", "nothing")
    diff("--git", "HEAD", "--fail-on", "interruption", code=1)
    diff("manifests", "manifests", "--fail-on", "interruption")


def machine(folder: Path) -> Path:
    """The snapshot of an H200 on which the model runs."""
    device = msgspec.structs.replace(gpu("GPU-a", 900), device_class="nvidia")
    running = server("m", built(way(100, "nvidia", name="default")), "GPU-a", use=100, fingerprint="there")
    found = snapshot.offline((device,), Node({"hostname": "gpu-7", "gpu": "h200"}))
    file = folder / "devices.json"
    file.write_bytes(msgspec.json.encode(msgspec.structs.replace(found, running=True, now=NOW, servers=(running,))))
    return file


def test_it_is_tried_on_the_machine_that_is_meant(repo: Path) -> None:
    revisions = ("--git", "HEAD~1", "HEAD", "--against", machine(repo))
    found = told(*revisions)
    assert [(one["kind"], one["model"], one["devices"]) for one in found["effects"]] == [("restart", "m", ["nvidia:0"])]
    text = diff(*revisions).stdout
    assert text.splitlines()[:2] == ["HEAD~1 -> HEAD on gpu-7 (gpu = h200)", "1 restarts."]
    comment = diff(*revisions, "--format", "markdown").stdout
    assert "### sidecar: `HEAD~1` → `HEAD` on `gpu-7 (gpu = h200)`" in comment
    assert "| restart | `m` | `default` | `nvidia:0` | variant default was changed |" in comment
    cut = diff(*revisions, "--format", "markdown", "--most-chars", "200").stdout
    assert (len(cut) < 205, "There is more" in cut) == (True, True)
    on_another = told(*revisions, "--label", "gpu=a100")
    assert (on_another["no_op"], list(on_another["elsewhere"])) == (True, ["m"])


def test_labels_choose_the_node_without_a_machine_too(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDECAR_LABELS", "gpu=h200,rack=here")  # this machine's, which it is not about
    assert "SIDECAR_LABELS" not in diff("--help").stdout
    assert "on gpu = a100\n" in diff("--git", "HEAD~1", "HEAD", "--label", "gpu=a100", "--fail-on", "change").stdout


def test_manifests_that_are_new_are_all_new_and_those_that_are_gone_are_kept(repo: Path) -> None:
    git(repo, "mv", "manifests", "moved")
    git(repo, "commit", "-qam", "move")
    result = diff("--git", "HEAD~1", "HEAD", "--path", "moved", code=1)  # the memory of m is none
    assert "HEAD~1 has no moved: all is new" in result.stderr
    gone = diff("--git", "HEAD~1", "HEAD", code=1)
    assert "HEAD has no manifests: a sidecar would keep what is in force" in gone.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["manifests"], 2, "B is missing"),
        (["manifests", "manifests", "--path", "x"], 2, "--path goes with --git"),
        (["--git", "nope", "HEAD"], 1, "nope: no such revision in "),
        (["nope", "manifests"], 1, "no such directory"),
        (["manifests", "manifests", "--json", "--format", "markdown"], 2, "cannot be had together"),
        (["manifests", "manifests", "--most-chars", "500"], 2, "--most-chars goes with --format markdown"),
        (["--git", "HEAD", "--label", "x"], 2, "expected KEY=VALUE"),
        (["--git", "HEAD", "--against", "nope"], 1, "nope: cannot be read: No such file"),
    ],
)
def test_wrong_usage_and_what_cannot_be_told(repo: Path, arguments: list[str], code: int, said: str) -> None:
    assert said in diff(*arguments, code=code).stderr
