"""While a model loads, everybody can see how far it has come."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from sidecar.surfaces.cli import main
from tests.e2e.conftest import free_block
from tests.e2e.harness import Sidecar, running, settings, stub, until

SIZE_MB = 16


@pytest.fixture(scope="module")
def loading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Sidecar, Path]]:
    """A sidecar whose model has read half of its file, and goes on when FILE.go is there."""
    folder: Path = tmp_path_factory.mktemp("progress")
    file = folder / "m.gguf"
    file.write_bytes(b"\1" * SIZE_MB * 2**20)
    manifests = {
        "sidecar.toml": settings(folder / "state", free_block()),
        "m.toml": stub("m", "--load", str(file), variant='load_timeout = "1m"', model="auto_start = true"),
    }
    with running(folder, manifests) as sidecar:
        yield sidecar, file
        Path(f"{file}.go").touch()


def progress(sidecar: Sidecar) -> dict[str, Any]:
    server = sidecar.model("m")["server"]
    return (server["loading"] if server else None) or {}


def test_status_explain_and_the_api_tell_how_far_a_load_has_come_until_it_is_ready(
    loading: tuple[Sidecar, Path],
) -> None:
    sidecar, file = loading
    until(lambda: progress(sidecar).get("model_read_mb") == SIZE_MB // 2, "half of it is read")
    until(lambda: progress(sidecar)["memory_mb"] is not None, "its memory is measured")
    found = progress(sidecar)
    assert (found["model_mb"], found["done"], found["expected_s"], found["timeout_s"]) == (SIZE_MB, 0.5, None, 60)
    assert 0 < found["memory_mb"] < found["declared_mb"] == 100
    assert 0 < found["since_s"] < 60
    for command in (("status",), ("explain", "m")):
        said = CliRunner().invoke(main, [*command, "--url", sidecar.url]).stdout
        assert "50%: 8 of 16 MB read, " in said
        assert "(given up after 60 s)" in said
    Path(f"{file}.go").touch()
    until(lambda: sidecar.state("m") == "ready", "it is ready")
    assert sidecar.model("m")["server"]["loading"] is None
    Path(f"{file}.go").unlink()
    httpx.post(f"{sidecar.url}/-/models/m/stop", trust_env=False, timeout=20)
    with sidecar.http() as http, pytest.raises(httpx.ReadTimeout):
        http.post("/-/models/m/start", timeout=0.3)
    until(lambda: progress(sidecar).get("model_mb") == SIZE_MB, "it loads again")
    assert progress(sidecar)["expected_s"] > 0  # which was measured
    status = json.loads(CliRunner().invoke(main, ["status", "--json", "--url", sidecar.url]).stdout)
    assert status["models"][0]["server"]["loading"]["model_mb"] == SIZE_MB
