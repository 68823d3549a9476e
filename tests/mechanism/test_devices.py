"""Device plugins that raise, hang or talk nonsense make their devices unknown, and nothing worse."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from plugin_sdk import Device as DevicePlugin
from plugin_sdk import DeviceStatus, device
from sidecar.mechanism.devices import Prober, probe_all
from sidecar.mechanism.instance import Instance
from sidecar.mechanism.watchdog import Watchdog
from tests.mechanism.conftest import block_until
from tests.support import PATIENCE_S, until
from tests.support import plugin as loaded

GPU = DeviceStatus(id="GPU-1", name="H200", total_mb=100, free_mb=60, index=1)


class Scripted(DevicePlugin):
    """Answers with whatever `answer` gives."""

    provides = "npu"
    answer: Callable[[], Any] = staticmethod(lambda: GPU)

    def probe(self) -> Any:
        return self.answer()


def says(answer: Any) -> Callable[[], Any]:
    """Something that returns the answer, or raises it."""

    def give() -> Any:
        if isinstance(answer, BaseException):
            raise answer
        return answer

    return give


@pytest.fixture
def plugin() -> Scripted:
    return Scripted(name="npu")


@pytest.fixture
def prober(plugin: Scripted) -> Iterator[Prober]:
    made = Prober(plugin, PATIENCE_S)
    yield made
    made.close()


async def test_one_status_or_a_list_of_them_are_devices(plugin: Scripted, prober: Prober) -> None:
    [found] = await prober.probe()
    assert (found.device_class, found.id, found.label) == ("npu", "GPU-1", "npu:1")
    assert (found.unknown, prober.problem) == ("", "")
    plugin.answer = says([GPU, DeviceStatus(id="GPU-2", total_mb=1, free_mb=1)])
    assert [found.id for found in await prober.probe()] == ["GPU-1", "GPU-2"]


async def test_the_only_device_of_a_class_needs_no_id() -> None:
    @device("toaster")
    def toaster() -> DeviceStatus:
        return DeviceStatus(total_mb=2, free_mb=1)

    prober = Prober(toaster(), PATIENCE_S)
    [found] = await prober.probe()
    assert (found.id, found.label, found.status.name) == ("toaster", "toaster", "toaster")
    prober.close()


async def test_an_async_probe_is_awaited() -> None:
    class Later(DevicePlugin):
        async def probe(self) -> DeviceStatus:
            return GPU

    [found] = await Prober(Later(name="later")).probe()
    assert found.device_class == "later"


async def test_without_hardware_there_is_no_device_and_no_problem(plugin: Scripted, prober: Prober) -> None:
    plugin.answer = says([])
    assert await prober.probe() == ()
    assert prober.problem == ""


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (RuntimeError("no driver"), "the npu probe failed: RuntimeError: no driver"),
        (SystemExit(1), "the npu probe failed: PluginCallError: SystemExit came out of it: 1"),
        (None, "must return a DeviceStatus or a list of them, got NoneType"),
        ("16 GB", "must return a DeviceStatus or a list of them, got str"),
        ((GPU,), "got tuple"),
        ([GPU, None], "got list"),
        (DeviceStatus(id="a", total_mb=10, free_mb=11), "expected 0 <= free_mb <= total_mb, got 11 of 10"),
        (DeviceStatus(id="a", total_mb=10, free_mb=-1), "expected 0 <= free_mb <= total_mb, got -1 of 10"),
        (DeviceStatus(id="a", total_mb="10", free_mb="1"), "the npu probe failed"),  # type: ignore[arg-type] # what untyped plugins return
        (DeviceStatus(id="a", total_mb=10, free_mb=None), "the npu probe failed"),  # type: ignore[arg-type] # what untyped plugins return
        (DeviceStatus(id=7, total_mb=10, free_mb=1), "the npu probe failed"),  # type: ignore[arg-type] # what untyped plugins return
        (DeviceStatus(id="a", total_mb=10, free_mb=float("nan")), "the npu probe failed"),  # type: ignore[arg-type] # what untyped plugins return
        ([GPU, GPU], "device ids are not unique: ['GPU-1', 'GPU-1']"),
        ([DeviceStatus(), DeviceStatus(index=1)], "device ids are not unique"),
        ([DeviceStatus(), DeviceStatus(id="npu")], "device ids are not unique"),
    ],
)
async def test_nonsense_makes_the_known_devices_unknown_until_it_makes_sense_again(
    plugin: Scripted, prober: Prober, answer: Any, why: str
) -> None:
    before = await prober.probe()
    plugin.answer = says(answer)
    [unknown] = await prober.probe()
    assert why in prober.problem
    assert unknown.unknown == prober.problem
    assert (unknown.id, unknown.status.total_mb) == ("GPU-1", 100)
    plugin.answer = says(GPU)
    assert await prober.probe() == before
    assert prober.problem == ""


async def test_nonsense_from_the_beginning_is_a_problem_without_devices(plugin: Scripted, prober: Prober) -> None:
    plugin.answer = says(OSError("no such library"))
    assert await prober.probe() == ()
    assert prober.problem == "the npu probe failed: OSError: no such library"


async def test_a_device_may_say_itself_that_it_cannot_be_read(plugin: Scripted, prober: Prober) -> None:
    plugin.answer = says([GPU, DeviceStatus(id="GPU-2", problem="fell off the bus")])
    assert [found.unknown for found in await prober.probe()] == ["", "fell off the bus"]
    assert prober.problem == ""


async def test_a_probe_that_hangs_is_told_and_recovers(plugin: Scripted) -> None:
    prober = Prober(plugin, 0.1)
    await prober.probe()
    released, returned = threading.Event(), threading.Event()

    def hang() -> DeviceStatus:
        released.wait(PATIENCE_S)
        returned.set()
        return GPU

    plugin.answer = hang
    for _ in range(4):  # more often than it has threads
        [unknown] = await prober.probe()
        assert unknown.unknown == "the npu probe did not answer within 0.1 s"
    plugin.answer = says(GPU)
    assert (await prober.probe())[0].unknown  # its threads hang still
    released.set()
    await until(returned.is_set, "the driver answers")
    await until(lambda: not any(t.name.startswith("device-npu") and not t.daemon for t in threading.enumerate()), "")
    [found] = await prober.probe()
    assert found.unknown == ""
    prober.close()


async def test_plugins_are_asked_side_by_side_and_a_bad_one_costs_only_its_own() -> None:
    class Slow(Scripted):
        answer = staticmethod(lambda: time.sleep(0.2))

    probers = [Prober(Slow(name=f"slow{number}"), 0.1) for number in range(5)]
    good = Prober(Scripted(name="good"), PATIENCE_S)
    began = time.monotonic()
    assert [found.id for found in await probe_all([*probers, good])] == ["GPU-1"]
    assert time.monotonic() - began < 0.4
    for prober in (*probers, good):
        prober.close()


async def test_probes_are_counted_with_their_durations_and_the_last_error() -> None:
    instance = Instance("npu", loaded(Scripted, "npu"))
    await instance.open()
    assert isinstance(instance.plugin, Scripted)
    prober = Prober(instance.plugin, 0.1, instance)
    await prober.probe()
    assert (instance.runs, instance.failed, len(instance.durations_s)) == (1, 0, 1)
    for answer in (says(OSError("no driver")), says("16 GB"), lambda: time.sleep(0.2)):
        instance.plugin.answer = answer
        await prober.probe()
    assert (instance.runs, instance.failed) == (1, 3)
    assert "TimeoutError" in instance.last_error
    prober.close()


async def test_a_probe_that_blocks_the_loop_is_named(caplog: pytest.LogCaptureFixture) -> None:
    class Blocks(DevicePlugin):
        provides = "npu"

        async def probe(self) -> DeviceStatus:
            block_until(lambda: caplog.messages)
            return GPU

    instance = Instance("npu", loaded(Blocks, "npu"))
    await instance.open()
    assert isinstance(instance.plugin, Blocks)
    watchdog = Watchdog(lambda: (instance.marker,))
    watchdog.start()
    with caplog.at_level(logging.WARNING, "sidecar.mechanism.watchdog"):
        await Prober(instance.plugin, PATIENCE_S, instance).probe()
    watchdog.close()
    assert instance.marker.blocked == 1
    assert caplog.messages[0].startswith("plugin npu is blocking the event loop at ")
    assert caplog.messages[0].endswith("(block_until)")
