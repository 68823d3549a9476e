"""GPUs of a vendor whose command line tool tells how they are: `my-gpu-smi --json`.

The tool is asked anew for every look at the devices, and each call has a time limit. What cannot be had (no tool, no
answer in time, an answer that makes no sense) makes the GPUs *unknown*: nothing new is placed on them, and whatever
runs there goes on.
"""

from __future__ import annotations

import subprocess
from typing import Any

import msgspec

from plugin_sdk import Config, Device, DeviceProcess, DeviceStatus, Duration, PluginError

VANISHED = "the tool no longer reports it"


class Settings(Config):
    """command: the vendor's tool, as a list of arguments; no shell is involved. timeout: for one answer of it."""

    command: tuple[str, ...] = ("my-gpu-smi", "--json")
    timeout: Duration = Duration(2)

    def __post_init__(self) -> None:
        if not self.command or self.timeout <= 0:
            raise ValueError("expected a command, and a timeout longer than nothing")


class Process(msgspec.Struct):
    """Who uses a GPU."""

    pid: int
    used_mb: int


class Gpu(msgspec.Struct):
    """One GPU as the tool tells it. fault: why the driver cannot read it."""

    uuid: str
    index: int
    name: str = ""
    total_mb: int = 0
    free_mb: int = 0
    utilisation_pct: float | None = None
    temperature_c: float | None = None
    processes: list[Process] = []
    fault: str = ""

    def status(self) -> DeviceStatus:
        """The same in the sidecar's words."""
        return DeviceStatus(
            id=self.uuid,
            index=self.index,
            name=self.name,
            total_mb=self.total_mb,
            free_mb=self.free_mb,
            utilisation_pct=self.utilisation_pct,
            temperature_c=self.temperature_c,
            processes=tuple(DeviceProcess(one.pid, one.used_mb) for one in self.processes),
            problem=self.fault,
        )


class Report(msgspec.Struct):
    """The whole answer of the tool."""

    gpus: list[Gpu]


class MyGpu(Device[Settings]):
    """One device for each GPU, under its UUID: an index would name another card once one is taken out."""

    provides = "my_gpu"
    visibility_env = "MY_GPU_VISIBLE_DEVICES"  # each server gets the UUIDs of the GPUs that were reserved for it

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._known: dict[str, DeviceStatus] = {}

    def probe(self) -> list[DeviceStatus]:
        """The GPUs as they are now. Blocks while the tool runs, so it is no `async def`: it gets a thread."""
        found = {gpu.uuid: gpu.status() for gpu in self._ask().gpus}
        gone = [msgspec.structs.replace(self._known[id_], problem=VANISHED) for id_ in self._known.keys() - found]
        self._known |= found
        return [*found.values(), *gone]

    def _ask(self) -> Report:
        """What the tool says. Raises PluginError with what a person should know."""
        tool, timeout_s = self.config.command[0], float(self.config.timeout)
        try:
            done = subprocess.run(self.config.command, capture_output=True, timeout=timeout_s, check=True)
            return msgspec.json.decode(done.stdout, type=Report)
        except OSError as error:
            raise PluginError(f"{tool} cannot be run ({error.strerror}): is the driver installed?") from error
        except subprocess.TimeoutExpired:
            raise PluginError(f"{tool} did not answer within {timeout_s:g} s") from None
        except subprocess.CalledProcessError as error:
            said = error.stderr.decode("utf-8", "replace").strip()
            raise PluginError(f"{tool} failed with exit code {error.returncode}: {said or 'it says nothing'}") from None
        except msgspec.DecodeError as error:
            raise PluginError(f"{tool} says what cannot be understood: {error}") from error
