"""Manifests for what was found: url variants, which leave all as it is, or commands that the sidecar would start."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from sidecar.mechanism.discovery.asking import NEEDS_KEY, SIDECAR, Answer, Served
from sidecar.mechanism.discovery.processes import Held
from sidecar.mechanism.discovery.sockets import Listener
from sidecar.mechanism.importing import commands, managed
from sidecar.mechanism.importing.account import Account, At
from sidecar.mechanism.importing.commands import Command
from sidecar.mechanism.importing.draft import Draft, Imported, Options
from sidecar.mechanism.importing.reading import Tree

SOURCE = "what runs on this machine"
DEFAULT_PORT = 8080
_SPARE = 1.1  # of what was measured: it has not been asked for everything yet
_OF_ITS_OWN = ("llama.cpp", "vLLM", "SGLang")  # which speak all that text models can be asked
_SEEN = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_POOLING = ("--task", "--runner", "--convert")  # of vLLM


class Found(msgspec.Struct, frozen=True):
    """Somebody who listens."""

    listener: Listener
    answer: Answer
    held: Held


class Wanted(msgspec.Struct, frozen=True):
    """manage: offer commands. key: the variable with the key that servers ask for, "" if there is none."""

    options: Options
    manage: bool = False
    key: str = ""


def convert(found: Iterable[Found], wanted: Wanted) -> Imported:
    """The manifests, and what became of each server that was found."""
    found = list(found)
    account = Account(Tree(SOURCE, {one.listener.address: _tree(one) for one in found}))
    draft = Draft(SOURCE, account, wanted.options)
    offers = _Offers(draft, wanted)
    root = account.root()
    for one in found:
        if (at := root.get(one.listener.address)) is not None:
            offers.add(one, at)
    _listen(draft, found)
    if offers.managed:
        draft.note("stop the servers that run before the sidecar starts its own: until then their memory is others'")
    return draft.imported()


def _tree(one: Found) -> dict[str, Any]:
    """What is told of it, without what may hold a secret."""
    tree: dict[str, Any] = {"models": [model.id for model in one.answer.models]} if one.answer.models else {}
    tree["engine"] = one.answer.engine or "unknown"
    if one.held.pid:
        tree["process"] = one.held.pid
    return tree


class _Offers:
    """What is offered so far. managed: how many servers would be started."""

    def __init__(self, draft: Draft, wanted: Wanted) -> None:
        self.managed = 0
        self._draft = draft
        self._wanted = wanted
        self._names: dict[str, str] = {}  # of models that have url variants, by what servers call them

    def add(self, one: Found, at: At) -> None:
        answer = one.answer
        if one.held.ours or answer.why == SIDECAR:
            at.left("is a sidecar, or was started by one")
        elif answer.why:
            at.left(answer.why, _remedy(answer))
        else:
            self._engine(one, at)
            models = at.get("models")
            for model, place in zip(answer.models, models.each() if models else (), strict=True):
                self._model(one, model, place)
            if (process := at.get("process")) is not None and process.value:
                self._process(one, process)

    def _engine(self, one: Found, at: At) -> None:
        if engine := at.get("engine"):
            engine.changed("mode", f"what {one.answer.engine or 'a server that does not say what it is'} can be asked")

    def _model(self, one: Found, model: Served, at: At) -> None:
        modes = _modes(one, model)
        command = self._command(one) if self._wanted.manage and len(one.answer.models) == 1 else None
        wanted = _short(model.id)
        said = modes[0] if len(modes) == 1 else modes
        if command is None and (known := self._names.get(model.id)) and self._draft.models[known]["mode"] == said:
            self._another(known, one, model, at)
            return
        name, table = self._draft.model(wanted, modes)
        if wanted != model.id:
            self._draft.alias(name, model.id)
        table["variants"] = [self._started(name, one, command, at) if command else self._url(name, one, model)]
        if command is None:
            self._names.setdefault(model.id, name)
        else:
            self.managed += 1
        at.carried(f"models.{name}")

    def _another(self, name: str, one: Found, model: Served, at: At) -> None:
        """The same model on one more server."""
        table = self._draft.models[name]
        table["variants"].append(self._url(name, one, model))
        table["balance"] = "least_busy"
        at.carried(f"models.{name}.variants[{len(table['variants']) - 1}]")

    def _url(self, name: str, one: Found, model: Served) -> dict[str, Any]:
        variant: dict[str, Any] = {"url": one.listener.url}
        if model.id != name:
            variant["model_name"] = model.id
        if one.answer.keyed and self._wanted.key:
            self._draft.variables.setdefault(self._wanted.key, "the key that servers ask for")
            variant["api_key"] = {"env": self._wanted.key}
        return variant

    def _command(self, one: Found) -> Command | None:
        """Its command on a port that the sidecar gives; None if there is no telling."""
        if not one.held.command:
            return None
        return commands.with_port(Command(one.held.command), one.listener.port)

    def _started(self, name: str, one: Found, command: Command, at: At) -> dict[str, Any]:
        folder = Path(one.held.cwd or "/")
        env = {variable: value for variable, value in one.held.env.items() if variable not in _SEEN}  # as it was placed
        server = managed.Server(model=name, at=at, command=command, env=env, folder=folder)
        table = managed.variant(self._draft, server, _measured(one, command, self._wanted.options.device))
        if one.held.cwd not in ("", "/"):
            table["cwd"] = one.held.cwd
        if one.held.private_mb or one.held.devices:
            self._draft.comment(
                name, f"memory_mb is what it held when it was found, and a tenth more: {managed.MEASURE}."
            )
        return table

    def _process(self, one: Found, at: At) -> None:
        if not self._wanted.manage:
            at.changed("variants.url", "it goes on running, and is not touched", "--manage offers its command instead")
        elif len(one.answer.models) > 1:
            at.left("it serves several models, of which a command can be only one's: they are url variants")
        elif one.held.why:
            at.left(one.held.why, "write a command variant by hand")
        elif self._command(one) is None:
            why = f"its command does not say {one.listener.port}, so that the port cannot be given to it"
            at.left(why, "write a command variant by hand, with {port}")
        else:
            at.changed("variants.command", "it is started by the sidecar, on a port that it gives")


def _remedy(answer: Answer) -> str:
    if answer.why != NEEDS_KEY:
        return ""
    return "it takes another one" if answer.keyed else "name the variable that has it with --api-key-env"


def _measured(one: Found, command: Command, device: str) -> tuple[list[str], int | dict[str, int] | None]:
    """Devices and memory as they were seen: GPUs if it holds some, or else the machine's memory."""
    gpus = {name: amount for name, amount in one.held.devices.items() if amount > 0}
    if gpus:
        return [name.partition(":")[0] for name in sorted(gpus)], _spared(max(gpus.values()))
    kind = "cpu" if one.held.private_mb else commands.device_class(command, device)
    return [kind], _spared(one.held.private_mb) if one.held.private_mb else None


def _spared(amount_mb: int) -> int:
    return max(100, -(-int(amount_mb * _SPARE) // 100) * 100)


def _modes(one: Found, model: Served) -> list[str]:
    """As the server says, as its flags say, as its name says; in this order."""
    if model.modes:
        return list(model.modes)
    if one.held.command:
        command = Command(one.held.command)
        if (said := commands.modes(command)) not in (commands.TEXT_MODES, commands.SERVER_MODES):
            return said
        if command.after(*_POOLING) in ("embed", "embedding", "pooling"):
            return ["embedding"]
    by_name = commands.modes_by_name(model.id)
    return (
        list(commands.SERVER_MODES) if by_name == commands.TEXT_MODES and one.answer.engine in _OF_ITS_OWN else by_name
    )


def _short(name: str) -> str:
    """A file's name without folders and ending, where a server has no other; else the name itself."""
    return name.rpartition("/")[2].removesuffix(".gguf") or name if name.endswith(".gguf") or name[:1] == "/" else name


def _listen(draft: Draft, found: Iterable[Found]) -> None:
    """On the default port, or the next one: servers like to have it, too."""
    taken = {one.listener.port for one in found}
    if DEFAULT_PORT in taken and not draft.options.listen:
        port = next(port for port in range(DEFAULT_PORT + 1, 65536) if port not in taken)
        draft.settings["listen"] = f"127.0.0.1:{port}"
        draft.note(f"port {DEFAULT_PORT} is taken, so the sidecar listens on {port}", "sidecar.toml")
