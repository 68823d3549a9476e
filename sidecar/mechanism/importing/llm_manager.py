"""LLM-Manager (https://github.com/lingyezhixing/LLM-Manager), by its plugin guide and its config.json and config.yaml.

Models stand beside `program`, as in the guide, or below `Local-Models`; in its first form, each has one script and
`gpu_mem_mb` in place of several ways to run it. Its servers are started by scripts, which
listen on the port that the configuration names; here the sidecar chooses the port. A script that does no more than set
variables and run one command becomes that command.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from sidecar.mechanism.importing import commands, managed, scripts, skeletons
from sidecar.mechanism.importing.account import Account, At, each
from sidecar.mechanism.importing.commands import Command
from sidecar.mechanism.importing.draft import Draft, Imported, Options
from sidecar.mechanism.importing.reading import Tree

MODES = {
    "chat": "chat",
    "base": "base",
    "embedding": "embedding",
    "reranker": "reranker",
}
_NO_PAGE = ("there is no such page", "`sidecar status` and `sidecar top` show what there is")
PROGRAM_LEFT: dict[str, tuple[str, str]] = {
    "webui_host": _NO_PAGE,
    "webui_port": _NO_PAGE,
    "webui_backend_host": _NO_PAGE,
    "webui_backend_port": _NO_PAGE,
    "Disable_GPU_monitoring": ("devices are always watched: it is how servers are placed", ""),
    "log_level": ("the log of the sidecar is its own", ""),
    "device_plugin_dir": ("plugins of its kind do not load here", "port them into plugins/: examples/README.md"),
    "interface_plugin_dir": ("plugins of its kind do not load here", "port them into plugins/: examples/README.md"),
    "claude_settings_path": ("settings of other programs are left alone", ""),
}
LEFT: dict[str, tuple[str, str]] = {
    "wake_on_lan": ("machines are not woken", "declare what runs there as url variants"),
    "claude_configs": ("settings of other programs are left alone", ""),
    "Remote-Models": ("LLM-Manager itself does not read it", "declare them as url variants"),
}
_SECTIONS = ("program", "Local-Models", *LEFT)
_FIRST_FORM = "gpu_mem_mb"
_OWN_KEYS = ("aliases", "mode", "port", "auto_start")
_NVIDIA = re.compile(r"rtx|gtx|tesla|quadro|geforce|titan|nvidia|^[avhplt]\d{1,3}\b|^[avhplt]\d{2,4}$", re.IGNORECASE)
_AMD = re.compile(r"radeon|\brx ?\d{4}|\bmi\d{2,3}|780m|890m|amd", re.IGNORECASE)


def convert(tree: Tree, options: Options) -> Imported:
    """The manifests. Raises InputError where the configuration is none."""
    return _Import(tree, options).run()


class _Scheme(msgspec.Struct, frozen=True):
    """A way to run a model: the model's name and port, and where the way stands."""

    model: str
    port: At | None
    at: At


class _Import:
    def __init__(self, tree: Tree, options: Options) -> None:
        account = Account(tree)
        self.root = account.root()
        self.draft = Draft("LLM-Manager", account, options)
        self.idle = "0s"

    def run(self) -> Imported:
        self._program()
        for key, (why, do) in LEFT.items():
            if at := self.root.get(key):
                at.left(why, do)
        self.draft.expect(at.name for at in self._models())
        named = [(at, self._named(at)) for at in self._models()]
        for at, name in named:
            self._model(at, name)
        return self.draft.imported()

    # --- the whole ------------------------------------------------------------------------------------------------

    def _program(self) -> None:
        program = self.root.get("program")
        if program is None:
            return
        for key, (why, do) in PROGRAM_LEFT.items():
            if at := program.get(key):
                at.left(why, do)
        self._listen(program)
        if at := program.get("alive_time"):
            self.idle = at.duration("m")
            at.changed("models.*.idle_timeout", "in minutes; 0 is never")
        for at in each(program.get("TokenTracker")):
            if at.text().lower() in MODES:
                self.draft.chain("usage")
                at.changed("sidecar.chain", "the plugin `usage` counts the tokens of every mode")
            else:
                at.left("the plugin `usage` counts what servers tell of OpenAI's tokens")

    def _listen(self, program: At) -> None:
        host, port = (program.get(key) or program.get(f"openai_{key}") for key in ("host", "port"))
        number = port.port() if port else 8080
        self.draft.settings["listen"] = f"127.0.0.1:{number}"
        if port:
            port.carried("sidecar.listen")
        if host and host.host() not in ("127.0.0.1", "localhost"):
            host.left(
                "it let in everybody who could reach it; the sidecar listens on this machine alone until it has keys",
                f'add [plugins.keys] and put it into chain, then say listen = "{host.host()}:{number}"',
            )
            self.draft.note(
                "LLM-Manager let in other machines without keys: chain needs one before listen changes.",
                "sidecar.toml",
            )
        elif host:
            host.carried("sidecar.listen")

    def _models(self) -> Iterator[At]:
        if local := self.root.get("Local-Models"):
            yield from local.items()
        yield from (at for at in self.root.items() if at.name not in _SECTIONS and _runs(at))

    # --- models ---------------------------------------------------------------------------------------------------

    def _named(self, at: At) -> str:
        mode = at.get("mode")
        wanted = mode.text() if mode else "Chat"
        known = MODES.get(wanted.lower())
        name, _ = self.draft.model(at.name, [known or skeletons.interface(self.draft, wanted)])
        if mode and known:
            mode.changed("mode", "in the sidecar's word for it")
        elif mode:
            mode.changed("mode", "a mode of one's own", "port its plugin: what stands in plugins/ is but its name")
        return name

    def _model(self, at: At, name: str) -> None:
        table = self.draft.models[name]
        for alias in each(at.get("aliases")):
            if self.draft.alias(name, alias.text()):
                alias.carried(f"models.{name}.aliases")
            else:
                alias.left("that name is another model's", "names and aliases stand for one model each")
        if entry := at.get("auto_start"):
            table["auto_start"] = entry.flag()
            entry.carried(f"models.{name}.auto_start")
        table["idle_timeout"] = self.idle
        port = at.get("port")
        schemes = [_Scheme(name, port, item) for item in at.items() if item.name not in _OWN_KEYS and item.is_table]
        if _FIRST_FORM in at.value:
            schemes = [_Scheme(name, port, at)]
        if not schemes:
            raise at.wrong("at least one way to run it: a table with required_devices, script_path and memory_mb")
        if port:
            port.left("the sidecar chooses a port of its own", "let scripts listen on the one that they are given")
        table["variants"] = [self._variant(scheme) for scheme in schemes]

    def _variant(self, scheme: _Scheme) -> dict[str, Any]:
        at = scheme.at
        devices, script = at.get("required_devices"), at.get("script_path") or at.get("bat_path")
        if script is None or (devices is None and _FIRST_FORM not in at.value):
            raise at.wrong("required_devices, and a script_path or bat_path")
        if devices is None:
            required, memory = self._by_memory(at.get(_FIRST_FORM))
        else:
            required = [self._device(device) for device in devices.each()]
            if not required:
                raise devices.wrong("at least one device")
            memory = self._memory(at.get("memory_mb"), required)
        command, env, cwd = self._command(scheme, script)
        server = managed.Server(
            model=scheme.model, at=script, command=command, env=env, folder=Path(self.draft.options.folder)
        )
        made = managed.variant(self.draft, server, placed=(required, memory))
        name = {"name": at.name} if devices else {}
        return {**name, **made, **({"cwd": cwd} if cwd else {})}

    def _by_memory(self, at: At | None) -> tuple[list[str], int | dict[str, int] | None]:
        """The devices and their memory, in the first form: a GPU of 0 MB is not used, and without any it is the CPU."""
        found: dict[str, int] = {}
        for entry in at.items() if at else ():
            if entry.whole() > 0:
                found[self._known(entry.name)] = entry.whole()
                entry.carried("variants.memory_mb")
            else:
                entry.left("0 MB: the model does not use that device")
        if at and not found:
            at.changed("variants.required_devices", "of no GPU: it runs on the CPU")
        return (list(found), found) if found else (["cpu"], None)

    def _memory(self, at: At | None, required: list[str]) -> int | dict[str, int] | None:
        if at is None:
            return None
        if not at.is_table:
            if at.whole() <= 0:
                at.left("memory is never free", "see what is guessed in its place")
                return None
            at.carried("variants.memory_mb")
            return at.whole()
        found = {}
        for entry in at.items():
            device = self._known(entry.name)
            if device not in required:
                entry.left("it is not among required_devices")
                continue
            found[device] = max(1, entry.whole())
            if entry.whole() > 0:
                entry.carried("variants.memory_mb")
            else:
                entry.changed("variants.memory_mb", "1: a required device is never free")
        return found

    def _device(self, at: At) -> str:
        """The device's class or name here."""
        device = self._known(at.text())
        if device in self.draft.devices:
            at.carried(f"devices.{device}")
        elif device == "cpu":
            at.changed("variants.required_devices", "the class of RAM")
        else:
            do = "port its plugin: what stands in plugins/ knows of none"
            at.changed("variants.required_devices", "a class of one's own", do)
        return device

    def _known(self, there: str) -> str:
        """The same by its name there; declares it, if it is not yet."""
        if there.lower() == "cpu":
            return "cpu"
        if kind := "nvidia" if _NVIDIA.search(there) else "amd" if _AMD.search(there) else "":
            self.draft.devices.setdefault(there, {"match": {"class": kind, "name": f"*{there.upper()}*"}})
            self.draft.note("devices are matched by parts of their names: see `sidecar devices`", "devices.toml")
            return there
        return skeletons.device(self.draft, there)

    def _command(self, scheme: _Scheme, at: At) -> tuple[Command, dict[str, str], str]:
        """The command, its variables and its folder."""
        path = at.text().replace("\\", "/")
        found = scripts.read(Path(self.draft.options.folder) / path)
        if found is not None:
            placed = commands.with_port(found.command, scheme.port.port() if scheme.port else None)
            if placed is not None:
                if scheme.port:
                    scheme.port.changed("variants.command", "{port} stands where it stood in the script")
                at.changed("variants.command", "the one command of that script, with its variables")
                return placed, found.env, found.cwd
        file = path if "/" in path else f"./{path}"
        self.draft.comment(
            scheme.model,
            f"CHECK: {path} must listen on the port that it is given: as --port PORT, and in the variable PORT.",
        )
        at.changed(
            "variants.command",
            "the script, with the port behind it",
            "let it listen on the port that it is given, instead of its own"
            + ("; a batch file needs Windows" if path.lower().endswith((".bat", ".cmd")) else ""),
        )
        return Command((file, "--port", commands.PORT)), {"PORT": commands.PORT}, ""


def _runs(at: At) -> bool:
    """Whether it is a model: it has a way to run."""
    return at.is_table and (
        _FIRST_FORM in at.value or any(item.is_table and "required_devices" in item.value for item in at.items())
    )
