"""What `sidecar diff` says of a merge is what happens: a real sidecar, its snapshot, and then the merge itself."""

from __future__ import annotations

import json
from pathlib import Path

from tests.e2e.harness import Sidecar, cli, running, settings, stub, until, write

BEFORE = {
    "changed.toml": stub("changed"),
    "gone.toml": stub("gone", "--chunks", "3"),
    "called.toml": stub("old", "--name", "same"),
    "stays.toml": stub("stays"),
    "idle.toml": stub("idle"),
}
AFTER = {
    "changed.toml": stub("changed", memory_mb=120),
    "called.toml": stub("new", "--name", "same").replace('"--name", "new", ', '"--name", "old", '),
    "stays.toml": stub("stays", model="priority = 7"),
    "idle.toml": stub("idle", memory_mb=130),
    "fresh.toml": stub("fresh", model="auto_start = true"),
    "bad.toml": stub("bad", memory_mb=0),
}


def pids(sidecar: Sidecar) -> dict[str, int]:
    """Of the models that are up."""
    up = [model for model in sidecar.status()["models"] if model["server"] and model["server"]["state"] == "ready"]
    return {model["name"]: model["server"]["pid"] for model in up}


def test_what_is_said_of_a_merge_is_what_happens(tmp_path: Path) -> None:
    sidecar_toml = {"sidecar.toml": settings(tmp_path / "state", "21200-21219")}
    for name, text in (sidecar_toml | AFTER).items():
        write(tmp_path / "after" / name, text)
    with running(tmp_path, sidecar_toml | BEFORE) as sidecar:
        for name in ("changed", "gone", "old", "stays"):
            assert sidecar.ask(name)
        was = pids(sidecar)
        (tmp_path / "devices.json").write_text(sidecar.cli("devices", "--json").stdout)
        directories = (str(tmp_path / "manifests"), str(tmp_path / "after"))
        told = cli("diff", *directories, "--against", str(tmp_path / "devices.json"), "--json", check=False)
        assert told.returncode == 1  # for what is bad
        found = json.loads(told.stdout)
        expected = {effect["model"]: effect["kind"] for effect in found["effects"]}
        assert expected == {"changed": "restart", "gone": "stop", "new": "rename", "fresh": "start"}
        assert sidecar.status()["applied"] == json.loads((tmp_path / "devices.json").read_text())["revision"]

        (tmp_path / "manifests" / "gone.toml").unlink()
        for name, text in AFTER.items():
            sidecar.write(name, text)
        until(lambda: set(pids(sidecar)) == {"changed", "new", "fresh", "stays"}, "the merge is carried out")
        until(lambda: pids(sidecar).get("changed") != was["changed"], "the changed model is another server")
        now = pids(sidecar)
        assert (now["new"], now["stays"]) == (was["old"], was["stays"])
        assert sidecar.status()["problems"] != []
        assert sidecar.starts("idle") == 0
