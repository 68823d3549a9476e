"""NVIDIA GPUs and MIG instances as devices, read through NVML.

What can go wrong is told apart: no driver is no device, a broken driver is an error, a GPU that cannot be read is
*unknown* with its last figures, and one that was seen once never disappears silently.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable

import msgspec

from plugin_sdk import Config, Device, DeviceStatus, Duration, PluginError
from plugin_sdk.services import Services
from sidecar.builtin import nvml

VANISHED = "the driver no longer reports it"


class Settings(Config, frozen=True):
    """retry: how often to look for a driver that is not there, or for a GPU that has failed, with a fresh session.

    patience: how long a probe waits for an earlier one that is still inside NVML.
    """

    retry: Duration = Duration(10)
    patience: Duration = Duration(2)


class Gpu(msgspec.Struct, frozen=True):
    """One GPU as read once: itself as a device, or its MIG instances. uuid is "" if even that could not be read."""

    index: int
    uuid: str = ""
    devices: tuple[DeviceStatus, ...] = ()
    problem: str = ""


class Nvidia(Device[Settings]):
    """One device for each GPU, or for each instance of a GPU in MIG mode, by UUID, as CUDA_VISIBLE_DEVICES takes it.

    `index` is the GPU's number in NVML and nvidia-smi. MIG instances all have that of their GPU: a number of their own
    would shift those of the GPUs behind, and change whenever somebody cuts the GPU anew. So "nvidia:0" is the GPU 0,
    and where that is in MIG mode, any instance of it; a certain instance is named by its UUID. Temperature and power
    of an instance are those of its whole GPU, not to be added up.
    """

    provides = "nvidia"
    visibility_env = "CUDA_VISIBLE_DEVICES"

    def __init__(self, config: Settings | None = None, *, name: str = "", services: Services | None = None) -> None:
        super().__init__(config, name=name, services=services)
        self._in_nvml = threading.Lock()
        self._session = Session(self.config.retry, self.log)
        self._known = Known()

    def probe(self) -> list[DeviceStatus]:
        """Read every GPU. Raises PluginError if the driver is broken, or an earlier probe is stuck in it.

        One at a time: a driver that hangs one call hangs the next too, and would take a thread for each.
        """
        if not self._in_nvml.acquire(timeout=self.config.patience):
            raise PluginError(f"NVML hangs: an earlier probe has not returned after another {self.config.patience} s")
        try:
            return self._probe()
        finally:
            self._in_nvml.release()

    async def close(self) -> None:
        """End the session, in a thread that nobody waits for: NVML may hang, and the process's end does it as well."""
        threading.Thread(target=self._shutdown, name=f"{self.name}-shutdown", daemon=True).start()

    def _probe(self) -> list[DeviceStatus]:
        for _ in range(2):  # a session that has ended, as by a driver's reload, is opened again
            if not self._session.ready():
                break
            try:
                devices = self._known.settle(_gpus())
            except nvml.NvmlError as error:
                self._session.end(error)
            else:
                if any(_failed(device) for device in devices):
                    self._session.renew_later()
                return devices
        return self._without_session()

    def _without_session(self) -> list[DeviceStatus]:
        devices = self._known.unknown(self._session.problem)
        if not devices and not self._session.no_driver:
            raise PluginError(f"NVML: {self._session.problem}")
        return devices

    def _shutdown(self) -> None:
        if not self._in_nvml.acquire(timeout=self.config.patience):
            self.log.debug("NVML hangs, so its session is left open")
            return
        try:
            self._session.close()
        finally:
            self._in_nvml.release()


class Session:
    """Our hold on NVML: opened when there is a driver, and again when it has ended or does us no good any more.

    At most once every retry_s, so that neither a missing driver nor a broken one is asked at every probe.
    """

    def __init__(self, retry_s: float, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self.problem = ""
        self.no_driver = False
        self._retry_s, self._log, self._clock = retry_s, log, clock
        self._open = False
        self._open_at = -math.inf
        self._renew_at = math.inf

    def ready(self) -> bool:
        """Whether NVML can be called, after trying to open it if it is time to; `problem` says why not."""
        now = self._clock()
        if self._open and now >= self._renew_at:
            self.close()
        if not self._open and now >= self._open_at:
            self._try(now)
        return self._open

    def renew_later(self) -> None:
        """Begin a new session after retry_s: the driver shows a GPU that was reset or came back only to new ones."""
        self._renew_at = min(self._renew_at, self._clock() + self._retry_s)

    def end(self, error: Exception) -> None:
        """Take note that the session is over, as NVML said by `error`."""
        self.problem, self.no_driver = str(error), False
        self._log.debug("NVML session ended: %s", error)
        self.close()

    def close(self) -> None:
        """Give the session back, also one that NVML says is over: it may count it still."""
        if self._open:
            self._open, self._renew_at = False, math.inf
            try:
                nvml.shutdown()
            except nvml.NvmlError as error:
                self._log.debug("nvmlShutdown: %s", error)

    def _try(self, now: float) -> None:
        self._open_at = now + self._retry_s
        try:
            nvml.init()
        except nvml.NvmlError as error:
            self._failed(error)
        else:
            self._open, self.problem = True, ""

    def _failed(self, error: Exception) -> None:
        """Log a new reason once, not at every try; the commonest, that the machine has no GPU, for debugging only."""
        before, self.problem = self.problem, str(error)
        self.no_driver = isinstance(error, nvml.NO_DRIVER)
        if self.problem != before:
            self._log.log(logging.DEBUG if self.no_driver else logging.WARNING, "NVML: %s", self.problem)


class Known:
    """The GPUs as they were when last read, by UUID: what cannot be read now keeps its identity and its figures."""

    def __init__(self) -> None:
        self._gpus: dict[str, Gpu] = {}

    def settle(self, readings: list[Gpu]) -> list[DeviceStatus]:
        """The devices of these readings, filled up from earlier ones, and those of the GPUs that they lack.

        A GPU that answers and has other MIG instances than before was cut anew: then the old ones are forgotten.
        """
        read = {gpu.uuid for gpu in readings if gpu.uuid}
        settled = [self._settled(gpu if gpu.uuid else self._by_index(gpu, read)) for gpu in readings]
        present = {gpu.uuid for gpu in settled}
        settled += [_unknown(gpu, VANISHED) for uuid, gpu in self._gpus.items() if uuid not in present]
        self._gpus = {gpu.uuid: gpu for gpu in settled if gpu.uuid}
        return _devices(settled)

    def unknown(self, problem: str) -> list[DeviceStatus]:
        """All devices ever seen, none of them readable."""
        return _devices(_unknown(gpu, problem) for gpu in self._gpus.values())

    def _by_index(self, gpu: Gpu, read: set[str]) -> Gpu:
        """Whose UUID cannot be read is who was at that index last, unless he answers from elsewhere.

        Those that had vanished by then may have had it before: they stand behind those that were there.
        """
        uuids = [known.uuid for known in self._gpus.values() if known.index == gpu.index and known.uuid not in read]
        return msgspec.structs.replace(gpu, uuid=uuids[0]) if uuids else gpu

    def _settled(self, gpu: Gpu) -> Gpu:
        before = self._gpus.get(gpu.uuid)
        if gpu.problem:
            never_read = DeviceStatus(id=gpu.uuid or f"nvidia:{gpu.index}", index=gpu.index)
            devices = before.devices if before else (never_read,)
            return _unknown(msgspec.structs.replace(gpu, devices=devices), gpu.problem)
        last = {device.id: device for device in before.devices} if before else {}
        return msgspec.structs.replace(
            gpu,
            devices=tuple(
                _with_problem(last.get(device.id, device), device.problem) if _failed(device) else device
                for device in gpu.devices
            ),
        )


def _gpus() -> list[Gpu]:
    """Every GPU that this process may use. Raises nvml.NvmlError if it is the session that fails, not a GPU."""
    readings = (_gpu(index) for index in range(nvml.count()))
    return [gpu for gpu in readings if gpu is not None]


def _gpu(index: int) -> Gpu | None:
    uuid = ""
    try:
        gpu = nvml.handle(index)
        uuid = nvml.uuid(gpu)
        return Gpu(index, uuid, tuple(_read(gpu, index)))
    except nvml.SESSION_OVER:
        raise
    except nvml.NOT_OURS:
        return None
    except nvml.NvmlError as error:
        return Gpu(index, uuid, problem=str(error))


def _read(gpu: nvml.Handle, index: int) -> Iterable[DeviceStatus]:
    """The GPU, or its MIG instances, each with a `problem` of its own if its memory cannot be read."""
    instances = nvml.instances(gpu)
    sensors = nvml.sensors(gpu)
    for device in [gpu] if instances is None else instances:
        yield _status(device, index, sensors)


def _status(device: nvml.Handle, index: int, sensors: nvml.Sensors) -> DeviceStatus:
    uuid, name = nvml.uuid(device), nvml.name(device)
    try:
        memory, processes = nvml.memory(device), nvml.processes(device)
    except nvml.SESSION_OVER:
        raise
    except nvml.NvmlError as error:
        return DeviceStatus(id=uuid, name=name, index=index, problem=str(error))
    return DeviceStatus(
        id=uuid,
        name=name,
        index=index,
        processes=processes,
        **msgspec.structs.asdict(memory),
        **msgspec.structs.asdict(sensors),
    )


def _failed(device: DeviceStatus) -> bool:
    """Whether it could not be read this time. Without memory of its own it can, for all that there is to read."""
    return device.problem not in ("", nvml.UNIFIED)


def _unknown(gpu: Gpu, problem: str) -> Gpu:
    return msgspec.structs.replace(gpu, devices=tuple(_with_problem(device, problem) for device in gpu.devices))


def _with_problem(device: DeviceStatus, problem: str) -> DeviceStatus:
    return msgspec.structs.replace(device, problem=problem)


def _devices(gpus: Iterable[Gpu]) -> list[DeviceStatus]:
    return [device for gpu in gpus for device in gpu.devices]
