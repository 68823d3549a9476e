"""The Nvidia plugin, through the unmodified pynvml, on a fake libnvidia-ml.so.1: each test has a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import msgspec
import pytest

from plugin_sdk import DeviceProcess, DeviceStatus
from sidecar.builtin import nvml
from tests.builtin.prober import Answer
from tests.fakes.nvml import (
    DRIVER_NOT_LOADED,
    FUNCTION_NOT_FOUND,
    LIBRARY_MISMATCH,
    NO_PERMISSION,
    UNKNOWN,
    FakeGpu,
    FakeGpus,
    FakeProcess,
    Fault,
    build,
)

REPOSITORY = Path(__file__).parents[2]
T = TypeVar("T")
NOTHING = type(None)

A, B = FakeGpu(uuid="GPU-a"), FakeGpu(uuid="GPU-b")
SMALL = FakeGpu(uuid="MIG-1", name="NVIDIA H200 MIG 1g.18gb", total_mb=16384, reserved_mb=0)
LARGE = FakeGpu(uuid="MIG-2", name="NVIDIA H200 MIG 2g.35gb", total_mb=33280, reserved_mb=0)


class Prober:
    """A process that runs the plugin. See `prober.py`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._in, self._out = cast(IO[str], process.stdin), cast(IO[str], process.stdout)

    def tell(self, command: str, answer: type[T]) -> T:
        """Send a command and read its answer."""
        self._in.write(f"{command}\n")
        self._in.flush()
        return msgspec.json.decode(self._out.readline(), type=answer)

    def probe(self) -> list[DeviceStatus]:
        """The devices of one probe, which raised nothing."""
        answer = self.tell("probe", Answer)
        assert not answer.error
        return answer.devices

    def by_id(self) -> dict[str, DeviceStatus]:
        """The devices of one probe, by their ids, of which there are no two alike."""
        devices = self.probe()
        found = {device.id: device for device in devices}
        assert len(found) == len(devices)
        return found

    def problems(self) -> dict[str, str]:
        """The problem of each device, "" if it has none."""
        return {id_: device.problem for id_, device in self.by_id().items()}

    def logs(self) -> list[str]:
        """All that was logged."""
        return self.tell("logs", list[str])


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def gpus(tmp_path: Path) -> FakeGpus:
    return FakeGpus(tmp_path / "gpus", A, B)


Start = Callable[..., Prober]


@pytest.fixture
def start(gpus: FakeGpus, library: Path) -> Iterator[Start]:
    """Starts a process that sees `gpus`. Keywords are the plugin's settings; by default it retries at every probe."""
    processes: list[subprocess.Popen[str]] = []

    def begin(path: Path = library, **settings: Any) -> Prober:
        config = msgspec.json.encode({"retry": "0s", **settings}).decode()
        command = [sys.executable, "-m", "tests.builtin.prober", config]
        env = {**os.environ, **gpus.env(path), "PYTHONPATH": str(REPOSITORY)}
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, text=True)
        processes.append(process)
        return Prober(process)

    yield begin
    for process in processes:
        process.communicate(timeout=10)


def test_a_gpu_is_reported_with_its_identity_memory_and_sensors(gpus: FakeGpus, start: Start) -> None:
    gpus.update(1, total_mb=1000, reserved_mb=100, used_mb=300, utilisation_pct=42, temperature_c=55, power_mw=350_500)
    device = start().probe()[1]
    assert device == DeviceStatus(
        id="GPU-b",
        name="NVIDIA H200",
        index=1,
        total_mb=1000,
        free_mb=600,
        used_mb=300,
        utilisation_pct=42.0,
        temperature_c=55.0,
        power_w=350.5,
    )


def test_changes_show_at_the_next_probe(gpus: FakeGpus, start: Start) -> None:
    prober = start()
    before = prober.probe()[0].free_mb
    gpus.update(0, used_mb=1000)
    assert prober.probe()[0].free_mb == before - 1000


def test_a_driver_without_the_newest_calls_is_read_by_older_ones(gpus: FakeGpus, start: Start) -> None:
    missing = tuple(Fault(call, FUNCTION_NOT_FOUND) for call in ("memory_v2", "compute", "graphics", "mps", "mig"))
    gpus.update(0, total_mb=1000, reserved_mb=100, processes=(FakeProcess(999_999_999, 300),), faults=missing)
    device = start().probe()[0]
    assert (device.total_mb, device.free_mb, device.used_mb) == (1000, 600, None)  # the reserve counts as used there
    assert device.processes == (DeviceProcess(999_999_999, 300),)


def test_processes_are_merged_by_pid_and_named(gpus: FakeGpus, start: Start) -> None:
    me = os.getpid()
    listed = (
        FakeProcess(me, 500),
        FakeProcess(me, 500, "graphics"),
        FakeProcess(999_999_998, None, "graphics"),
        FakeProcess(999_999_999, None),
        FakeProcess(999_999_999, 70, "mps"),
    )
    gpus.update(0, processes=listed)
    assert start().probe()[0].processes == (
        DeviceProcess(me, 500, Path("/proc/self/comm").read_text().strip()),
        DeviceProcess(999_999_998, None),
        DeviceProcess(999_999_999, 70),
    )


def test_sensors_that_are_not_there_are_none_and_no_problem(gpus: FakeGpus, start: Start) -> None:
    gpus.update(0, utilisation_pct=None, temperature_c=None, power_mw=None)
    device = start().probe()[0]
    assert (device.utilisation_pct, device.temperature_c, device.power_w) == (None, None, None)
    assert not device.problem


def test_a_sensor_that_errs_is_none_and_no_problem(gpus: FakeGpus, start: Start) -> None:
    gpus.update(0, faults=(Fault("power", UNKNOWN), Fault("compute", UNKNOWN)))
    prober = start()
    device = prober.probe()[0]
    assert (device.power_w, device.temperature_c, device.problem) == (None, 30.0, "")
    assert "DEBUG nvmlDeviceGetPowerUsage: Unknown Error" in prober.logs()


def test_a_machine_without_a_driver_has_no_devices_and_says_so_once(start: Start, tmp_path: Path) -> None:
    prober = start(tmp_path)
    assert [prober.probe() for _ in range(3)] == [[], [], []]
    assert prober.logs() == ["DEBUG NVML: NVML Shared Library Not Found"]


def test_a_library_that_appears_later_is_noticed(start: Start, tmp_path: Path) -> None:
    prober = start(tmp_path)
    assert prober.probe() == []
    build(tmp_path)
    assert prober.problems() == {"GPU-a": "", "GPU-b": ""}


def test_a_driver_that_is_loaded_later_is_noticed(gpus: FakeGpus, start: Start) -> None:
    gpus.set_init_code(DRIVER_NOT_LOADED)
    prober = start()
    assert prober.probe() == []
    gpus.set_init_code(0)
    assert prober.problems() == {"GPU-a": "", "GPU-b": ""}


def test_a_missing_driver_is_not_looked_for_at_every_probe(gpus: FakeGpus, start: Start) -> None:
    gpus.set_init_code(DRIVER_NOT_LOADED)
    prober = start(retry="1h")
    assert prober.probe() == []
    gpus.set_init_code(0)
    assert prober.probe() == []


def test_a_broken_driver_is_an_error_and_not_a_machine_without_gpus(gpus: FakeGpus, start: Start) -> None:
    gpus.set_init_code(LIBRARY_MISMATCH)
    prober = start()
    answers = [prober.tell("probe", Answer) for _ in range(2)]
    assert answers == [Answer(error="NVML: RM has detected an NVML/RM version mismatch.")] * 2
    assert prober.logs() == ["WARNING NVML: RM has detected an NVML/RM version mismatch."]


def test_a_reloaded_driver_is_used_at_once(gpus: FakeGpus, start: Start) -> None:
    prober = start()
    prober.probe()
    gpus.reload_driver()
    assert prober.problems() == {"GPU-a": "", "GPU-b": ""}


def test_an_unloaded_driver_leaves_its_gpus_unknown(gpus: FakeGpus, start: Start) -> None:
    prober = start()
    before = prober.by_id()
    gpus.set_init_code(DRIVER_NOT_LOADED)
    gpus.reload_driver()
    after = prober.by_id()
    assert {device.problem for device in after.values()} == {"Driver Not Loaded"}
    assert after["GPU-a"].total_mb == before["GPU-a"].total_mb
    gpus.set_init_code(0)
    assert prober.by_id() == before


def test_a_lost_gpu_is_unknown_and_the_others_stay(gpus: FakeGpus, start: Start) -> None:
    prober = start()
    before = prober.by_id()
    gpus.lose(0)
    after = prober.by_id()
    assert after["GPU-a"] == msgspec.structs.replace(before["GPU-a"], problem="GPU is lost")
    assert after["GPU-b"] == before["GPU-b"]


@pytest.mark.parametrize("call", ["handle", "uuid", "memory_v2"])
def test_an_unknown_error_makes_a_gpu_unknown_whichever_call_meets_it(gpus: FakeGpus, start: Start, call: str) -> None:
    prober = start()
    prober.probe()
    gpus.update(1, faults=(Fault(call, UNKNOWN),))
    assert prober.problems() == {"GPU-a": "", "GPU-b": "Unknown Error"}


def test_a_gpu_lost_before_the_first_probe_has_a_name_of_its_place(gpus: FakeGpus, start: Start) -> None:
    gpus.lose(1)
    prober = start()
    for _ in range(2):
        assert prober.problems() == {"GPU-a": "", "nvidia:1": "GPU is lost"}
    gpus.restore(1)
    assert prober.problems() == {"GPU-a": "", "GPU-b": ""}


def test_a_lost_gpu_that_was_reset_is_seen_in_a_new_session(gpus: FakeGpus, start: Start) -> None:
    gpus.latch = True
    prober = start()
    prober.probe()
    gpus.lose(0)
    assert prober.problems() == {"GPU-a": "GPU is lost", "GPU-b": ""}
    gpus.restore(0)
    assert prober.problems() == {"GPU-a": "", "GPU-b": ""}


def test_sessions_are_not_renewed_at_every_probe(gpus: FakeGpus, start: Start) -> None:
    gpus.latch = True
    prober = start(retry="1h")
    gpus.lose(0)
    prober.probe()
    gpus.restore(0)
    assert prober.problems() == {"nvidia:0": "GPU is lost", "GPU-b": ""}


def test_a_gpu_that_vanishes_is_unknown_and_the_others_keep_their_identity(gpus: FakeGpus, start: Start) -> None:
    prober = start()
    prober.probe()
    gpus.set(B)
    for _ in range(2):
        devices = prober.by_id()
        assert devices["GPU-a"].problem == "the driver no longer reports it"
        assert (devices["GPU-b"].problem, devices["GPU-b"].index) == ("", 0)
    gpus.set(A, B)
    assert prober.problems() == {"GPU-a": "", "GPU-b": ""}


def test_an_unreadable_gpu_is_taken_for_the_last_at_its_index(gpus: FakeGpus, start: Start) -> None:
    prober = start()
    prober.probe()
    gpus.set(B)
    prober.probe()
    gpus.lose(0)
    assert prober.problems() == {"GPU-b": "GPU is lost", "GPU-a": "the driver no longer reports it"}


def test_an_unreadable_gpu_is_not_taken_for_one_that_moved(gpus: FakeGpus, start: Start) -> None:
    prober = start()
    prober.probe()
    gpus.set(B, A)
    gpus.lose(1)
    assert prober.problems() == {
        "GPU-b": "",
        "nvidia:1": "GPU is lost",
        "GPU-a": "the driver no longer reports it",
    }


def test_a_gpu_that_this_container_was_not_given_is_no_device(gpus: FakeGpus, start: Start) -> None:
    gpus.update(0, faults=(Fault("handle", NO_PERMISSION),))
    assert [(device.id, device.index) for device in start().probe()] == [("GPU-b", 1)]


def test_unified_memory_is_a_problem_that_says_so(gpus: FakeGpus, start: Start) -> None:
    gpus.set(FakeGpu(uuid="GPU-s", name="NVIDIA GB10", total_mb=None), FakeGpu(uuid="GPU-z", total_mb=0, reserved_mb=0))
    prober = start()
    devices = prober.by_id()
    assert {device.problem for device in devices.values()} == {nvml.UNIFIED}
    assert (devices["GPU-s"].name, devices["GPU-s"].temperature_c) == ("NVIDIA GB10", 30.0)
    gpus.update(0, temperature_c=50)
    assert prober.by_id()["GPU-s"].temperature_c == 50.0


def test_mig_instances_stand_in_for_their_gpu(gpus: FakeGpus, start: Start) -> None:
    busy = msgspec.structs.replace(SMALL, processes=(FakeProcess(999_999_999, 384),))
    gpus.update(0, instances=(busy, LARGE), utilisation_pct=None)
    devices = start().by_id()
    assert list(devices) == ["MIG-1", "MIG-2", "GPU-b"]
    assert devices["MIG-1"] == DeviceStatus(
        id="MIG-1",
        name="NVIDIA H200 MIG 1g.18gb",
        index=0,
        total_mb=16384,
        free_mb=16000,
        used_mb=384,
        temperature_c=30.0,
        power_w=70.0,
        processes=(DeviceProcess(999_999_999, 384),),
    )
    assert [device.index for device in devices.values()] == [0, 0, 1]  # as nvidia-smi numbers them


def test_a_gpu_that_is_cut_anew_forgets_its_old_instances(gpus: FakeGpus, start: Start) -> None:
    prober = start()
    prober.probe()
    for instances, expected in (
        ((SMALL, LARGE), ["MIG-1", "MIG-2"]),
        ((LARGE,), ["MIG-2"]),
        ((), []),
        (None, ["GPU-a"]),
    ):
        gpus.update(0, instances=instances)
        assert prober.problems() == {**dict.fromkeys(expected, ""), "GPU-b": ""}


def test_the_instances_of_a_lost_gpu_are_unknown(gpus: FakeGpus, start: Start) -> None:
    gpus.update(0, instances=(SMALL, LARGE))
    prober = start()
    prober.probe()
    gpus.lose(0)
    devices = prober.by_id()
    assert {id_: device.problem for id_, device in devices.items()} == {
        "MIG-1": "GPU is lost",
        "MIG-2": "GPU is lost",
        "GPU-b": "",
    }
    assert devices["MIG-1"].total_mb == 16384


def test_one_unreadable_instance_leaves_the_others_known(gpus: FakeGpus, start: Start) -> None:
    prober = start()
    gpus.update(0, instances=(SMALL, LARGE))
    prober.probe()
    gpus.update(0, instances=(msgspec.structs.replace(SMALL, faults=(Fault("memory_v2", UNKNOWN),)), LARGE))
    devices = prober.by_id()
    assert [device.problem for device in devices.values()] == ["Unknown Error", "", ""]
    assert devices["MIG-1"].total_mb == 16384


def test_a_probe_does_not_join_one_that_hangs_in_the_driver(gpus: FakeGpus, start: Start) -> None:
    gpus.update(0, faults=(Fault("memory_v2", hang_ms=700),))
    prober = start(patience="50ms")
    prober.tell("start", NOTHING)
    answers = [prober.tell("probe", Answer), prober.tell("join", Answer)]  # either may have been first
    assert sorted(answer.error for answer in answers) == [
        "",
        "NVML hangs: an earlier probe has not returned after another 0.05 s",
    ]
    gpus.update(0, faults=())
    assert prober.problems() == {"GPU-a": "", "GPU-b": ""}


def test_a_probe_waits_for_one_that_is_only_slow(gpus: FakeGpus, start: Start) -> None:
    gpus.update(0, faults=(Fault("memory_v2", hang_ms=50),))
    prober = start(patience="5s")
    prober.tell("start", NOTHING)
    assert prober.problems() == {"GPU-a": "", "GPU-b": ""}
    assert len(prober.tell("join", Answer).devices) == 2


def test_closing_ends_the_session_and_a_later_probe_opens_another(gpus: FakeGpus, start: Start) -> None:
    gpus.latch = True
    prober = start()
    gpus.lose(0)
    prober.probe()
    gpus.restore(0)
    prober.tell("close", NOTHING)
    assert prober.problems() == {"GPU-a": "", "GPU-b": ""}
