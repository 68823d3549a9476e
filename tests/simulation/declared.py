"""The manifests of a simulation: what operators declare, how they edit it, well and badly, and how it comes in."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import msgspec

from plugin_sdk import Device as DevicePlugin
from plugin_sdk import DeviceProcess, DeviceStatus, Duration
from sidecar.builtin.interfaces import Chat
from sidecar.core.manifest import Declaration, DeviceDeclaration, DeviceMatch, Model, Problem, Settings, Variant
from sidecar.mechanism.loader import Loaded
from sidecar.mechanism.source import SourceError
from tests.simulation.world import Gpu, World
from tests.support import catalog, plugin

EXTERNAL_URL = "http://127.0.0.1:9000"
FIRST_PORT, LAST_PORT = 41000, 41011

KINDS = (
    *("nothing", "command", "command", "settings", "memory", "remove", "add", "rename", "headroom", "cap"),
    *("break", "break_all", "unreadable", "mend"),
)


class VirtualDevices(DevicePlugin):
    """Says what there is of one class, as far as it can be read."""

    world: World

    async def probe(self) -> list[DeviceStatus]:
        delay_s = max((one.delay_s for one in self._mine()), default=0.0)
        if delay_s:
            await asyncio.sleep(delay_s)
        return [self._status(one) for one in self._mine() if not one.absent]

    def _mine(self) -> list[Gpu]:
        return [one for one in self.world.devices.values() if one.device_class == self.provides]

    def _status(self, one: Gpu) -> DeviceStatus:
        if one.problem:
            return DeviceStatus(id=one.id, index=one.index, total_mb=one.total_mb, problem=one.problem)
        now = self.world.now
        mine = [group.by_pid(one.id, now) for group in self.world.groups.values() if one.id in group.peak]
        used = sum(sum(pids.values()) for pids in mine) + sum(one.foreign.values())
        known = {pid: amount for pids in (*mine, one.foreign) for pid, amount in pids.items() if amount}
        shown = {} if one.hides_pids or one.host else known
        return DeviceStatus(
            id=one.id,
            index=one.index,
            total_mb=one.total_mb,
            free_mb=max(0, one.total_mb - used),
            processes=tuple(DeviceProcess(pid, amount) for pid, amount in shown.items()),
        )


def plugins_of(world: World) -> Any:
    """The catalog: two device classes and one mode."""
    gpu = type("Gpus", (VirtualDevices,), {"provides": "gpu", "world": world})
    ram = type("Ram", (VirtualDevices,), {"provides": "cpu", "host_memory": True, "world": world})
    return catalog(plugin(gpu, "gpu"), plugin(ram, "cpu"), plugin(Chat, "chat"))


def devices() -> dict[str, Gpu]:
    """Two GPUs of different size, and RAM."""
    return {
        "gpu-0": Gpu(id="gpu-0", device_class="gpu", index=0, total_mb=24_000),
        "gpu-1": Gpu(id="gpu-1", device_class="gpu", index=1, total_mb=16_000),
        "cpu": Gpu(id="cpu", device_class="cpu", index=0, total_mb=48_000, host=True),
    }


def variant(name: str, needs: dict[str, int] | tuple[str, ...], amount: int = 0, **more: Any) -> Variant:
    """One way to run a model; its command tells the world what it takes."""
    required = tuple(needs)
    amounts = [str(needs[one] if isinstance(needs, dict) else amount) for one in required]
    memory: int | dict[str, int] = dict(needs) if isinstance(needs, dict) else amount
    command = ("serve", "{port}", "{devices.uuid}", ",".join(amounts), name, "0")
    return Variant(name=name, required_devices=required, memory_mb=memory, command=command, **more)


def models(random: Random) -> dict[str, Model]:
    """Some that fit together, some that do not, one that never does, and every kind of special case."""
    small = variant("small", {"gpu": random.choice((3000, 5000))})
    medium = variant("medium", {"gpu": random.choice((8000, 11_000))})
    large = variant("large", {"gpu": 15_000}, **_if(random, 0.3, exclusive_start=True))
    huge = variant("huge", ("gpu", "gpu"), 12_000)
    either = (variant("gpu", {"gpu": 9000}), variant("ram", {"cpu": 20_000}))
    named = variant("named", {"first": 10_000})
    both = variant("both", {"gpu": 4000, "cpu": 6000})
    never = variant("never", {"gpu": 99_000})
    outside = Variant(name="theirs", url=EXTERNAL_URL)
    kinds: dict[str, tuple[Variant, ...]] = {
        "small": (small,), "medium": (medium,), "large": (large,), "huge": (huge,), "either": either,
        "named": (named,), "both": (both,), "never": (never,), "outside": (outside,),
    }  # fmt: skip
    chosen = ["large", *random.sample(sorted(kinds.keys() - {"large"}), random.randint(3, 6))]
    found = {name: _model(random, kinds[name]) for name in chosen}
    if random.random() < 0.5:
        found["pinned"] = _model(random, (variant("pinned", {"gpu": 2000}),), pinned=True)
    return found


def _model(random: Random, variants: tuple[Variant, ...], **more: Any) -> Model:
    timed = tuple(
        msgspec.structs.replace(
            one,
            load_timeout=Duration(random.choice((60, 120))),
            stop_timeout=Duration(random.choice((1, 10))),
        )
        for one in variants
    )
    return Model(
        variants=timed,
        mode="chat",
        auto_start=random.random() < 0.2,
        idle_timeout=Duration(random.choice((0, 60, 300, 600))),
        queue_timeout=Duration(random.choice((20, 120, 600, 600))),
        max_queue=random.choice((2, 256)),
        max_wait=Duration(random.choice((5, 30))),
        min_residency=Duration(random.choice((0, 10, 30))),
        priority=random.choice((0, 0, 0, 1)),
        **more,
    )


def _if(random: Random, chance: float, **more: Any) -> dict[str, Any]:
    return more if random.random() < chance else {}


class Manifests:
    """What is declared, and what of it is faulty just now. good: every model as it would be without faults."""

    def __init__(self, world: World) -> None:
        random = world.random
        self._world = world
        self._catalog = plugins_of(world)
        self._edits = 0
        self.settings = Settings(
            ports=f"{FIRST_PORT}-{LAST_PORT}", headroom_mb=256, on_exit=random.choice(("stop", "keep"))
        )
        caps = {"memory_mb": 14_000} if random.random() < 0.3 else {}
        self.devices = {"first": DeviceDeclaration(match=DeviceMatch(device_class="gpu", index=0), **caps)}
        self.good = models(random)
        self.expected: dict[str, Model] = {}  # what ought to be in force
        self._settings_seen, self._devices_seen = self.settings, self.devices
        self.faulty: set[str] = set()  # models whose text is wrong
        self.emptied = self.unreadable = False
        self.changed = asyncio.Event()

    def in_force(self) -> Loaded | None:
        """What the sidecar before has written down of what was in force; None if there was none."""
        if not self.expected:
            return None
        files = {f"models.{name}": f"{name}.toml" for name in self.expected}
        models = dict(sorted(self.expected.items()))
        declaration = Declaration(settings=self._settings_seen, devices=self._devices_seen, models=models, files=files)
        return Loaded(declaration, self._catalog, (), usable=True)

    def loaded(self) -> Loaded:
        """The revision as the loader would give it. What is faulty in it, or all gone, stays as it was last good."""
        self._edits += 1
        shown = {} if self.emptied else {name: one for name, one in self.good.items() if name not in self.faulty}
        if not self.emptied:
            self.expected = {name: one for name, one in self.expected.items() if name in self.faulty} | shown
            self._settings_seen, self._devices_seen = self.settings, self.devices
        declaration = Declaration(
            revision=f"{self._edits:012x}",
            settings=self.settings,
            devices=self.devices,
            models=dict(sorted(shown.items())),
            files={f"models.{name}": f"{name}.toml" for name in shown},
        )
        problems = tuple(
            Problem(file=f"{name}.toml", line=1, message="wrong", subject=("models", name))
            for name in sorted(self.faulty)
        )
        return Loaded(declaration, self._catalog, () if self.emptied else problems, usable=True)

    def heal(self) -> None:
        """Put right whatever is wrong."""
        self.faulty.clear()
        self.emptied = self.unreadable = False
        self.changed.set()

    # --- edits --------------------------------------------------------------------------------------------------

    def edit(self, random: Random) -> str:
        """One edit; what it was."""
        kind = random.choice(KINDS)
        name = random.choice(sorted(self.good))
        told: str = getattr(self, f"_{kind}")(random, name)
        self.changed.set()
        return f"{kind} {told}"

    def _nothing(self, random: Random, name: str) -> str:
        return ""

    def _command(self, random: Random, name: str) -> str:
        """What a server must restart for."""
        model = self.good[name]
        tag = str(random.getrandbits(16))
        changed = tuple(
            msgspec.structs.replace(one, command=(*one.command[:-1], tag)) if one.command else one
            for one in model.variants
        )
        return self._put(name, msgspec.structs.replace(model, variants=changed))

    def _settings(self, random: Random, name: str) -> str:
        """What it need not restart for."""
        timeout = Duration(random.choice((0, 60, 300, 600)))
        priority = random.choice((0, 0, 1))
        return self._put(name, msgspec.structs.replace(self.good[name], idle_timeout=timeout, priority=priority))

    def _memory(self, random: Random, name: str) -> str:
        def grown(one: Variant) -> Variant:
            if one.external or not isinstance(one.memory_mb, dict):
                return one
            memory = {key: max(1000, amount + random.choice((-1000, 1000))) for key, amount in one.memory_mb.items()}
            amounts = ",".join(str(memory[key]) for key in one.required_devices)
            command = (*one.command[:3], amounts, *one.command[4:])
            return msgspec.structs.replace(one, memory_mb=memory, command=command)

        model = self.good[name]
        return self._put(name, msgspec.structs.replace(model, variants=tuple(map(grown, model.variants))))

    def _break(self, random: Random, name: str) -> str:
        self.faulty.add(name)
        return name

    def _break_all(self, random: Random, name: str) -> str:
        self.emptied = True
        return ""

    def _unreadable(self, random: Random, name: str) -> str:
        self.unreadable = True
        return ""

    def _mend(self, random: Random, name: str) -> str:
        self.heal()
        return ""

    def _remove(self, random: Random, name: str) -> str:
        if len(self.good) > 3 and not self.emptied:
            self._drop(name)
        return name

    def _add(self, random: Random, name: str) -> str:
        new = f"new{self._edits}"
        if len(self.good) < 9:
            self._put(new, _model(random, (variant(new, {"gpu": random.choice((2000, 6000))}),)))
        return new

    def _rename(self, random: Random, name: str) -> str:
        new = f"{name.partition('~')[0]}~{self._edits}"
        if not self.emptied and name not in self.faulty:
            model = self.good[name]
            self._drop(name)
            self._put(new, model)
        return f"{name} to {new}"

    def _headroom(self, random: Random, name: str) -> str:
        self.settings = msgspec.structs.replace(self.settings, headroom_mb=random.choice((0, 256, 1024)))
        return str(self.settings.headroom_mb)

    def _cap(self, random: Random, name: str) -> str:
        cap = random.choice((None, 12_000, 20_000))
        self.devices = {"first": msgspec.structs.replace(self.devices["first"], memory_mb=cap)}
        return str(cap)

    def make_patient(self, names: list[str], queue_s: float) -> None:
        """Let callers of these models wait for long."""
        for name in names:
            self._put(name, msgspec.structs.replace(self.good[name], queue_timeout=Duration(queue_s)))
        self.changed.set()

    def _put(self, name: str, model: Model) -> str:
        """A text that is right again is no longer wrong."""
        self.faulty.discard(name)
        self.emptied = False
        self.good[name] = model
        return name

    def _drop(self, name: str) -> None:
        del self.good[name]
        self.faulty.discard(name)


class VirtualSource:
    """The manifests as the sidecar is told of them."""

    def __init__(self, manifests: Manifests) -> None:
        self._manifests = manifests

    async def changed(self, look_now: asyncio.Event) -> None:
        await self._manifests.changed.wait()
        self._manifests.changed.clear()

    async def close(self) -> None:
        """Nothing to let go of."""

    async def read(self, before: Declaration, *, anew: bool = False) -> Loaded | None:
        if self._manifests.unreadable:
            raise SourceError("manifests: no such directory")
        return self._manifests.loaded()
