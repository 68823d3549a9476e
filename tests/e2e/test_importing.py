"""From another gateway's configuration to a sidecar that serves it, by the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.e2e.harness import KEY, Sidecar, cli, running
from tests.servers import HTTP_SERVER

# A stub stands where llama-server would.
CONFIG = f"""
healthCheckTimeout: 60
startPort: {{port}}
macros:
  server: >
    {sys.executable} {HTTP_SERVER}
    --port ${{PORT}}
apiKeys: ["{KEY}"]
models:
  "owl 1":
    cmd: |
      # the first of two
      ${{server}} --name '${{MODEL_ID}}'
    aliases: [gpt-4o-mini]
    env: ["CUDA_VISIBLE_DEVICES=-1", "GREETING=hello"]
    ttl: 600
    useModelName: what-the-server-calls-it
    filters:
      stripParams: "seed, temperature"
      setParams: {{top_p: 0.5}}
  parrot:
    cmd: {sys.executable} {HTTP_SERVER} --name parrot --port 8999
    proxy: http://127.0.0.1:8999
groups:
  always: {{swap: false, exclusive: false, persistent: true, members: [parrot]}}
hooks:
  on_startup:
    preload: [parrot]
"""


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """A sidecar on what was imported, without a line changed."""
    folder = tmp_path_factory.mktemp("imported")
    (folder / "config.yaml").write_text(CONFIG.replace("{port}", "27100").replace("{{", "{").replace("}}", "}"))
    out = folder / "manifests"
    options = ("--out", str(out), "--device", "cpu", "--listen", "127.0.0.1:0", "--json")
    report = json.loads(cli("import", "llama-swap", str(folder / "config.yaml"), *options).stdout)
    assert report["problems"] == []
    assert sorted(report["written"]) == sorted(str(path) for path in out.rglob("*.toml"))
    assert cli("validate", str(out)).returncode == 0
    with running(folder, {}, {"HOME": str(folder)}) as started:
        yield started


def test_its_models_answer_by_their_names_and_aliases(sidecar: Sidecar) -> None:
    assert sidecar.ask("parrot").startswith("parrot-0")
    for name in ("owl-1", "owl 1", "gpt-4o-mini"):
        assert sidecar.ask(name).startswith("owl")


def test_what_it_preloads_is_up_and_stays(sidecar: Sidecar) -> None:
    sidecar.ask("parrot")
    assert sidecar.model("parrot")["server"]["state"] == "ready"
    assert sidecar.starts("parrot") == 1


def test_its_keys_open_and_others_do_not(sidecar: Sidecar) -> None:
    with sidecar.client("sk-another") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_its_filters_are_in_force_and_its_server_is_asked_by_its_own_name(sidecar: Sidecar) -> None:
    sidecar.ask("gpt-4o-mini", temperature=1.5, top_p=0.9)
    with sidecar.http() as http:
        seen = http.get("/upstream/owl-1/_seen").json()
    body = json.loads([request["body"] for request in seen if "messages" in request["body"]][-1])
    assert body["model"] == "what-the-server-calls-it"
    assert body["top_p"] == 0.5
    assert "temperature" not in body


def test_memory_that_was_guessed_is_measured(sidecar: Sidecar) -> None:
    sidecar.ask("parrot")
    answer = httpx.get(f"{sidecar.url}/-/measurements", trust_env=False).json()
    assert {one["model"] for one in answer} >= {"parrot"}
    manifest = (sidecar.folder / "manifests" / "models" / "parrot.toml").read_text()
    assert "memory_mb is a guess" in manifest


def test_what_cannot_be_read_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("models:\n  a:\n    ttl: 5\n")
    result = cli("import", "llama-swap", str(tmp_path / "config.yaml"), check=False)
    assert result.returncode == 1
    assert f"{tmp_path}/config.yaml:2: models.a: expected a cmd" in result.stderr
