"""The dashboard, the alerts and the list of metrics, against what a real Prometheus scrapes from a real sidecar.

The sidecar has a GPU for one of two models, one that dies, some that others run, and has taken over a server.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import yaml

from sidecar.control import engines
from sidecar.mechanism import services
from sidecar.mechanism.metrics import MOST_SERIES, Kind, label_name
from sidecar.surfaces.metrics import source
from sidecar.surfaces.metrics.catalog import METRICS
from sidecar.surfaces.metrics.plugins import MOST_NAMES
from tests import exposition
from tests.e2e.conftest import free_block
from tests.e2e.harness import ROOT, Sidecar, running, settings, stub, until, write
from tests.servers import HTTP_SERVER
from tests.support import free_port, serving

FOLDER = ROOT / "examples" / "observability"
DASHBOARD: Any = json.loads((FOLDER / "dashboard.json").read_text(encoding="utf-8"))
ALERTS: Any = yaml.safe_load((FOLDER / "alerts.yml").read_text(encoding="utf-8"))
README = (FOLDER / "README.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="apt-get install prometheus")

GPU = """
from plugin_sdk import DeviceStatus, Outcome, Stats, device


@device("toy")
def toy() -> DeviceStatus:
    return DeviceStatus(
        total_mb=1000, free_mb=900, name="Toy", utilisation_pct=50.0, temperature_c=61.0, power_w=75.5
    )


class Counts(Stats):
    def record(self, outcome: Outcome) -> None:
        self.metrics.count("seen.requests", labels={"of-model": outcome.model})
        self.metrics.observe("share", outcome.queue_s / outcome.duration_s)
"""
MODE = 'idle_timeout = "0s"\nchain = ["keys", "usage", "counts"]'
PLUGINS = """
[plugins.counts]
import = "toy:Counts"

[plugins.usage]
import = "sidecar.builtin.usage:Usage"
"""


TURNS = 3
OF_GIT = (source.STATE, source.FAILURES, source.ANSWERED)  # of a repository that is fetched: tests/surfaces has them


class Prometheus:
    """One that scrapes. url: of its API. target: whom it asks."""

    def __init__(self, url: str, target: str) -> None:
        self.target = target
        self._client = httpx.Client(base_url=f"{url}/api/v1/", trust_env=False, timeout=30)

    def close(self) -> None:
        """Ask no more."""
        self._client.close()

    def scrape(self) -> None:
        """Wait until it has scraped once more, so that what came before is seen to have risen."""
        began = time.time()
        until(lambda: any(float(one["value"][1]) > began for one in self._times()), "Prometheus scrapes again")

    def _times(self) -> Any:
        return self.ask("query", query="timestamp(up == 1)")["result"]

    def is_up(self) -> bool:
        """Whether it has scraped its target."""
        with suppress(httpx.HTTPError):
            return [one["value"][1] for one in self.ask("query", query="up")["result"]] == ["1"]
        return False

    def ask(self, path: str, **query: str) -> Any:
        """The data of an answer of its API."""
        answer = self._client.get(path, params=query).json()
        assert answer["status"] == "success", f"{query}: {answer}"
        return answer["data"]

    def values(self, query: str, since: float) -> list[float]:
        """All that a query gives from then until now."""
        told = self.ask("query_range", query=query, start=str(since), end=str(time.time()), step="0.25")
        return [float(value) for one in told["result"] for _, value in one["values"]]


@contextmanager
def scraping(folder: Path, target: str) -> Iterator[Prometheus]:
    """A Prometheus with the configuration of the examples, in a hurry."""
    told: Any = yaml.safe_load((FOLDER / "prometheus.yml").read_text(encoding="utf-8"))
    told["global"] = {"scrape_interval": "400ms", "scrape_timeout": "400ms", "evaluation_interval": "500ms"}
    told["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    folder.mkdir()
    write(folder / "prometheus.yml", json.dumps(told))
    shutil.copy(FOLDER / "alerts.yml", folder)
    port = free_port()
    command = [
        *("prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"),
        *(f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"),
        "--scrape.discovery-reload-interval=1s",  # or it may look for its targets after 10 s only
    ]
    with (folder / "prometheus.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            with closing(Prometheus(url, target)) as prometheus:
                yield prometheus
        finally:
            process.terminate()


class Seen(msgspec.Struct, frozen=True):
    """What there was to see: Prometheus, since when, and the last text that the sidecar gave."""

    prometheus: Prometheus
    since: float
    text: str


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It looks for its targets only after 5 s, in which others may do what needs none."""
    with scraping(tmp_path_factory.mktemp("scraping") / "prometheus", f"127.0.0.1:{free_port()}") as found:
        yield found


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, prometheus: Prometheus) -> Iterator[Seen]:
    """A sidecar that has lived through what the dashboard shows, as Prometheus has seen it."""
    folder = tmp_path_factory.mktemp("observed")
    manifests = settings(folder / "state", free_block(), "metrics_principals = true")
    manifests = manifests.replace("127.0.0.1:0", prometheus.target)
    gpu = 'required_devices = ["toy"]'
    files = {
        "sidecar.toml": manifests + PLUGINS,
        "plugins/toy.py": GPU,
        "steady.toml": stub("steady", "--metrics", "--interval", "0.001", model=MODE),
        "left.toml": stub("left", memory_mb=600, model=MODE).replace('required_devices = ["cpu"]', gpu),
        "right.toml": stub("right", memory_mb=600, model=MODE).replace('required_devices = ["cpu"]', gpu),
        "mortal.toml": stub("mortal", "--die-after-chunks", "1", model=MODE),
    }
    with ExitStack() as stack:
        dead, well = (stack.enter_context(serving(HTTP_SERVER)) for _ in range(2))
        variants = "".join(f'[[models.others.variants]]\nname = "{at.port}"\nurl = "{at.url}"\n' for at in (dead, well))
        files["others.toml"] = f'[models.others]\nmode = "chat"\n{variants}'
        with running(folder, files) as first:
            first.ask("steady")
            first.process.kill()
            first.process.wait()
        sidecar = stack.enter_context(running(folder, {}))
        until(prometheus.is_up, "Prometheus scrapes the sidecar")
        since = time.time()
        _live(sidecar, prometheus)
        _retry(sidecar, dead.process)
        text = httpx.get(f"{sidecar.url}/metrics", trust_env=False).text
        rate = "rate(sidecar_retries_total[5s])"  # two scrapes of the last of it
        until(lambda: bool(prometheus.values(rate, since)), "Prometheus has seen all of it")
        yield Seen(prometheus, since, text)


def _live(sidecar: Sidecar, prometheus: Prometheus) -> None:
    """Cold starts, evictions, a server that dies twice, streams, and a client without a key."""
    until(lambda: sidecar.state("others") == "Serving", "the servers of others are found well")
    with sidecar.http() as client:
        for turn in range(TURNS):
            assert _stream(client, "steady") == 200
            assert _stream(client, "left" if turn % 2 else "right") == 200
            assert _stream(client, "steady", authorization="Bearer sk-wrong") == 401
            if turn in (0, TURNS - 1):
                with suppress(httpx.RemoteProtocolError):
                    _stream(client, "mortal")
            prometheus.scrape()


def _stream(client: httpx.Client, model: str, **headers: str) -> int:
    """The status of a stream that was read to its end."""
    body = {"model": model, "messages": [], "stream": True, "stream_options": {"include_usage": True}}
    return client.post("/v1/chat/completions", json=body, headers=headers).status_code


def _retry(sidecar: Sidecar, process: subprocess.Popen[str]) -> None:
    """A server of somebody else's ends, and the next request finds that out."""
    process.kill()
    process.wait()
    sidecar.ask("others")


@pytest.mark.usefixtures("prometheus")
def test_promtool_takes_rules_and_configuration() -> None:
    for command in (["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run(["promtool", *command], cwd=FOLDER, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


# --- the dashboard ------------------------------------------------------------------------------------------------


def _queries() -> list[tuple[str, str]]:
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    return [(panel["title"], target["expr"]) for panel in panels for target in panel["targets"]]


def _filled_in(query: str) -> str:
    query = query.replace("$__rate_interval", "5s").replace("$instance", ".*").replace("$model", ".*")
    assert "$" not in query
    return query


def test_every_query_of_the_dashboard_returns_data(seen: Seen) -> None:
    empty = []
    for title, query in _queries():
        values = seen.prometheus.values(_filled_in(query), seen.since)
        if not any(value == value for value in values):
            empty.append(f"{title}: {query}")
    assert not empty


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    for variable in DASHBOARD["templating"]["list"]:
        assert variable["type"] in ("datasource", "query")


def test_the_variables_of_the_dashboard_have_values(seen: Seen) -> None:
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.findall(r"label_values\((\w+)(?:\{.*\})?, (\w+)\)", variable["definition"])[0]
            values = seen.prometheus.ask(f"label/{label}/values", **{"match[]": metric})
            assert values, variable["name"]


# --- the alerts ---------------------------------------------------------------------------------------------------


def test_every_alert_evaluates_without_a_fault(seen: Seen) -> None:
    def evaluated() -> bool:
        rules = [rule for group in seen.prometheus.ask("rules")["groups"] for rule in group["rules"]]
        return len(rules) == len(ALERTS["groups"][0]["rules"]) and all(rule["health"] == "ok" for rule in rules)

    until(evaluated, "all rules are evaluated, and well")


def test_what_alerts_ask_for_is_exported(seen: Seen) -> None:
    known = {"up", *(metric.sample_name for metric in OF_GIT)} | {name for name, _ in exposition.series(seen.text)}
    for rule in ALERTS["groups"][0]["rules"]:
        named = set(re.findall(r"\b((?:sidecar|gen_ai|process)_\w+|up)(?=[{\[ ])", rule["expr"]))
        assert named, rule["alert"]
        assert named <= known, rule["alert"]


def test_every_alert_is_shown_to_fire() -> None:
    tests: Any = yaml.safe_load((FOLDER / "alerts_test.yml").read_text(encoding="utf-8"))
    shown = {case["alertname"] for test in tests["tests"] for case in test["alert_rule_test"] if case.get("exp_alerts")}
    assert shown == {rule["alert"] for rule in ALERTS["groups"][0]["rules"]}


# --- the list -----------------------------------------------------------------------------------------------------


def _listed() -> dict[str, dict[str, str]]:
    """The rows of the list, by name in Prometheus."""
    rows = {}
    for line in README.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 6:
            name, told, kind, unit, labels, meaning = cells
            values = {"told": told, "kind": kind, "unit": unit, "labels": labels, "meaning": meaning}
            rows[name.strip("`")] = values
    return rows


def test_the_list_has_all_metrics_and_says_what_the_sidecar_says() -> None:
    wanted = {
        metric.sample_name: {
            "told": f"`{metric.name}`",
            "kind": metric.kind.value,
            "unit": metric.unit,
            "labels": ", ".join(f"`{label_name(label)}`" for label in metric.labels if "overflow" not in label),
            "meaning": metric.help,
        }
        for metric in METRICS
    }
    assert _listed() == wanted


def test_the_bounds_are_those_that_are_told() -> None:
    assert f"more than {MOST_SERIES:,} series" in README
    assert f"{services.MOST_SERIES:,} series of a plugin and {MOST_NAMES} names" in README
    assert (engines.FRESH_S, engines.PATIENCE_S, engines.AGAIN_S) == (2.0, 0.5, 60.0)  # in words there


def test_all_of_the_list_is_exported_and_nothing_else(seen: Seen) -> None:
    found = {family.name: family for family in exposition.families(seen.text)}
    own = {name for name in found if not name.startswith("plugin_")}
    told = [metric for metric in METRICS if metric not in OF_GIT]
    assert own == {metric.sample_name.removesuffix("_total") for metric in told}
    for metric in told:
        family = found[metric.sample_name.removesuffix("_total")]
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert labels <= {label_name(label) for label in metric.labels}
        assert family.type == ("gauge" if metric.kind is Kind.INFO else metric.kind.value)
        assert family.documentation == metric.help


def test_plugins_own_metrics_are_exported(seen: Seen) -> None:
    assert exposition.value(seen.text, "plugin_seen_requests_total", plugin="counts", of_model="steady") == 2 * TURNS
    assert exposition.value(seen.text, "plugin_share_count", plugin="counts") >= 3 * TURNS


# --- what is told -------------------------------------------------------------------------------------------------


def test_numbers_are_those_of_what_has_happened(seen: Seen) -> None:
    def value(name: str, **labels: str) -> float:
        return exposition.value(seen.text, name, **labels)

    steady = {"model": "steady", "variant": "default", "end": "ok", "http_response_status_code": "200"}
    assert value("sidecar_requests_total", **steady, principal="tester") == TURNS
    assert value("sidecar_requests_total", model="steady", end="refused", http_response_status_code="401") == TURNS
    assert value("sidecar_tokens_total", model="steady", gen_ai_token_type="output", principal="tester") == 4 * TURNS
    assert value("gen_ai_server_time_to_first_token_seconds_count", gen_ai_request_model="steady") == TURNS
    assert value("sidecar_server_adoptions_total", model="steady") == 1
    assert value("sidecar_server_starts_total", model="left") == 1
    assert value("sidecar_server_starts_total", model="right") == 2
    assert value("sidecar_server_evictions_total", model="left", reason="Evicted") == 1
    assert value("sidecar_server_evictions_total", model="right") == 1
    assert value("sidecar_server_failures_total", model="mortal", reason="Exited") == 2
    assert value("sidecar_server_restarts_total", model="mortal") == 1
    assert value("sidecar_server_load_duration_seconds_count", model="right") == 2
    assert value("sidecar_queue_duration_seconds_count", model="right") == 2
    assert value("sidecar_retries_total", model="others") == 1
    assert value("sidecar_model_state", model="right", state="ready") == 1
    assert value("sidecar_model_state", model="left", state="stopped") == 1
    assert value("sidecar_device_memory_size_bytes", device="toy") == 1000 * 2**20
    assert value("sidecar_device_memory_reserved_bytes", device="toy") == 600 * 2**20
    assert value("sidecar_device_temperature_celsius", device="toy") == 61
    assert value("sidecar_device_power_watts", device="toy") == 75.5
    assert value("sidecar_device_utilization_ratio", device="toy") == 0.5
    assert value("sidecar_engine_kv_cache_utilization_ratio", model="steady") == 0.25
    assert value("sidecar_engine_requests_waiting", model="steady") == 0
    assert value("sidecar_engine_lora_requests_info", model="steady", running_lora_adapters="sql") == 1
    assert value("sidecar_plugin_calls_total", plugin="keys", result="ok") >= 2 * TURNS


def test_promtool_finds_no_fault_with_what_is_told(seen: Seen) -> None:
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=seen.text, capture_output=True, text=True, timeout=30
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_the_collectors_configuration_takes_what_the_sidecar_sends() -> None:
    told: Any = yaml.safe_load((FOLDER / "otel-collector.yaml").read_text(encoding="utf-8"))
    parts = {kind: set(told[kind]) for kind in ("receivers", "processors", "exporters")}
    for pipeline in told["service"]["pipelines"].values():
        assert all(set(pipeline[kind]) <= parts[kind] for kind in parts)
    assert told["receivers"]["otlp"]["protocols"]["http"]["endpoint"].endswith(":4318")
