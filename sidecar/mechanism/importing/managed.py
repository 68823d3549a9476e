"""Variants that the sidecar starts: a command line as it stood elsewhere, made into one of a manifest's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from sidecar.mechanism import placeholders
from sidecar.mechanism.importing.account import At
from sidecar.mechanism.importing.commands import Command, device_class, sizes_itself
from sidecar.mechanism.importing.draft import Draft, is_secret
from sidecar.mechanism.importing.memory import guess

MEASURE = "from its first start on what it takes is measured, and `sidecar calibrate --write` puts that in its place"

_GPU_LIST = re.compile(r"(GPU-[0-9a-fA-F-]+|MIG-[^,\s]+|\d+)(,\s*(GPU-[0-9a-fA-F-]+|MIG-[^,\s]+|\d+))*")
_NO_GPU = ("", "-1", "none", "NoDevFiles")
_CONTAINER_GPUS = re.compile(r"device=([\d,]+)")
_OWN_DEVICES = re.compile(r"CUDA(\d+)(?:,CUDA(\d+))*")
_FROM_ENVIRONMENT = re.compile(r"\{env\.(\w+)\}")
_CREDENTIALS = re.compile(r"://[^/@\s]*:[^/@\s]+@")
_NO_SECRET = re.compile(r"(?i)(file|path|dir|env|prefix|header)$")


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """A server to be started. at: where its command stands. devices: () = as the command tells."""

    model: str
    at: At
    command: Command
    env: dict[str, str] = {}
    folder: Path = Path()


def variant(
    draft: Draft, server: Server, placed: tuple[list[str], int | dict[str, int] | None] | None = None
) -> dict[str, Any]:
    """The variant's table. placed: required_devices and memory_mb, as far as they are known, not guessed."""
    command, env = server.command, dict(server.env)
    devices, command = (placed[0], command) if placed else _devices(draft, command, env)
    memory_mb = (placed[1] if placed else None) or _guessed(draft, server, len(devices))
    if isinstance(memory_mb, dict) and (unsaid := [name for name in devices if name not in memory_mb]):
        memory_mb |= dict.fromkeys(unsaid, _guessed(draft, server, len(devices)))
    table: dict[str, Any] = {
        "required_devices": devices,
        "memory_mb": memory_mb,
        "command": list(_words(draft, server, command.words)),
    }
    if _is_relative(command):
        table["cwd"] = str(server.folder)
        draft.comment(server.model, "Its paths are relative, hence cwd: where the configuration lay that it came from.")
    if kept := {name: _value(draft, server, name, value) for name, value in env.items()}:
        table["env"] = kept
    if key := _own_key(table["command"]):
        table["api_key"] = {"env": key}  # the server wants it, and clients' keys are not passed on
    if command.windows:
        draft.comment(server.model, "CHECK: its command is one of Windows.")
    if command.container:
        table["foreign_listener"] = True  # the port is published by the engine, which the command did not fork
        draft.comment(server.model, "A container engine publishes its port, hence foreign_listener.")
    if sizes_itself(command):
        table["exclusive_start"] = True
        draft.comment(server.model, "It sizes itself by the memory that is free, hence exclusive_start.")
    return table


def _own_key(words: list[str]) -> str:
    """The variable of the key that the server asks for, if it asks for one."""
    found = Command(tuple(words)).after("--api-key")
    match = _FROM_ENVIRONMENT.fullmatch(found)
    return match[1] if match else ""


def _is_relative(command: Command) -> bool:
    """Whether its program, or a file of weights, is meant from where it is started."""
    flags = ("-m", "--model", "--mmproj", "--model-draft", "-md")
    files = [name for flag in flags if (name := command.after(flag)).endswith((".gguf", ".bin"))]
    programs = [command.words[0]] if "/" in command.words[0] else []  # else it is looked for in PATH
    outside = command.windows or command.container
    return not outside and any(not path.startswith(("/", "~", "{")) for path in [*programs, *files])


def _guessed(draft: Draft, server: Server, devices: int) -> int:
    """MB for each device; that it is a guess is told in the model's file."""
    estimate = guess(server.command, server.folder)
    memory_mb = -(-estimate.memory_mb // devices)
    each = f", {memory_mb} on each of its devices" if devices > 1 else ""
    draft.comment(server.model, f"memory_mb is a guess, {estimate.how}{each}: {MEASURE}.")
    return memory_mb


def _devices(draft: Draft, command: Command, env: dict[str, str]) -> tuple[list[str], Command]:
    """Requirements, and the command on these devices. Takes CUDA_VISIBLE_DEVICES out: the sidecar sets it itself."""
    visible = env.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and tells_devices(visible):
        del env["CUDA_VISIBLE_DEVICES"]
        names = [name.strip() for name in visible.split(",")]
        numbered = [f"nvidia:{name}" if name.isdecimal() else name for name in names]
        return (["cpu"] if visible.strip() in _NO_GPU else numbered), command
    if command.container:
        for word in command.words:
            if match := _CONTAINER_GPUS.search(word):
                return [f"nvidia:{name}" for name in match[1].split(",") if name], command
    own = command.after("--device", "-dev")
    if _OWN_DEVICES.fullmatch(own):
        return _renumbered(command, own)
    kind = device_class(command, draft.options.device)
    return [kind] * _count(command), command


def tells_devices(visible: str) -> bool:
    """Whether a value of CUDA_VISIBLE_DEVICES says which GPUs, or none."""
    return visible.strip() in _NO_GPU or bool(_GPU_LIST.fullmatch(visible.strip()))


def _renumbered(command: Command, own: str) -> tuple[list[str], Command]:
    """llama.cpp counts the devices that it sees, and it sees only those that were reserved."""
    numbers = re.findall(r"\d+", own)
    seen = ",".join(f"CUDA{index}" for index in range(len(numbers)))
    words = tuple(seen if word == own else word.replace(f"={own}", f"={seen}") for word in command.words)
    return [f"nvidia:{number}" for number in numbers], msgspec.structs.replace(command, words=words)


def _count(command: Command) -> int:
    """How many devices it spreads over, as far as it tells."""
    if parallel := command.after("--tensor-parallel-size", "-tp", "--tp-size", "--tp"):
        return min(int(parallel), 64) if parallel.isdecimal() and int(parallel) else 1
    split = command.after("--tensor-split", "-ts")
    return max(1, len([part for part in re.split(r"[,/]", split) if part.strip(" 0.")]))


# --- what must not stand in a manifest as it is ---------------------------------------------------------------------


def _words(draft: Draft, server: Server, words: Iterable[str]) -> Iterator[str]:
    before = ""
    for position, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if _secret_flag(before) and not word.startswith("-"):
            yield _hidden(draft, server, word, before.lstrip("-"))
        elif equals and value and _secret_flag(flag):
            yield f"{flag}={_hidden(draft, server, value, flag.lstrip('-'))}"
        elif _CREDENTIALS.search(word):
            yield _hidden(draft, server, word, f"argument_{position}")
        else:
            yield _literal(draft, server, word, f"argument_{position}")
        before = word


def _value(draft: Draft, server: Server, name: str, value: str) -> str:
    if holds_secret(name, value):
        return _hidden(draft, server, value, name)
    return _literal(draft, server, value, name)


def holds_secret(name: str, value: str) -> bool:
    """Whether a variable of that name and value must not stand in a manifest."""
    secret = _secret_flag(name) or bool(_CREDENTIALS.search(value))
    return bool(value) and secret and not placeholders.names_in(value)


def _secret_flag(flag: str) -> bool:
    return is_secret(flag.lstrip("-")) and not _NO_SECRET.search(flag)


def _hidden(draft: Draft, server: Server, value: str, name: str) -> str:
    """A variable in place of a secret."""
    if placeholders.names_in(value):
        return value  # it comes from the environment already
    draft.note("secrets in commands and environments have become variables, which have to be set")
    return _variable(draft, server, value, name, "a secret")


def _literal(draft: Draft, server: Server, text: str, name: str) -> str:
    """A variable in place of a text that would be read as placeholders, such as a chat template."""
    try:
        placeholders.check(text)
    except placeholders.PlaceholderError:
        what = "text that holds {...}, which a manifest would take for placeholders,"
        return _variable(draft, server, text, name, what)
    return text


def _variable(draft: Draft, server: Server, text: str, name: str, what: str) -> str:
    wanted = name if is_secret(name) and "_" in name else f"{server.model}_{name}"
    return f"{{env.{draft.hide(text, wanted, f'{what} of the command of {server.model}')}}}"
