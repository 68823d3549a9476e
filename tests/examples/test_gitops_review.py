"""The review of pull requests and the hooks do what they say, run as those run them who call them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from sidecar.core.nodes import Node
from sidecar.mechanism.formatting import formatted
from sidecar.surfaces import snapshot
from tests.core.build import NOW, gpu, server
from tests.core.build import model as built
from tests.core.build import variant as way
from tests.mechanism.test_gittree import git
from tests.support import model, write

ROOT = Path(__file__).resolve().parents[2]
GITOPS = ROOT / "examples" / "gitops"
FILE = GITOPS / "review.yml"
WORKFLOW: Any = yaml.safe_load(FILE.read_text(encoding="utf-8"))
HOOKS: Any = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
README = (GITOPS / "README.md").read_text(encoding="utf-8")
PROGRAMS = sysconfig.get_path("scripts")
GH = """#!/bin/bash
printf '%s\\n' "$*" >> "$CALLS"
while [ $# -gt 0 ]; do
  [ "$1" = --jq ] && exec jq -r "$2" "$FOUND"
  shift
done
"""
CARD = msgspec.structs.replace(gpu("GPU-a", 900), device_class="nvidia")
SERVER = server("m", built(way(100, "nvidia", name="default")), "GPU-a", use=100, fingerprint="there")


def on_gpu(memory_mb: int) -> str:
    return model("m").replace('"cpu"', '"nvidia"').replace("= 100", f"= {memory_mb}")


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A repository whose head is the merge of a pull request, as GitHub checks it out."""
    folder = write(
        tmp_path / "repo", {"manifests/m.toml": on_gpu(100), "manifests/s.toml": "[sidecar]\nheadroom_mb = 0\n"}
    )
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "base")
    git(folder, "checkout", "-qb", "change")
    write(folder, {"manifests/m.toml": on_gpu(200)})
    merge(folder, "change")
    return folder


def merge(folder: Path, branch: str) -> None:
    """Commit all to the branch, and merge it into main."""
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "head")
    git(folder, "checkout", "-q", "main")
    git(folder, "merge", "-q", "--no-ff", "-m", "merge", branch)


def environment(folder: Path, **more: str) -> dict[str, str]:
    """What GitHub's runner gives to a step, with our programs in front."""
    stubs = folder.parent / "bin"
    return {
        **{name: text for name, text in os.environ.items() if not name.startswith(("GIT_", "SIDECAR_"))},
        **{key: str(value) for key, value in WORKFLOW["env"].items()},
        "PATH": f"{stubs}:{PROGRAMS}:{os.environ['PATH']}",
        "GITHUB_WORKSPACE": str(folder),
        "GITHUB_STEP_SUMMARY": str(folder.parent / "summary.md"),
        "RUNNER_TEMP": str(folder.parent),
        **more,
    }


def stub(folder: Path, name: str, text: str) -> None:
    """A program that the steps call."""
    path = write(folder.parent / "bin", {name: text}) / name
    path.chmod(0o755)


def steps(job: str) -> list[dict[str, Any]]:
    return [step for step in WORKFLOW["jobs"][job]["steps"] if "run" in step]


def run(step: dict[str, Any], folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a step as GitHub does."""
    command = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step["run"]]
    return subprocess.run(
        command, cwd=folder, env=environment(folder, **more), capture_output=True, text=True, check=False
    )


def reviewed(folder: Path) -> tuple[dict[str, int], str, str]:
    """The exit codes of the job's steps, what they print, and the comment. After a failure only those with `if` run."""
    stub(folder, "pip", '#!/bin/sh\necho "pip $*"\n')
    (folder.parent / "review.md").unlink(missing_ok=True)
    codes: dict[str, int] = {}
    said = ""
    for step in steps("review"):
        if "if" in step or not any(codes.values()):
            done = run(step, folder)
            codes[step["name"]] = done.returncode
            said += done.stdout + done.stderr
    return codes, said, (folder.parent / "review.md").read_text(encoding="utf-8")


# --- its shape ----------------------------------------------------------------------------------------------------


def test_github_would_take_the_workflow() -> None:
    command = [f"{PROGRAMS}/check-jsonschema", "--builtin-schema", "vendor.github-workflows", str(FILE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_code_of_a_pull_request_never_runs_where_something_may_be_written() -> None:
    assert list(WORKFLOW[True]) == ["pull_request"]  # YAML 1.1 reads `on` so; never pull_request_target
    assert WORKFLOW["permissions"] == {"contents": "read"}
    review, comment = WORKFLOW["jobs"]["review"], WORKFLOW["jobs"]["comment"]
    assert "permissions" not in review
    assert comment["permissions"] == {"pull-requests": "write"}
    assert not any("checkout" in step.get("uses", "") for step in comment["steps"])
    assert not any("sidecar" in step["run"].replace("<!-- sidecar diff -->", "") for step in steps("comment"))
    assert review["steps"][0]["with"] == {"fetch-depth": 2, "persist-credentials": False}
    for job in ("review", "comment"):
        assert all("${{" not in step["run"] for step in steps(job))  # what others write would be taken for code


# --- what it does -------------------------------------------------------------------------------------------------


def test_a_good_change_is_reviewed_on_each_machine(repo: Path) -> None:
    (repo / "machines").mkdir()
    for name in ("gpu-7", "gpu-8"):
        found = snapshot.offline((CARD,), Node({"hostname": name}))
        servers = (SERVER,) if name == "gpu-7" else ()
        whole = msgspec.structs.replace(found, running=True, now=NOW, servers=servers)
        (repo / "machines" / f"{name}.json").write_bytes(msgspec.json.encode(whole))
    codes, said, comment = reviewed(repo)
    assert codes == {"Install": 0, "Validate": 0, "Diff": 0}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"pip install {project['name']}\n" in said
    assert "1 model is fine, 0 problems" in said
    assert (repo.parent / "summary.md").read_text(encoding="utf-8") == comment
    first, second = comment.split("<!-- sidecar diff -->\n")[1:]
    assert "on `gpu-7`\n\n**1 restarts.**" in first
    assert "on `gpu-8`\n\n**No server is started, stopped or restarted.**" in second


def test_reviews_of_many_machines_are_cut_to_fit_into_one_comment(repo: Path) -> None:
    stub(repo, "sidecar", '#!/bin/bash\necho "${*: -1}"\n')
    (diff,) = (step for step in steps("review") if step["name"] == "Diff")
    for count in (0, 1, 3):
        write(repo, {f"machines/{number}.json": "" for number in range(count)})
        review = write(repo.parent, {"review.md": ""}) / "review.md"
        assert run(diff, repo).returncode == 0
        assert review.read_text(encoding="utf-8").split() == [str(60000 // max(1, count))] * max(1, count)


def test_a_bad_change_is_annotated_at_its_line_and_reviewed_all_the_same(repo: Path) -> None:
    git(repo, "checkout", "-qb", "bad")
    write(repo, {"manifests/m.toml": on_gpu(200).replace('"chat"', '"chta"')})
    merge(repo, "bad")
    codes, said, comment = reviewed(repo)
    assert codes == {"Install": 0, "Validate": 1, "Diff": 1}
    assert "::error file=manifests/m.toml,line=3,title=sidecar validate::models.m.mode: unknown mode" in said
    assert comment.startswith("<!-- sidecar diff -->\n### sidecar: `HEAD^1` → `HEAD`\n\n**1 new problem.**")
    assert "In their last good form, since the new one has problems: m." in comment


@pytest.mark.parametrize(
    ("comments", "call"),
    [
        ([], "api --method POST repos/o/r/issues/5/comments -F body=@review.md"),
        (
            [
                {"id": 1, "user": {"login": "github-actions[bot]"}, "body": "other"},
                {"id": 2, "user": {"login": "somebody"}, "body": "<!-- sidecar diff -->\nmine"},
                {"id": 3, "user": {"login": "github-actions[bot]"}, "body": "<!-- sidecar diff -->\n### sidecar"},
            ],
            "api --method PATCH repos/o/r/issues/comments/3 -F body=@review.md",
        ),
    ],
)
def test_there_is_one_comment_which_is_written_anew(repo: Path, comments: list[Any], call: str) -> None:
    stub(repo, "gh", GH)
    (repo.parent / "found.json").write_text(json.dumps(comments))
    (step,) = steps("comment")
    names = {"github.repository": "o/r", "github.event.pull_request.number": "5", "github.token": "t"}
    fill = re.compile(r"\$\{\{ (.*?) \}\}")
    given = {key: fill.sub(lambda match: names[match[1]], text) for key, text in step["env"].items()}
    calls = repo.parent / "calls"
    done = run(step, repo, **given, CALLS=str(calls), FOUND=str(repo.parent / "found.json"))
    assert done.returncode == 0, done.stderr
    assert calls.read_text().splitlines()[1:] == [call]


# --- hooks --------------------------------------------------------------------------------------------------------


def commit(folder: Path, hook: str) -> subprocess.CompletedProcess[str]:
    """Commit all that has changed, with a hook of ours in force, as pre-commit installs and runs it."""
    ours = next(one for one in HOOKS if one["id"] == hook)
    local = {"repo": "local", "hooks": [{**ours, "language": "system"}]}  # ours is installed, as it would do
    write(folder, {".pre-commit-config.yaml": yaml.safe_dump({"repos": [local]})})
    env = environment(folder, PRE_COMMIT_HOME=str(folder.parent / "pre-commit"))
    alone = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    who = {f"GIT_{role}_{what}": "a@b" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    for command in (["pre-commit", "install"], ["git", "add", "-A"], ["git", "commit", "-qm", "change"]):
        done = subprocess.run(
            command, cwd=folder, env={**env, **alone, **who}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 or command[1] == "commit", done.stderr
    return done


@pytest.mark.parametrize("hook", [one["id"] for one in HOOKS if "validate" in one["id"]])
def test_pre_commit_lets_no_faulty_manifest_into_a_commit(repo: Path, hook: str) -> None:
    write(repo, {"manifests/m.toml": on_gpu(0)})
    refused = commit(repo, hook)
    assert refused.returncode == 1
    assert "manifests/m.toml:7: models.m.variants[0].memory_mb: expected the memory" in refused.stdout + refused.stderr
    write(repo, {"manifests/m.toml": on_gpu(300)})
    done = commit(repo, hook)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_offered_hooks_are_as_pre_commit_wants_them_and_told_of() -> None:
    command = [sys.executable, "-m", "pre_commit", "validate-manifest", str(ROOT / ".pre-commit-hooks.yaml")]
    assert subprocess.run(command, check=False).returncode == 0
    for hook in HOOKS:
        assert f"`{hook['id']}`" in README


def test_pre_commit_lays_out_what_is_committed(repo: Path) -> None:
    neat = formatted((repo / "manifests/m.toml").read_bytes()).decode()
    write(repo, {"manifests/m.toml": neat.replace(" = ", "=", 1), "other.toml": "no='manifest'\n"})
    refused = commit(repo, "sidecar-fmt")
    assert (refused.returncode, "laid out anew" in refused.stdout + refused.stderr) == (1, True)
    assert (repo / "manifests/m.toml").read_text(encoding="utf-8") == neat
    assert (repo / "other.toml").read_text(encoding="utf-8") == "no='manifest'\n"
    assert commit(repo, "sidecar-fmt").returncode == 0


def test_git_sync_is_told_by_the_exit_code(repo: Path) -> None:
    hook = GITOPS / "validate-hook"
    good = subprocess.run([hook], cwd=repo, env=environment(repo), capture_output=True, text=True, check=False)
    assert (good.returncode, good.stdout) == (0, "1 model is fine, 0 problems\n")
    (repo / "manifests").rename(repo / "moved")
    moved = environment(repo, SIDECAR_MANIFESTS="moved", GITSYNC_HASH="abc")
    write(repo, {"moved/m.toml": on_gpu(0)})
    bad = subprocess.run([hook], cwd=repo, env=moved, capture_output=True, text=True, check=False)
    assert (bad.returncode, "moved/m.toml:7: " in bad.stderr) == (1, True)
