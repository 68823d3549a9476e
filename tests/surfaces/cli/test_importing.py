"""`sidecar import` on the command line: where manifests go, what is said, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sidecar.surfaces.cli import main
from tests.mechanism.importing.ollama import serving
from tests.mechanism.importing.world import CONFIGS

AIDER = str(CONFIGS / "llama_swap" / "aider.yaml")
LOCAL = str(CONFIGS / "litellm" / "local.yaml")


def run(*arguments: str | Path, code: int = 0, stdin: bytes | None = None) -> Result:
    """Run the command."""
    result = CliRunner().invoke(main, ["import", *map(str, arguments)], input=stdin)
    assert result.exit_code == code, result.output
    return result


def report(*arguments: str | Path, code: int = 0) -> Any:
    """Its JSON."""
    return json.loads(run(*arguments, "--json", code=code).stdout)


def validate(folder: Path, monkeypatch: pytest.MonkeyPatch, *variables: str) -> None:
    """`sidecar validate` has nothing to say."""
    for name in variables:
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    result = CliRunner().invoke(main, ["validate", str(folder)])
    assert result.exit_code == 0, result.output


def test_manifests_are_printed_and_the_report_goes_to_stderr() -> None:
    result = run("llama-swap", AIDER)
    assert result.stdout.startswith("# --- sidecar.toml\n# Imported from llama-swap.")
    assert "# --- models/QwQ.toml" in result.stdout
    assert "names always mean the same model" in result.stderr
    assert "2 models; of the settings 1 are carried" in result.stderr
    assert "Settings" not in result.stdout


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("llama-swap", "llama_swap/example.yaml"),
        ("litellm", "litellm/proxy_server.yaml"),
        ("llm-manager", "llm_manager/guide.json"),
        ("llm-one-api", "llm_one_api/load_balance.yaml"),
    ],
)
def test_what_is_written_validates(source: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = report(source, CONFIGS / name, "--out", tmp_path / "m")
    assert sorted(found["written"]) == sorted(str(path) for path in (tmp_path / "m").rglob("*") if path.is_file())
    assert found["problems"] == []
    validate(tmp_path / "m", monkeypatch, *found["variables"])


def test_an_ollama_is_asked_at_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as url:
        run("ollama", "--url", f"{url}/", "--out", tmp_path / "m")
    validate(tmp_path / "m", monkeypatch)
    assert (tmp_path / "m" / "models" / "llama3.2-latest.toml").exists()


def test_an_ollama_that_does_not_answer_is_exit_code_3() -> None:
    result = run("ollama", "--url", "http://127.0.0.1:1", code=3)
    assert "no Ollama answers at http://127.0.0.1:1/api/tags" in result.stderr


def test_variables_that_must_be_set_are_told() -> None:
    found = run("litellm", LOCAL)
    assert "set BIG_KEY: the key of big's server" in found.stderr
    assert report("litellm", LOCAL)["variables"].keys() == {"BIG_KEY", "ELSEWHERE_URL", "FROM_ELSEWHERE_API_KEY"}


def test_all_tells_what_was_carried_too() -> None:
    short, long = run("litellm", LOCAL), run("litellm", LOCAL, "--all")
    assert "carried  models.qwen" not in short.stderr
    assert "carried  models.qwen" in long.stderr


def test_files_that_are_there_stay_unless_it_is_forced(tmp_path: Path) -> None:
    run("llama-swap", AIDER, "--out", tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.toml")}
    result = run("litellm", LOCAL, "--out", tmp_path, code=1)
    assert "nothing was written" in result.stderr
    assert "--force overwrites" in result.stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.toml")} == before
    run("litellm", LOCAL, "--out", tmp_path, "--force")
    assert "Imported from LiteLLM" in (tmp_path / "sidecar.toml").read_text()


def test_standard_input_is_a_file_too() -> None:
    result = run("llama-swap", "-", stdin=b"models: {m: {cmd: 'llama-server --port ${PORT}'}}")
    assert "[models.m]" in result.stdout


def test_the_device_and_the_address_can_be_told(tmp_path: Path) -> None:
    files = report(
        "llama-swap", CONFIGS / "llama_swap" / "docker.yaml", "--device", "cpu", "--listen", "127.0.0.1:9292"
    )["files"]
    assert 'listen = "127.0.0.1:9292"' in files["sidecar.toml"]
    assert '"cpu"' in next(text for name, text in files.items() if name.startswith("models/"))


def test_what_the_sidecar_would_refuse_is_told_and_is_exit_code_1(tmp_path: Path) -> None:
    result = run("llama-swap", CONFIGS / "llama_swap" / "docker.yaml", "--device", "tpu", "--out", tmp_path, code=1)
    assert f"{tmp_path}/models/gemma-3-270m-it-UD-Q8_K_XL.toml:" in result.stderr
    assert 'unknown device "tpu"' in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("llama-swap", "gone.yaml"), 1, "gone.yaml cannot be read: No such file"),
        (("llama-swap", "."), 1, ". cannot be read: Is a directory"),
        (("llama-swap",), 2, "Missing argument 'FILE'"),
        (("llama-swap", AIDER, "--listen", "nowhere"), 2, 'expected "HOST:PORT"'),
        (("unheard-of", AIDER), 2, "No such command"),
        (("litellm", AIDER, "--out", AIDER), 2, "is a file"),
    ],
)
def test_wrong_use_is_told(arguments: tuple[str, ...], code: int, told: str) -> None:
    assert told in run(*arguments, code=code).stderr


def test_a_file_that_is_none_of_the_kind_is_all_unknown(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("services: {web: {image: nginx}}\n")
    found = report("llama-swap", tmp_path / "c.yaml")
    assert [(entry["path"], entry["why"]) for entry in found["entries"]] == [
        ("services.web.image", "is not known to this importer")
    ]
