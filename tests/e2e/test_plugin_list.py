"""`sidecar plugin list` and `GET /-/plugins`: where plugins are from, how they do, and what went wrong last."""

from __future__ import annotations

from typing import Any

import httpx

from tests.e2e.conftest import Run
from tests.e2e.harness import PATIENCE_S, Sidecar, stub, until

SIEVE = """
from plugin_sdk import Config, Filter, inline

class Settings(Config):
    most: int = 3

class Sieve(Filter[Settings]):
    @inline
    def on_request(self, exchange):
        self.metrics.count("sifted", 2, {"kind": "coarse"})
        self.metrics.observe("width", 0.02)
        raise KeyError("no such thing")
"""


def plugins(sidecar: Sidecar) -> dict[str, dict[str, Any]]:
    """`/-/plugins` by name."""
    answer = httpx.get(f"{sidecar.url}/-/plugins", trust_env=False, timeout=PATIENCE_S).raise_for_status()
    return {plugin["name"]: plugin for plugin in answer.json()}


def test_plugins_are_listed_with_where_from_how_they_do_and_their_last_error(run: Run) -> None:
    declared = '[plugins.sieve]\nimport = "house:Sieve"\non_error = "skip"\ndeadline = "250ms"\n'
    door = 'from plugin_sdk import DeviceStatus, device\n\n@device("npu")\ndef npu():\n    raise OSError("no driver")\n'
    files = {"plugins/house.py": SIEVE, "plugins/npu.py": door, "plugin.toml": declared}
    sidecar = run(stub("m").replace("[models.m]\n", '[models.m]\nchain = ["keys", "sieve", "log"]\n'), files=files)
    sidecar.ask("m")
    found = plugins(sidecar)
    assert {name: found[name]["origin"] for name in ("sieve", "npu", "log", "keys")} == {
        "sieve": "[plugins.sieve]",
        "npu": "drop-in file",
        "log": "built-in",
        "keys": "[plugins.keys]",
    }
    sieve = found["sieve"]
    assert (sieve["kind"], sieve["generation"], sieve["on_error"], sieve["deadline_s"]) == ("filter", 1, "skip", 0.25)
    assert (sieve["failed"], sieve["runs"], sieve["p50_ms"], sieve["state"]) == (1, 0, None, "in force")
    assert (sieve["file"], sieve["line"]) == (str(sidecar.folder / "manifests/plugins/house.py"), 7)
    assert sieve["config_schema"]["$defs"]["Settings"]["properties"]["most"] == {"type": "integer", "default": 3}
    assert 'raise KeyError("no such thing")' in sieve["last_error"]
    assert sieve["counters"] == [{"name": "sifted", "labels": {"kind": "coarse"}, "value": 2.0}]
    (width,) = sieve["distributions"]
    assert (width["name"], width["count"], width["sum"], sum(width["buckets"])) == ("width", 1, 0.02, 1)
    assert found["keys"]["runs"] == 1
    assert found["keys"]["p95_ms"] >= found["keys"]["p50_ms"] > 0
    assert (found["npu"]["runs"], found["npu"]["failed"] > 0, found["npu"]["p50_ms"]) == (0, True, None)
    for name in ("cpu", "chat"):  # probes of devices and servers are counted, too
        assert (found[name]["runs"] > 0, found[name]["failed"], found[name]["p50_ms"] > 0) == (True, 0, True)
    assert "no driver" in found["npu"]["last_error"]
    assert found["npu"]["state"].startswith("its devices are unknown: ")
    told = sidecar.cli("plugin", "list").stdout
    assert "The last error of sieve:\nTraceback" in told
    assert found["npu"]["file"] == str(sidecar.folder / "manifests/plugins/npu.py")  # a table folds long paths


LATE = """
from pathlib import Path
from plugin_sdk import Auth, Principal

class Late(Auth):
    async def open(self):
        if not (self.state_dir / "now").exists():
            raise OSError("not yet")

    def authenticate(self, request):
        return Principal("late")
"""


def test_plugins_that_cannot_be_loaded_or_opened_now_say_so_and_come_in_when_they_can(run: Run) -> None:
    declared = '[plugins.sieve]\nimport = "house:Sieve"\n'
    late = stub("late").replace("[models.late]\n", '[models.late]\nchain = ["late"]\n')
    files = {"plugins/house.py": SIEVE, "plugin.toml": declared, "plugins/late.py": LATE, "late.toml": late}
    sidecar = run(stub("m"), files=files)
    assert plugins(sidecar)["late"]["state"] == "cannot be used: open failed: OSError: not yet"
    (sidecar.folder / "state" / "now").touch()
    sidecar.write("plugins/house.py", SIEVE + "\ndef broken(:\n")
    until(lambda: plugins(sidecar)["sieve"]["behind"], "the broken one is known")
    sieve = plugins(sidecar)["sieve"]
    assert (sieve["generation"], sieve["line"]) == (1, 7)
    assert sieve["state"].startswith("the one before, since the new one cannot be used: importing house failed")
    until(lambda: plugins(sidecar)["late"]["state"] == "in force", "it was tried again")
    assert sidecar.ask("late")
