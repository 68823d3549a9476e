"""What is remembered of variants over restarts: the most memory that each has taken, and how long it loads.

Kept by what runs, not by what is declared about it: a changed `memory_mb` leaves the peak, a changed command does not.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from sidecar.core.manifest import Declaration, Variant
from sidecar.core.observed import Measured
from sidecar.mechanism import durable

log = logging.getLogger(__name__)

VERSION = 1
FILE = "measurements.json"
MOST_ENTRIES = 4096
MOST_BYTES = 8 * 2**20
NEWEST_WEIGHT = 0.3  # of a load time in the average: five loads on, an odd one counts for a sixth of what it did

_Key = tuple[str, str]  # the model, and the recipe of its variant


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One variant of a model. peak_mb: device requirement to MB. load_s: 0 = it never got ready."""

    model: str
    recipe: str
    peak_mb: dict[str, int] = {}
    load_s: float = 0.0


class _File(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    variants: tuple[Entry, ...]


class Measurements:
    """What is remembered, in memory and in `measurements.json`. failed: saves that came to nothing.

    folder: the state directory, which is read at once; None = nothing is kept on disk.
    """

    def __init__(self, folder: Path | None) -> None:
        self.failed = 0
        self._path = folder / FILE if folder is not None else None
        self._entries: dict[_Key, Entry] = {}  # the one that changed last stands last
        self._declared: dict[_Key, tuple[Measured, ...]] = {}  # variants as they are declared, with no measurement yet
        self._recipes: dict[
            int, tuple[Variant, str]
        ] = {}  # by id, which is the variant's for as long as it is held here
        self._all: tuple[Measured, ...] | None = None  # asked for with each plan, and seldom another
        self._failing = False
        self._changes = 0
        self._saved = 0  # the number of changes that are on disk
        self._writing = threading.Lock()
        if self._path is not None:
            self._entries = _read_or_put_aside(self._path)

    def observed(self, model: str, variant: Variant, devices: tuple[str, ...], observed_mb: Mapping[str, int]) -> None:
        """Take in what a server takes now. devices: ids in the order of required_devices; observed_mb: by device id.

        Of a requirement that stands twice the higher counts, since one number is declared for both.
        """
        key = (model, self._recipe(variant))
        before = self._entries.get(key, Entry(model=model, recipe=key[1]))
        peak = dict(before.peak_mb)
        for requirement, device in zip(variant.required_devices, devices, strict=False):
            if (amount := observed_mb.get(device, 0)) > peak.get(requirement, 0):
                peak[requirement] = amount
        if peak != before.peak_mb:
            self._put(key, msgspec.structs.replace(before, peak_mb=peak))

    def loaded(self, model: str, variant: Variant, seconds: float) -> None:
        """Take in how long a server took from spawn to ready."""
        key = (model, self._recipe(variant))
        before = self._entries.get(key, Entry(model=model, recipe=key[1]))
        average = before.load_s + NEWEST_WEIGHT * (seconds - before.load_s) if before.load_s else seconds
        self._put(key, msgspec.structs.replace(before, load_s=round(average, 3)))

    def load_s(self, model: str, variant: Variant) -> float | None:
        """Seconds from spawn to ready, a running average; None if it never got ready."""
        entry = self._entries.get((model, self._recipe(variant)))
        return entry.load_s if entry is not None and entry.load_s else None

    def load_estimate_s(self, model: str, variant: Variant) -> float:
        """What was measured, or else a guess: 2 s, and a second for each 1,000 MB.

        A process with its libraries needs the former to be up, and weights come from a common SSD at about 1 GB/s.
        """
        measured = self.load_s(model, variant)
        if measured is not None:
            return measured
        return 2.0 + sum(amount for _, amount in variant.needs()) / 1000

    def declare(self, declared: Declaration) -> None:
        """Let `all` speak of what is declared. To be called with each new declaration.

        The rest is kept for when it is declared again, as after the switch to another branch and back, for as long as
        there is room.
        """
        self._declared, self._recipes, self._all = {}, {}, None
        for name, model in declared.models.items():
            for variant in model.variants:
                if not variant.external:
                    key = (name, self._recipe(variant))
                    self._declared[key] = (*self._declared.get(key, ()), _unmeasured(name, variant))

    def renamed(self, old: str, new: str) -> None:
        """What is remembered of the model `old` is of the model `new` from now on. What both have counts together."""
        for entry in [entry for entry in self._entries.values() if entry.model == old and old != new]:
            del self._entries[(old, entry.recipe)]
            key = (new, entry.recipe)
            there = self._entries.get(key, Entry(model=new, recipe=entry.recipe))
            peak_mb = {
                requirement: max(found.peak_mb.get(requirement, 0) for found in (entry, there))
                for requirement in entry.peak_mb | there.peak_mb
            }
            self._put(key, msgspec.structs.replace(there, peak_mb=peak_mb, load_s=there.load_s or entry.load_s))

    def all(self) -> tuple[Measured, ...]:
        """What is known of each variant that the last `declare` found declared, as it is declared there."""
        if self._all is None:
            self._all = tuple(self._reports())
        return self._all

    async def save(self) -> None:
        """Put what has changed on disk. Failures are counted, the first in a row is logged."""
        if self._path is None or self._saved == self._changes:
            return
        file = _File(version=VERSION, variants=tuple(self._entries.values()))
        try:
            await asyncio.to_thread(self._write, self._path, msgspec.json.encode(file), self._changes)
        except OSError as error:
            self.failed += 1
            if not self._failing:
                log.error("%s cannot be written: %s; until it can, what is measured ends with me", self._path, error)
            self._failing = True
        else:
            self._failing = False

    def _recipe(self, variant: Variant) -> str:
        """As `recipe`, but hashed only once for a declaration: each round asks for each server."""
        known = self._recipes.get(id(variant))
        if known is None:
            known = self._recipes[id(variant)] = (variant, recipe(variant))
        return known[1]

    def _reports(self) -> Iterator[Measured]:
        for key, variants in self._declared.items():
            if (entry := self._entries.get(key)) is not None:
                for variant in variants:
                    yield msgspec.structs.replace(variant, peak_mb=entry.peak_mb, load_s=entry.load_s)

    def _write(self, path: Path, content: bytes, changes: int) -> None:
        with self._writing:
            if changes > self._saved:  # or else a later save was quicker
                durable.replace(path, content)
                self._saved = changes

    def _put(self, key: _Key, entry: Entry) -> None:
        self._entries.pop(key, None)
        self._entries[key] = entry
        if len(self._entries) > MOST_ENTRIES:
            del self._entries[
                next((key for key in self._entries if key not in self._declared), next(iter(self._entries)))
            ]
        self._all = None
        self._changes += 1


def recorded(folder: Path, declared: Declaration) -> tuple[Measured, ...]:
    """What a sidecar that does not run has left in its state directory; the file stays, whatever is in it.

    Raises OSError, and ValueError if it makes no sense.
    """
    found = Measurements(None)
    found._entries = _read(folder / FILE)
    found.declare(declared)
    return found.all()


def recipe(variant: Variant) -> str:
    """Like `Variant.fingerprint`, but for the memory: the same for as long as the same thing runs in the same way."""
    runs = [variant.required_devices, variant.command, sorted(variant.env.items()), variant.cwd]
    return hashlib.sha256(msgspec.json.encode(runs)).hexdigest()[:16]


def _unmeasured(model: str, variant: Variant) -> Measured:
    return Measured(
        model=model, variant=variant.name, fingerprint=variant.fingerprint(), declared_mb=dict(variant.needs())
    )


def _read(path: Path) -> dict[_Key, Entry]:
    """Raises OSError, and ValueError with the reason why it makes no sense."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        return {}
    if len(content) > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES // 2**20} MiB")
    found = msgspec.json.decode(content, type=_File)
    if found.version != VERSION:
        raise ValueError(f"it is of version {found.version}, not {VERSION}")
    return {(entry.model, entry.recipe): entry for entry in found.variants}


def _read_or_put_aside(path: Path) -> dict[_Key, Entry]:
    try:
        return _read(path)
    except OSError as error:
        log.error("%s cannot be read (%s); measured anew", path, error)
    except ValueError as error:  # msgspec's errors are ValueErrors, too
        aside = path.with_name(path.name + ".unreadable")
        log.error("%s cannot be read (%s); kept as %s, and measured anew", path, error, aside)
        try:
            path.replace(aside)
        except OSError as failed:
            log.error("%s cannot be put aside: %s", path, failed)
    return {}
