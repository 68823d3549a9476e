"""An unmodified sidecar on GPUs that a C library plays through the real NVML binding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Run
from tests.e2e.harness import Sidecar, llama, stub, until
from tests.fakes import nvml
from tests.fakes.nvml import FakeGpu, FakeGpus, FakeProcess
from tests.servers import HTTP_SERVER

ONE, TWO = "GPU-11111111-aaaa", "GPU-22222222-bbbb"


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fake libnvidia-ml.so.1, compiled once."""
    return nvml.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def gpus(tmp_path: Path) -> FakeGpus:
    """Two GPUs of 24 GB, idle."""
    return FakeGpus(
        tmp_path / "gpus",
        FakeGpu(uuid=ONE, name="NVIDIA L4", total_mb=24000, reserved_mb=0),
        FakeGpu(uuid=TWO, name="NVIDIA L4", total_mb=24000, reserved_mb=0),
    )


def on_gpu(name: str, memory_mb: int, *devices: str, model: str = "") -> str:
    """A stub model that asks for GPUs and says what it was given."""
    required = ", ".join(f'"{device}"' for device in devices or ("nvidia",))
    return stub(name, memory_mb=memory_mb, model=model).replace('["cpu"]', f"[{required}]")


def devices(sidecar: Sidecar) -> dict[str, dict[str, Any]]:
    """The device reports by id."""
    return {device["status"]["id"]: device for device in sidecar.status()["devices"]}


def environment(pid: int, name: str) -> str | None:
    """A variable of a running process."""
    pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((pair.partition(b"=")[2].decode() for pair in pairs if pair.startswith(f"{name}=".encode())), None)


def test_gpus_are_listed_with_what_nvml_says_of_them(run: Run, gpus: FakeGpus, library: Path) -> None:
    gpus.update(1, processes=(FakeProcess(1, 3000),), utilisation_pct=40, temperature_c=61, power_mw=55_000)
    sidecar = run(stub("m"), env=gpus.env(library))
    found = devices(sidecar)
    assert set(found) == {ONE, TWO, "cpu"}
    status = found[TWO]["status"]
    assert (status["name"], status["index"], status["total_mb"]) == ("NVIDIA L4", 1, 24000)
    assert (status["used_mb"], status["free_mb"]) == (3000, 21000)
    assert (status["utilisation_pct"], status["temperature_c"], status["power_w"]) == (40, 61, 55)
    assert [(process["pid"], process["used_mb"]) for process in status["processes"]] == [(1, 3000)]
    assert "NVIDIA L4" in sidecar.cli("devices").stdout


def test_two_models_share_two_gpus_and_each_sees_only_its_own(run: Run, gpus: FakeGpus, library: Path) -> None:
    sidecar = run(on_gpu("a", 20000), on_gpu("b", 20000), stub("onlycpu"), env=gpus.env(library))
    sidecar.ask("a")
    sidecar.ask("b")
    sidecar.ask("onlycpu")
    assert {environment(sidecar.pid(name), "CUDA_VISIBLE_DEVICES") for name in ("a", "b")} == {ONE, TWO}
    assert environment(sidecar.pid("onlycpu"), "CUDA_VISIBLE_DEVICES") == ""
    found = devices(sidecar)
    assert (found[ONE]["reserved_mb"], found[TWO]["reserved_mb"]) == (20000, 20000)


def test_a_model_that_needs_two_gpus_evicts_what_is_in_its_way(run: Run, gpus: FakeGpus, library: Path) -> None:
    sidecar = run(on_gpu("small", 20000), on_gpu("wide", 15000, "nvidia", "nvidia"), env=gpus.env(library))
    sidecar.ask("small")
    sidecar.ask("wide")
    assert sidecar.state("small") == "Stopped"
    assert set(sidecar.model("wide")["server"]["devices"]) == {ONE, TWO}
    assert set((environment(sidecar.pid("wide"), "CUDA_VISIBLE_DEVICES") or "").split(",")) == {ONE, TWO}


def test_memory_that_others_hold_is_never_evicted_but_named(run: Run, gpus: FakeGpus, library: Path) -> None:
    for index in (0, 1):
        gpus.update(index, processes=(FakeProcess(4242 + index, 10000),))
    sidecar = run(on_gpu("big", 20000), env=gpus.env(library))
    with sidecar.http() as http:
        answer = http.post("/v1/chat/completions", json={"model": "big", "messages": []})
    assert answer.status_code == 503
    error = answer.json()["error"]
    assert error["code"] == "insufficient_memory"
    free = "nvidia:0 has 14000 of 24000 usable MB free, 6000 MB too little"
    assert f"{free} (10000 MB used by others (pid 4242" in error["message"]
    assert answer.headers["retry-after"]
    gpus.update(1, processes=())
    until(lambda: _answers(sidecar, "big"), "it starts once there is room")


def test_a_model_that_can_never_fit_says_so_at_once(run: Run, gpus: FakeGpus, library: Path) -> None:
    sidecar = run(on_gpu("small", 20000), on_gpu("giant", 90000), env=gpus.env(library))
    sidecar.ask("small")
    with sidecar.http() as http:
        answer = http.post("/v1/chat/completions", json={"model": "giant", "messages": []})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unplaceable")
    assert "retry-after" not in answer.headers
    assert sidecar.state("small") == "ready"


def test_a_lost_gpu_is_unknown_and_nothing_on_it_is_stopped(run: Run, gpus: FakeGpus, library: Path) -> None:
    sidecar = run(on_gpu("a", 20000, "nvidia:0"), on_gpu("b", 1000, "nvidia:0"), env=gpus.env(library))
    sidecar.ask("a")
    gpus.lose(0)
    until(lambda: devices(sidecar)[ONE]["status"]["problem"] != "", "the loss is noticed")
    assert sidecar.ask("a").startswith("a-0")  # still serves
    with sidecar.http() as http:
        answer = http.post("/v1/chat/completions", json={"model": "b", "messages": []})
    assert answer.json()["error"]["code"] == "device_unavailable"
    assert "nvidia:0 cannot be read" in answer.json()["error"]["message"]
    assert sidecar.state("a") == "ready"
    assert sidecar.starts("b") == 0
    assert not devices(sidecar)[TWO]["status"]["problem"]


def test_the_second_variant_is_taken_where_the_first_does_not_fit(run: Run, gpus: FakeGpus, library: Path) -> None:
    fallback = """
[[models.flexible.variants]]
name = "on-cpu"
required_devices = ["cpu"]
memory_mb = 100
command = ["{python}", "SERVER", "--port", "{port}", "--name", "cpu"]
"""
    model = on_gpu("flexible", 30000) + fallback.replace("SERVER", HTTP_SERVER)
    sidecar = run(model, env=gpus.env(library))
    assert sidecar.ask("flexible").startswith("cpu-0")
    assert sidecar.model("flexible")["server"]["variant"] == "on-cpu"


def test_mig_instances_are_devices_of_their_own(run: Run, gpus: FakeGpus, library: Path) -> None:
    instances = tuple(
        FakeGpu(uuid=f"MIG-{letter}", name="NVIDIA H200 MIG 1g.18gb", total_mb=16000, reserved_mb=0) for letter in "ab"
    )
    gpus.set(FakeGpu(uuid=ONE, name="NVIDIA H200", instances=instances))
    sidecar = run(on_gpu("a", 12000), on_gpu("b", 12000, "MIG-a"), env=gpus.env(library))
    assert set(devices(sidecar)) == {"MIG-a", "MIG-b", "cpu"}
    sidecar.ask("b")
    sidecar.ask("a")
    assert environment(sidecar.pid("b"), "CUDA_VISIBLE_DEVICES") == "MIG-a"
    assert environment(sidecar.pid("a"), "CUDA_VISIBLE_DEVICES") == "MIG-b"


def test_a_machine_without_a_driver_has_no_gpu_and_no_noise(run: Run) -> None:
    sidecar = run(on_gpu("a", 1000), llama("parrot"))
    assert [device["device_class"] for device in sidecar.status()["devices"]] == ["cpu"]
    assert sidecar.status()["device_problems"] == {}
    assert not any("nvml" in line.lower() for line in sidecar.log)
    with sidecar.http() as http:
        answer = http.post("/v1/chat/completions", json={"model": "a", "messages": []})
    assert answer.json()["error"]["code"] == "device_unavailable"
    assert 'no device "nvidia" is online' in answer.json()["error"]["message"]


def _answers(sidecar: Sidecar, model: str) -> bool:
    with sidecar.http() as http:
        return http.post("/v1/chat/completions", json={"model": model, "messages": []}).status_code == 200
