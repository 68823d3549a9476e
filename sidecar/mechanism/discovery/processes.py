"""How a server that runs was started, and what it holds, by /proc and what devices tell of their processes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec

from sidecar.mechanism import procfs
from sidecar.mechanism.family import MARKER
from sidecar.mechanism.procfs import PROC, Process

# What engines read from their environment. All else is of whoever started them: the session, the shell, the machine.
_ENGINES_OWN = re.compile(
    r"(CUDA|HIP|ROCR|HSA|NCCL|VLLM|SGL|SGLANG|LLAMA|GGML|OLLAMA|HF|HUGGING_?FACE|TRANSFORMERS|TORCH|PYTORCH|TRITON|OMP|MKL"
    r"|FLASHINFER|TOKENIZERS|MODEL|WHISPER|INFINITY)_?[A-Z0-9_]*|LD_LIBRARY_PATH|API_KEY"
)
_NO_SERVERS = frozenset(
    """
    sshd postgres redis-server valkey-server mysqld mariadbd mongod memcached cupsd dnsmasq systemd-resolve rpcbind
    master exim4 chronyd containerd dockerd beam.smp
    """.split()  # noqa: SIM905 - a list of words is read more easily than a column of quotes
)

Gpus = Mapping[int, Mapping[str, int]]  # pid to device, as `nvidia:0`, to MB


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A server's process. why: its command is not known, "" if it is. private_mb: of it and of all that it has started.

    devices: MB by device, where devices tell of processes. ours: a sidecar has started it.
    """

    pid: int = 0
    command: tuple[str, ...] = ()
    env: dict[str, str] = {}
    cwd: str = ""
    private_mb: int = 0
    devices: dict[str, int] = {}
    ours: bool = False
    why: str = ""


def serves_no_models(pids: Iterable[int]) -> bool:
    """Whether these are programs that are known to be something else, and would log what they cannot read."""
    names = [_text(pid, "comm").strip() for pid in pids]
    return bool(names) and all(name in _NO_SERVERS for name in names)


def held(pids: Iterable[int], gpus: Gpus) -> Held:
    """The process that listens: the oldest, if others have inherited the socket. Reads all of /proc."""
    holders = [one for pid in pids if (one := procfs.process(pid)) is not None]
    if not holders:
        return Held(why="whose process it is cannot be seen: it is another user's, or in a container")
    leader = min(holders, key=lambda one: one.started)
    family = _family(leader)
    devices: dict[str, int] = {}
    for pid in family:
        for device, amount in gpus.get(pid, {}).items():
            devices[device] = devices.get(device, 0) + amount
    command, why = _command(leader.pid)
    return Held(
        pid=leader.pid,
        command=command,
        env=_environment(leader.pid),
        cwd=_folder(leader.pid),
        private_mb=sum(procfs.private_mb(pid) for pid in family),
        devices=devices,
        ours=bool(procfs.variable(leader.pid, MARKER)),
        why=why,
    )


def _family(leader: Process) -> set[int]:
    """It and all that descends from it."""
    children: dict[int, list[int]] = {}
    for one in procfs.processes():
        children.setdefault(one.parent, []).append(one.pid)
    found, todo = {leader.pid}, [leader.pid]
    while todo:
        new = [pid for pid in children.get(todo.pop(), ()) if pid not in found]
        found.update(new)
        todo += new
    return found


def _command(pid: int) -> tuple[tuple[str, ...], str]:
    """Its argv, and why it cannot be had. A title that was put in its place (setproctitle) is no command."""
    words = _text(pid, "cmdline").rstrip("\0").split("\0")
    if not words[0]:
        return (), "its command line cannot be read"
    if " " in words[0] or "::" in words[0] or words[0].endswith(":"):
        return (), f'it has put a title in the place of its command line ("{words[0][:60]}")'
    return tuple(words), ""


def _environment(pid: int) -> dict[str, str]:
    pairs = (entry.partition("=") for entry in _text(pid, "environ").split("\0"))
    return {name: value for name, _, value in pairs if value and _ENGINES_OWN.fullmatch(name)}


def _folder(pid: int) -> str:
    try:
        return str((PROC / str(pid) / "cwd").readlink())
    except OSError:
        return ""


def _text(pid: int, name: str) -> str:
    try:
        return (PROC / str(pid) / name).read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""  # gone, or another user's
