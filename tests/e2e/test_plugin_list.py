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


def test_a_plugin_that_is_kept_since_its_successor_is_broken_says_so(run: Run) -> None:
    declared = '[plugins.sieve]\nimport = "house:Sieve"\n'
    sidecar = run(stub("m"), files={"plugins/house.py": SIEVE, "plugin.toml": declared})
    sidecar.write("plugins/house.py", SIEVE + "\nimport nowhere_at_all\n")
    until(lambda: plugins(sidecar)["sieve"]["behind"], "the broken one is known")
    sieve = plugins(sidecar)["sieve"]
    assert sieve["generation"] == 1
    assert sieve["state"].startswith("the one before, since the new one cannot be used: importing house failed")
