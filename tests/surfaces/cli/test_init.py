"""`sidecar init`: what it begins with, and what it finds: a real llama.cpp, and other servers as processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result

from sidecar.mechanism.family import MARKER
from sidecar.surfaces.cli import main
from tests.e2e.conftest import free_block
from tests.e2e.harness import ENGINE, running, settings, until
from tests.servers import HTTP_SERVER
from tests.support import free_port, serving

TAPLO = Path(sysconfig.get_path("scripts")) / "taplo"


def sidecar(*arguments: str | Path) -> Result:
    """What a command says."""
    return CliRunner().invoke(main, [*map(str, arguments)])


def discover(*arguments: str | Path, ports: tuple[int, ...]) -> Result:
    """What is found at these ports."""
    return sidecar("init", "--discover", f"--ports={min(ports)}-{max(ports)}", *arguments)


def models(files: dict[str, str]) -> dict[str, Any]:
    """The models of what was printed as JSON."""
    found: dict[str, Any] = {}
    for name, text in files.items():
        found |= tomllib.loads(text).get("models", {}) if name.startswith("models/") else {}
    return found


# --- to begin with ----------------------------------------------------------------------------------------------


def test_what_it_begins_with_is_valid_laid_out_and_known_to_editors(tmp_path: Path) -> None:
    folder = tmp_path / "manifests"
    result = sidecar("init", folder)
    assert (result.exit_code, result.stderr) == (0, "")
    for command in ("validate", "fmt"):
        assert sidecar(command, folder, *(["--check"] if command == "fmt" else [])).exit_code == 0
    check = [str(TAPLO), "check", "--no-auto-config", "sidecar.toml", "models/example.toml"]
    subprocess.run(check, cwd=folder, check=True, capture_output=True)
    assert "Nothing to do" in sidecar("plan", folder).stdout


def test_what_stands_there_commented_out_is_valid_too(tmp_path: Path) -> None:
    sidecar("init", tmp_path)
    model = tmp_path / "models/example.toml"
    text = model.read_text()
    commented = text[text.index("# [[models") :].replace("# ", "", 1).replace("\n# ", "\n")
    model.write_text(text[: text.index("# [[models")] + commented)
    settings_file = tmp_path / "sidecar.toml"
    opened = (
        settings_file.read_text()
        .replace("\n# [", "\n[")
        .replace("\n# import", "\nimport")
        .replace("\n# conf", "\nconf")
    )
    settings_file.write_text(opened.replace("sha256:...", "sha256:" + "8c" * 32).replace('["log"]', '["keys", "log"]'))
    result = sidecar("validate", tmp_path)
    assert (result.exit_code, result.output) == (0, "1 model is fine, 0 problems\n")
    assert len(tomllib.loads(model.read_text())["models"]["example"]["variants"]) == 2


def test_it_overwrites_nobodys_work_and_ignores_no_option(tmp_path: Path) -> None:
    sidecar("init", tmp_path, "--listen", "127.0.0.1:9999")
    before = (tmp_path / "sidecar.toml").read_text()
    assert 'listen = "127.0.0.1:9999"' in before
    result = sidecar("init", tmp_path)
    assert (result.exit_code, "there already; --force overwrites" in result.stderr) == (1, True)
    assert (tmp_path / "sidecar.toml").read_text() == before
    assert sidecar("init", tmp_path, "--force", "--json").exit_code == 0
    for options in (["--manage"], ["--ports", "1-2"], ["--out", "x"], ["--listen", "here"]):
        assert sidecar("init", tmp_path, *options).exit_code == 2
    assert "needs --ports" in sidecar("init", "--discover", "--api-key-env", "PATH").stderr
    for options in (["--ports", "9-1"], ["--ports", "0"], ["--ports", "x"], ["--api-key-env", "NOT_SET_ANYWHERE"]):
        assert sidecar("init", "--discover", *options).exit_code == 2


# --- what runs already ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A llama.cpp server that is there already, and its port."""
    port, folder = free_port(), tmp_path_factory.mktemp("gguf")
    command = [sys.executable, ENGINE.name, "--port", str(port), "--dir", str(folder), "--say", "I was here before."]
    with subprocess.Popen(
        command, cwd=ENGINE.parent, stderr=subprocess.DEVNULL, env={**os.environ, "HF_TOKEN": "hf-secret", "OTHER": "x"}
    ) as process:
        try:
            until(lambda: _healthy(port), "a llama.cpp that is healthy")
            yield port
        finally:
            process.kill()


def _healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).is_success
    except httpx.TransportError:
        return False


def test_a_real_llama_cpp_is_found_with_its_model_its_command_and_its_memory(llama: int, tmp_path: Path) -> None:
    found = models(json.loads(discover("--json", ports=(llama,)).stdout)["files"])
    ((name, model),) = found.items()
    assert name.startswith("chat-")  # its file's name, as it was given no other
    assert (model["mode"], model["variants"][0]["url"]) == (
        ["chat", "base", "messages", "responses"],
        f"http://127.0.0.1:{llama}",
    )
    result = discover("--manage", "--out", tmp_path, ports=(llama,))
    assert (result.exit_code, result.stderr) == (0, "")
    assert "set HF_TOKEN: " in result.stdout
    text = (tmp_path / "models" / f"{name}.toml").read_text()
    (variant,) = tomllib.loads(text)["models"][name]["variants"]
    assert variant["command"][:4] == [sys.executable, ENGINE.name, "--port", "{port}"]
    assert (variant["cwd"], variant["env"]) == (str(ENGINE.parent), {"HF_TOKEN": "{env.HF_TOKEN}"})
    assert 0 < variant["memory_mb"] < 1000
    assert "hf-secret" not in text + result.stdout
    assert _healthy(llama)


@pytest.mark.soak
def test_what_is_offered_runs(tmp_path: Path) -> None:
    with serving(HTTP_SERVER, "--name", "word", "--port", str(port := free_port())):
        files = json.loads(discover("--manage", "--json", ports=(port,)).stdout)["files"]
    text = next(text for name, text in files.items() if name.startswith("models/"))
    manifests = {"sidecar.toml": settings(tmp_path / "state", free_block()), "model.toml": text}
    with running(tmp_path, manifests) as started:
        assert started.ask(next(iter(models(files)))).startswith("word-0")


def test_servers_of_a_sidecar_and_what_is_not_understood_are_told_and_not_offered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(MARKER, "m-12345678")
    with serving(HTTP_SERVER) as ours:
        result = discover(ports=(ours.port,))
    assert "was started by one" in result.stderr
    assert "[models" not in result.stdout
    monkeypatch.delenv(MARKER)
    with serving(str(Path(HTTP_SERVER).with_name("raw_server.py")), "SSH-2.0-x\\r\\n") as other:
        nobody = discover("--out", tmp_path / "m", ports=(other.port,))
        assert (nobody.exit_code, nobody.stdout, (tmp_path / "m").exists()) == (1, "", False)
        assert f"nobody listens at port {other.port} who could be a model server; --all tells of" in nobody.stderr
        assert "does not speak HTTP" in discover("--all", ports=(other.port,)).stderr
