"""What can happen: to the callers, the devices, the servers, the manifests, the machine, and the sidecar itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sidecar.control.leases import RefusedError
from sidecar.mechanism.runner import Exit
from tests.simulation.declared import EXTERNAL_URL, FIRST_PORT, LAST_PORT
from tests.simulation.traffic import Request, call

if TYPE_CHECKING:  # it calls these
    from tests.simulation.life import Life
    from tests.simulation.sidecar import Sidecar


# --- callers ------------------------------------------------------------------------------------------------------


def _request(life: Life, model: str) -> Request:
    random = life.random
    hold_s = random.choice((0.1, 1.0, 20.0)) * random.random()
    patience_s = random.choice((1e9, 1e9, 1e9, 0.0, 1.0, 30.0))
    return Request(model=model, hold_s=hold_s, patience_s=patience_s * random.random() if patience_s < 1e9 else 1e9)


def burst(life: Life) -> None:
    """Several callers want one model at once."""
    model = life.random.choice(sorted(life.manifests.good))
    for _ in range(life.random.choice((1, 2, 5))):
        call(life.sidecar, _request(life, model), life.tally)


def rivals(life: Life) -> None:
    """Callers of models that do not fit together, over a minute."""
    for _ in range(life.random.randint(3, 8)):
        request = _request(life, life.random.choice(sorted(life.manifests.good)))
        life.world.loop.call_later(life.random.random() * 60, lambda one: call(life.sidecar, one, life.tally), request)


# --- people -------------------------------------------------------------------------------------------------------


def operator(life: Life) -> None:
    """Somebody starts or stops a model, gently or not."""
    sidecar = life.sidecar
    if sidecar is None or not sidecar.recovered or sidecar.machine.dead:
        return
    name = life.random.choice(sorted(sidecar.controller.declaration.models))
    act = life.random.choice((_start, _stop, _force))
    sidecar.task(act(life, sidecar, name), f"operator: {name}")


async def _start(life: Life, sidecar: Sidecar, name: str) -> None:
    life.world.say(f"somebody starts {name}")
    try:
        await sidecar.controller.start(name)
    except RefusedError as error:
        life.world.say(f"{name} is not started: {error}")


async def _stop(life: Life, sidecar: Sidecar, name: str) -> None:
    life.world.say(f"somebody stops {name}")
    await sidecar.controller.stop(name, force=False)


async def _force(life: Life, sidecar: Sidecar, name: str) -> None:
    life.world.say(f"somebody stops {name} at once")
    server = sidecar.controller.fleet.server_of(name)
    if server is not None:
        life.audit.forced.add(server.id)
    await sidecar.controller.stop(name, force=True)


def edit(life: Life) -> None:
    """Somebody edits the manifests, well or badly."""
    life.audit.quiet_since = life.world.now
    life.world.say(f"edit: {life.manifests.edit(life.random)}")
    sidecar = life.sidecar

    def look() -> None:
        if sidecar is not None and sidecar is life.sidecar and sidecar.recovered and not sidecar.machine.dead:
            life.audit.declared(sidecar)

    life.world.loop.call_later(5.0, look)


# --- devices ------------------------------------------------------------------------------------------------------


def foreign(life: Life) -> None:
    """Another program takes memory, or gives it back."""
    device = life.world.devices[life.random.choice(sorted(life.world.devices))]
    if device.foreign and life.random.random() < 0.5:
        device.foreign.pop(next(iter(device.foreign)))
        life.world.say(f"{device.id}: a foreign process has ended")
    else:
        life.world.foreigner(device.id, life.random.choice((1000, 5000, 15_000)))


def device(life: Life) -> None:
    """A device is lost, comes back, cannot be read, is slow, or hides who uses it."""
    one = life.world.devices[life.random.choice(sorted(life.world.devices))]
    kind = life.random.choice(("lost", "unreadable", "slow", "hiding", "well"))
    one.absent = kind == "lost"
    one.problem = "it has fallen off the bus" if kind == "unreadable" else ""
    one.delay_s = life.random.choice((0.7, 3.0, 60.0)) if kind == "slow" else 0.0
    one.hides_pids = kind == "hiding"
    life.world.say(f"{one.id} is {kind}")


# --- servers, and the machine -------------------------------------------------------------------------------------


def crash(life: Life) -> None:
    """A server ends by itself."""
    if life.world.groups:
        life.world.crash(life.world.groups[life.random.choice(sorted(life.world.groups))], Exit(None, "SIGSEGV"))


def collision(life: Life) -> None:
    """A server, or its child, ends in the very moment in which somebody stops it."""
    sidecar = life.sidecar
    if sidecar is None or not sidecar.recovered or sidecar.machine.dead or not life.world.groups:
        return
    group = max(life.world.groups.values(), key=lambda one: (len(one.pids), one.server))  # best one with a child
    server = sidecar.controller.fleet.servers.get(group.server)
    if server is None:
        return
    sidecar.task(_force(life, sidecar, server.model), f"operator: {server.model}")
    delay_s = 0.1 * life.random.random()
    if len(group.pids) > 1:
        life.world.loop.call_later(delay_s, life.world.lose_child, group)
    else:
        life.world.loop.call_later(delay_s, life.world.crash, group, Exit(1))


def external(life: Life) -> None:
    """A server of somebody else goes or comes."""
    life.world.healthy[EXTERNAL_URL] = not life.world.healthy.get(EXTERNAL_URL, False)


def port(life: Life) -> None:
    """Another program listens on a port of ours, or leaves it."""
    number = life.random.randint(FIRST_PORT, LAST_PORT)
    if number in life.world.listeners:
        life.world.listeners.discard(number)
    elif not any(group.port == number and group.listening for group in life.world.groups.values()):
        life.world.listeners.add(number)


def disk(life: Life) -> None:
    """The disk is full, or it has room again."""
    life.world.disk_full = not life.world.disk_full
    life.world.say(f"the disk is {'full' if life.world.disk_full else 'empty'}")


def clock(life: Life) -> None:
    """Somebody sets the clock."""
    life.world.unix_offset += life.random.choice((-86_400.0, -60.0, 3600.0))


# --- the sidecar --------------------------------------------------------------------------------------------------


def kill(life: Life) -> None:
    """SIGKILL, now or some steps from now."""
    if life.sidecar is None:
        return
    life.down_s = life.random.choice((0.1, 1.0, 60.0, 600.0)) * life.random.random()
    steps = life.random.choice((0, 0, 1, 2, 3, 5, 8, 13, 21))
    if steps:
        life.sidecar.machine.fuse = steps
    else:
        life.world.say("the sidecar is killed")
        life.sidecar.machine.dead = True
        life.sidecar.died.set()


def leave(life: Life) -> None:
    """SIGTERM; sometimes a second one."""
    sidecar = life.sidecar
    if sidecar is None or not sidecar.recovered or sidecar.machine.dead:
        return
    life.world.say("the sidecar is told to end")
    life.down_s = life.random.choice((0.1, 60.0)) * life.random.random()
    life.world.loop.create_task(sidecar.close())
    if life.random.random() < 0.3:
        life.world.loop.call_later(life.random.random() * 10, sidecar.controller.hurry.set)


def heal(life: Life) -> None:
    """Put right whatever is wrong with devices, ports, disk and manifests."""
    world = life.world
    for one in world.devices.values():
        one.absent, one.problem, one.delay_s, one.hides_pids = False, "", 0.0, False
    world.disk_full = False
    world.listeners.clear()
    life.manifests.heal()
    if life.sidecar is not None:
        life.sidecar.machine.fuse = None


Fault = Callable[["Life"], None]

CALM: tuple[Fault, ...] = (burst, burst, rivals, rivals)
ALL: tuple[Fault, ...] = (
    *(burst, burst, burst, rivals, rivals, operator, edit, edit),
    *(foreign, device, crash, collision, external, port, disk, clock, kill, leave),
)
