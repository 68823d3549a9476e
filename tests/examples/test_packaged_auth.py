"""examples/plugins/packaged_auth: a distribution that pip installs, and that a manifest uses by its entry point."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import httpx

from tests.e2e.harness import PATIENCE_S, ROOT, running, until
from tests.examples import shipped
from tests.examples.copies import copied
from tests.servers import HTTP_SERVER
from tests.support import serving

FOLDER = shipped.PLUGINS / "packaged_auth"
PIP_S = 90.0  # a build and an installation, on a machine that has other things to do


def install(site: Path) -> dict[str, str]:
    """Have pip build it and install it, with nothing from the network. The environment in which it is found."""
    offline = ["--no-index", "--no-deps", "--no-build-isolation"]
    command = [sys.executable, "-m", "pip", "install", "-q", *offline, "--target", str(site), str(FOLDER)]
    subprocess.run(command, check=True, capture_output=True, timeout=PIP_S)
    return {"PYTHONPATH": f"{site}:{ROOT}"}


def test_what_pip_has_installed_is_used_by_its_name_alone(tmp_path: Path) -> None:
    site, state = tmp_path / "site", tmp_path / "state"
    environment = install(site)
    state.mkdir()
    keys = [sys.executable, str(site / "bin" / "sidecar-keys"), str(state / "auth.db"), "add", "ann"]
    key = subprocess.run(keys, check=True, capture_output=True, text=True, env={**os.environ, **environment}).stdout
    with serving(HTTP_SERVER, "--name", "qwen") as server:
        files = copied(FOLDER / "manifests", state, server.url)
        with running(tmp_path, files, environment) as sidecar:

            def status(key: str) -> int:
                headers = {"authorization": f"Bearer {key}"}
                url, body = f"{sidecar.url}/v1/chat/completions", {"model": "qwen", "messages": []}
                return httpx.post(url, json=body, headers=headers, trust_env=False, timeout=PATIENCE_S).status_code

            until(lambda: status(key.strip()) == 200, "the server is known to be healthy, and the key to be good")
            assert status("sk-unknown") == 401
            assert sidecar.status()["problems"] == []
            listed = httpx.get(f"{sidecar.url}/-/plugins", trust_env=False, timeout=PATIENCE_S).json()
            database = next(plugin for plugin in listed if plugin["name"] == "database")
            assert database["origin"] == "entry point of sidecar-database-auth"
            assert database["file"] == str(site / "sidecar_database_auth" / "database_auth.py")


def test_a_copy_of_it_can_be_published(tmp_path: Path) -> None:
    """Its source distribution holds the module itself, not the link that stands for it here."""
    shutil.copytree(FOLDER, tmp_path / "copy")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path / "dist")]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path / "copy", timeout=PIP_S)
    [archive] = (tmp_path / "dist").iterdir()
    with tarfile.open(archive) as files:
        module = next(file for file in files.getmembers() if file.name.endswith("/database_auth.py"))
        content = files.extractfile(module)
        assert module.isreg()
        assert content is not None
        assert content.read() == (shipped.PLUGINS / "database_auth" / "plugins" / "database_auth.py").read_bytes()
