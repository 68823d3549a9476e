"""AMD GPUs as devices, read from the files of the amdgpu driver: nothing has to be installed.

https://docs.kernel.org/gpu/amdgpu/driver-misc.html says what they hold. No amdgpu card is no device; one that cannot be
read is *unknown*, and one that was seen once never disappears silently.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from plugin_sdk import Config, Device, DeviceProcess, DeviceStatus
from plugin_sdk.services import Services

MB = 1 << 20
VENDOR = "0x1002"
VANISHED = "the driver no longer reports it"

_CARD = re.compile(r"card(\d+)")  # its connectors are called card0-DP-1


class Settings(Config, frozen=True):
    """sys: where sysfs is mounted; another path serves tests, and containers that see the host's elsewhere."""

    sys: str = "/sys"


class Node(msgspec.Struct, frozen=True):
    """A GPU as the compute driver numbers it: ROCm's index, and the number that its files about processes use."""

    index: int
    gpu_id: str


class Amd(Device[Settings]):
    """One device for each GPU, by its UUID where the hardware has one, else by ROCm's index.

    Both are what ROCR_VISIBLE_DEVICES takes (https://rocm.docs.amd.com/en/latest/conceptual/gpu-isolation.html);
    HIP_VISIBLE_DEVICES takes an index alone, which shifts when a card is added. Memory is VRAM: of an integrated GPU,
    what the firmware has set aside for it.
    """

    provides = "amd"
    visibility_env = "ROCR_VISIBLE_DEVICES"

    def __init__(self, config: Settings | None = None, *, name: str = "", services: Services | None = None) -> None:
        super().__init__(config, name=name, services=services)
        self._root = Path(self.config.sys)
        self._known: dict[Path, DeviceStatus] = {}  # as last read without a problem

    def probe(self) -> list[DeviceStatus]:
        """Read every card; one that cannot be read keeps its last figures, with the reason as its problem."""
        cards = self._cards()
        if not cards and not self._known:
            return []
        nodes = self._nodes()
        devices = [self._settle(card, position, nodes) for position, card in enumerate(cards)]
        ids = {device.id for device in devices}  # a card may have come back under another number
        gone = [known for card, known in self._known.items() if card not in cards and known.id not in ids]
        return devices + [msgspec.structs.replace(known, problem=VANISHED) for known in gone]

    def _cards(self) -> list[Path]:
        """The directories of AMD's cards, in the driver's order."""
        found = []
        for entry in _entries(self._root / "class/drm"):
            match = _CARD.fullmatch(entry.name)
            if match and (entry in self._known or _is_amdgpu(entry / "device")):
                found.append((int(match.group(1)), entry))
        return [card for _, card in sorted(found)]

    def _settle(self, card: Path, position: int, nodes: dict[str, Node]) -> DeviceStatus:
        known = self._known.get(card)
        try:
            status = self._read(card / "device", position, nodes)
        except (OSError, ValueError) as error:
            known = known or DeviceStatus(id=_address(card), name="AMD GPU", index=position)
            return msgspec.structs.replace(known, problem=f"{card / 'device'}: {_why(error)}")
        self._known[card] = status
        return status

    def _read(self, device: Path, position: int, nodes: dict[str, Node]) -> DeviceStatus:
        """One card. Raises OSError or ValueError if its memory cannot be read; the rest may be missing."""
        total, used = _number(device / "mem_info_vram_total"), _number(device / "mem_info_vram_used")
        node = next((nodes[entry.name] for entry in _entries(device / "drm") if entry.name in nodes), None)
        uuid = _identity(device / "unique_id")
        by_index = str(node.index) if node else device.resolve().name
        return DeviceStatus(
            id=f"GPU-{uuid.lower().removeprefix('0x').zfill(16)}" if uuid.strip("0") else by_index,
            name=_text(device / "product_name") or f"AMD GPU {_text(device / 'device')}".strip(),
            index=node.index if node else position,
            total_mb=total // MB,
            free_mb=max(0, total - used) // MB,
            used_mb=-(-used // MB),
            utilisation_pct=_scaled(device / "gpu_busy_percent", 1),
            temperature_c=_first(device, ("temp1_input",), 1_000),
            power_w=_first(device, ("power1_average", "power1_input"), 1_000_000),
            processes=self._processes(node.gpu_id) if node else (),
        )

    def _nodes(self) -> dict[str, Node]:
        """The compute driver's GPUs by the name of their render device. ROCm numbers them in this order."""
        nodes: dict[str, Node] = {}
        entries = [entry for entry in _entries(self._root / "class/kfd/kfd/topology/nodes") if entry.name.isdigit()]
        for entry in sorted(entries, key=lambda entry: int(entry.name)):
            gpu_id = _text(entry / "gpu_id")
            lines = (line.partition(" ") for line in _text(entry / "properties").splitlines())
            minor = {key: value for key, _, value in lines}.get("drm_render_minor", "")
            if gpu_id.strip("0"):  # processors have 0
                nodes[f"renderD{minor}"] = Node(len(nodes), gpu_id)
        return nodes

    def _processes(self, gpu_id: str) -> tuple[DeviceProcess, ...]:
        """Who computes on it, and with how much of its memory."""
        found = []
        for entry in _entries(self._root / "class/kfd/kfd/proc"):
            used = _scaled(entry / f"vram_{gpu_id}", MB)
            if entry.name.isdigit() and used:
                found.append(DeviceProcess(int(entry.name), int(used)))
        return tuple(found)


def _is_amdgpu(device: Path) -> bool:
    return _text(device / "vendor") == VENDOR and (device / "mem_info_vram_total").exists()


def _address(card: Path) -> str:
    """The PCI address, as a name for what cannot tell its own."""
    return (card / "device").resolve().name


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:  # no such driver
        return []


def _text(file: Path) -> str:
    """What the file says; "" if it is not there or cannot be read, as many of a card's may."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _identity(file: Path) -> str:
    """The number that the hardware has for life; "" where it has none. Raises OSError if it cannot be read just now."""
    try:
        return file.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return ""


def _number(file: Path) -> int:
    return int(file.read_text(encoding="ascii"))


def _scaled(file: Path, unit: int) -> float | None:
    try:
        return _number(file) / unit
    except (OSError, ValueError):
        return None


def _first(device: Path, names: tuple[str, ...], unit: int) -> float | None:
    """The first of the sensor's files that can be read."""
    files = (monitor / name for monitor in _entries(device / "hwmon") for name in names)
    return next((value for file in files if (value := _scaled(file, unit)) is not None), None)


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
