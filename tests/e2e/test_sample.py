"""The bundled sample and what the README says of it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.e2e.harness import PATIENCE_S, ROOT, running, until

README = (ROOT / "README.md").read_text(encoding="utf-8")


def sample(tmp_path: Path) -> dict[str, str]:
    """The sample's manifests as they are, but for the address and the state directory."""
    folder = ROOT / "manifests"
    texts = {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in folder.rglob("*.toml")}
    texts["sidecar.toml"] = texts["sidecar.toml"].replace(
        'listen = "127.0.0.1:8080"',
        f'listen = "127.0.0.1:0"\nstate_dir = "{tmp_path / "state"}"\nports = "22000-22020"',
    )
    return {name: text.replace("../examples", str(ROOT / "examples")) for name, text in texts.items()}


def test_the_readmes_curl_is_answered_in_words(tmp_path: Path) -> None:
    (curl,) = re.findall(r"^curl -s .*?(?=^```)", README, re.MULTILINE | re.DOTALL)
    with running(tmp_path, sample(tmp_path)) as sidecar:
        command = curl.replace("http://127.0.0.1:8080", sidecar.url)
        answer = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    assert "I am a tiny model" in answer.stdout
    said = re.search(r"> (Hello! I am .*)", README)
    assert said is not None
    assert said.group(1) in answer.stdout


def test_a_newcomer_sees_a_model_evicted(tmp_path: Path) -> None:
    with running(tmp_path, sample(tmp_path)) as sidecar:
        until(lambda: sidecar.state("compass") == "ready", "the embedding model is up from the start")
        headers = {"authorization": "Bearer sk-local"}
        with sidecar.http() as http:
            http.headers.update(headers)
            for model in ("parrot", "owl"):
                body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
                assert http.post("/v1/chat/completions", json=body).status_code == 200
            assert sidecar.state("compass") == "Stopped"
            embedded = http.post("/v1/embeddings", json={"model": "text-embedding-3-small", "input": "north"})
        assert len(embedded.json()["data"][0]["embedding"]) > 8
        assert (sidecar.state("parrot"), sidecar.state("owl")) == ("Stopped", "ready")  # owl has the higher priority


def test_the_readmes_test_command_is_what_ci_runs() -> None:
    command = "./tests/run"
    assert f"\n{command}\n" in README
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
