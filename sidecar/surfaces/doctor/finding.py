"""What a check has to say, and what it is given to look at."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

from sidecar.core.manifest import Declaration, Settings
from sidecar.core.observed import Device
from sidecar.mechanism.loader import Loaded


class Level(enum.Enum):
    """How bad it is. UNKNOWN: it could not be found out."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    UNKNOWN = "unknown"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing. remedy: what would help, "" where nothing need."""

    check: str = ""
    level: Level
    message: str
    remedy: str = ""


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """The sidecar that answers where the manifests say that one listens. errors: rounds that failed."""

    version: str
    url: str
    rounds: int = 0
    errors: int = 0
    problems: tuple[str, ...] = ()
    plugins: dict[str, str] = {}


class Places(msgspec.Struct, frozen=True):
    """Where the machine is looked at."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    dev: Path = Path("/dev")


class Patient(msgspec.Struct, frozen=True, kw_only=True):
    """What is looked at. loaded: None if the manifests cannot be read at all; unread says why. devices: None if nobody
    could tell; unprobed says why.

    running: None if no sidecar answers. refusal: why the one that does tells nothing.
    """

    root: Path
    environment: Mapping[str, str]
    places: Places = Places()
    loaded: Loaded | None = None
    unread: str = ""
    devices: tuple[Device, ...] | None = None
    unprobed: str = ""
    running: Running | None = None
    refusal: str = ""
    patience_s: float = 10.0

    @property
    def declaration(self) -> Declaration:
        """What is declared; nothing, if the manifests cannot be read."""
        return self.loaded.declaration if self.loaded is not None else Declaration()

    @property
    def settings(self) -> Settings:
        """`[sidecar]`, or its defaults."""
        return self.declaration.settings

    @property
    def state_dir(self) -> Path:
        """Where state is kept."""
        return Path(self.settings.state_dir).expanduser()


Check = Callable[[Patient], Iterable[Finding]]


def ok(message: str) -> Finding:
    """All is well."""
    return Finding(level=Level.OK, message=message)


def warn(message: str, remedy: str) -> Finding:
    """It works, but not as well as it should, or not for long."""
    return Finding(level=Level.WARN, message=message, remedy=remedy)


def fail(message: str, remedy: str) -> Finding:
    """It does not work."""
    return Finding(level=Level.FAIL, message=message, remedy=remedy)


def unknown(message: str, remedy: str = "") -> Finding:
    """It could not be found out."""
    return Finding(level=Level.UNKNOWN, message=message, remedy=remedy)
