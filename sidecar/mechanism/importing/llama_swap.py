"""llama-swap: https://github.com/mostlygeek/llama-swap, by its config-schema.json and config.example.yaml."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from sidecar.mechanism.importing import commands, managed, remote
from sidecar.mechanism.importing.account import Account, At, each
from sidecar.mechanism.importing.commands import Command
from sidecar.mechanism.importing.draft import Draft, Imported, Options
from sidecar.mechanism.importing.llama_swap_groups import PROFILES, Several
from sidecar.mechanism.importing.macros import Macros
from sidecar.mechanism.importing.reading import Tree

LISTED = "/v1/models lists names alone"

LEFT: dict[str, tuple[str, str]] = {
    "logLevel": ("the log of the sidecar is its own", ""),
    "logTimeFormat": ("the log of the sidecar is its own", ""),
    "logToStdout": ("servers log into files in state_dir", ""),
    "metricsMaxInMemory": ("nothing is kept in memory for a page", "the plugin `usage` keeps each request in SQLite"),
    "captureBuffer": ("bodies are not recorded", ""),
    "store": ("it is made by another program", "the plugin `usage` keeps each request in SQLite"),
    "ui": ("it is about a page that is not there", ""),
    "performance": ("devices are always watched", ""),
    "includeAliasesInList": (LISTED, ""),
    "profiles": PROFILES,
    "selectors": ("a model is one model", "a route plugin can choose: examples/plugins/database_router"),
    "tailcat": ("the sidecar listens on one address", "put a tunnel in front of it"),
    "upstream": ("/upstream/ passes all that is asked for there", ""),
    "healthCheckInterval": ("a server that exits is noticed at once", ""),
}
MODEL_LEFT: dict[str, tuple[str, str]] = {
    "name": (LISTED, ""),
    "description": (LISTED, ""),
    "metadata": (LISTED, ""),
    "timeouts": ("connections have fixed limits of their own", "request_timeout in [sidecar] bounds whole requests"),
    "compat": ("WebSockets count as requests", ""),
}


_AS_GLOBAL = -1  # of a ttl
_SHORTEST_LOAD_S = 15


def convert(tree: Tree, options: Options) -> Imported:
    """The manifests. Raises InputError where the configuration is none."""
    return _Import(tree, options).run()


class _Group(msgspec.Struct, frozen=True):
    """A model as it is handled: where it stands, its name here, its table, and its macros."""

    at: At
    name: str
    macros: Macros


class _Import:
    def __init__(self, tree: Tree, options: Options) -> None:
        account = Account(tree)
        self.root = account.root()
        self.draft = Draft("llama-swap", account, options)
        self.macros = Macros.of(self.root.get("macros"))
        self.ids: dict[str, str] = {}  # the model's id there, to its name here
        self.global_ttl = "0s"

    def run(self) -> Imported:
        self._settings()
        self.draft.expect(at.name for at in self._models())
        models = [self._named(at) for at in self._models()]
        for model in models:
            self._model(model)
        self._peers()
        Several(self.root, self.draft, self.ids).run()
        self.macros.tell()
        self.draft.note(
            "llama-swap listens where its command line says (-listen): put that into `listen` of [sidecar]",
            "sidecar.toml",
        )
        return self.draft.imported()

    # --- the whole ------------------------------------------------------------------------------------------------

    def _settings(self) -> None:
        for key, (why, do) in LEFT.items():
            if at := self.root.get(key):
                at.left(why, do)
        for at in self._keys():
            text = at.text()
            match = re.fullmatch(r"\$\{env\.(\w+)\}", text)
            self.draft.key(at, f"key-{at.path[-1]}", match[1] if match else "")
        if (at := self.root.get("logRequests")) and at.flag():
            self.draft.chain("log")
            at.changed("sidecar.chain", "the plugin `log` writes a line for each request")
        elif at:
            at.changed("sidecar.chain", "requests are not logged unless a plugin does it")
        if at := self.root.get("startPort"):
            first = at.port()
            self.draft.settings["ports"] = f"{first}-{min(first + 999, 65535)}"
            at.changed("sidecar.ports", "a range, of which each server gets one that is free")
        if at := self.root.get("globalTTL"):
            self.global_ttl = at.duration()
            at.changed("models.*.idle_timeout", "for each model that has no ttl of its own")

    def _keys(self) -> Iterator[At]:
        if at := self.root.get("apiKeys"):
            yield from at.each()

    def _models(self) -> Iterator[At]:
        if at := self.root.get("models"):
            yield from at.items()

    def _named(self, at: At) -> _Group:
        macros = self.macros.within(at.get("macros"), at.name)
        command = at.get("cmd")
        if command is None:
            raise at.wrong("a cmd: the command that starts it")
        mode = self._mode(at, _split(command, macros))
        name, _ = self.draft.model(at.name, mode)
        self.ids[at.name] = name
        if name != at.name:
            self.draft.comment(name, f'It was called "{at.name}", which is no name for a model here, but an alias.')
        return _Group(at, name, macros)

    def _mode(self, at: At, command: Command) -> list[str]:
        capabilities = at.get("capabilities")
        if capabilities is None:
            return commands.modes(command)
        capabilities.left(LISTED)
        heard, made = ({item.text() for item in each(capabilities.get(key))} for key in ("in", "out"))
        reranker = capabilities.get("reranker")
        told = (
            ("reranker", reranker is not None and reranker.flag(), "reranker"),
            ("transcription", heard == {"audio"}, "in"),
            ("speech", made == {"audio"}, "out"),
            ("image", made == {"image"}, "out"),
        )
        for mode, so, key in told:
            if so and (entry := capabilities.get(key)):
                entry.changed("mode", "what a model can do is its mode")
                return [mode]
        return commands.modes(command)

    # --- models ---------------------------------------------------------------------------------------------------

    def _model(self, model: _Group) -> None:
        table = self.draft.models[model.name]
        for key, (why, do) in MODEL_LEFT.items():
            if at := model.at.get(key):
                at.left(why, do)
        self._aliases(model)
        self._times(model, table)
        self._filters(model, model.at.get("filters"), model.name)
        if (at := model.at.get("unlisted")) and at.flag():
            at.left("/v1/models lists all models that the caller may use", "give keys `models` that leave it out")
        elif at:
            at.changed("", "that is so here")
        if at := model.at.get("concurrencyLimit"):
            if (most := at.whole()) > 0:
                at.changed(remote.in_flight(self.draft, model.name, most), "more are refused with 429, as there")
            else:
                at.changed("", "there it stands for 10; here there is no limit, and the server queues requests")
        self._loading(model, table)
        variant = self._variant(model)
        if at := model.at.get("useModelName"):
            variant["model_name"] = model.macros.expand(at)
            at.carried("variants[0].model_name")
        table["variants"] = [variant]

    def _aliases(self, model: _Group) -> None:
        for at in each(model.at.get("aliases")):
            alias = at.get("id") if at.is_table else at
            if alias is None:
                raise at.wrong("an id")
            self._alias(model, alias, model.macros.expand(alias))
            for key in ("name", "unlisted"):
                if at.is_table and (entry := at.get(key)):
                    entry.left(LISTED)

    def _alias(self, model: _Group, at: At, alias: str) -> None:
        if self.draft.alias(model.name, alias):
            at.carried(f"models.{model.name}.aliases")
        else:
            at.left("that name is another model's", "names and aliases stand for one model each")

    def _times(self, model: _Group, table: dict[str, Any]) -> None:
        ttl = model.at.get("ttl")
        own = ttl is not None and ttl.number() != _AS_GLOBAL
        table["idle_timeout"] = ttl.duration() if ttl and own else self.global_ttl
        if ttl:
            ttl.changed("idle_timeout", "in seconds; 0 is never" if own else "-1 is what globalTTL says")

    def _loading(self, model: _Group, table: dict[str, Any]) -> None:
        own, general = model.at.get("sendLoadingState"), self.root.get("sendLoadingState")
        at = own or general
        if at and at.flag():
            table["loading_events"] = True
        for entry in (own, general):
            if entry:
                entry.changed(
                    "loading_events", "streams are told by comments in them, not as if the model were thinking"
                )

    def _filters(self, model: _Group, at: At | None, name: str) -> None:
        if at is None:
            return
        fields: dict[str, Any] = {}
        if (entry := at.get("setParams")) and entry.is_table:
            fields["set"] = {item.name: model.macros.filled(item) for item in entry.items() if item.name != "model"}
            entry.carried("plugins.params-*.config.set")
            _protected(entry)
        if entry := at.get("stripParams"):
            named = [word.strip() for word in model.macros.expand(entry).split(",")]
            taken = {field.casefold() for field in fields.get("set", ())} | {"model", ""}
            fields["strip"] = [word for word in dict.fromkeys(named) if word.casefold() not in taken]
            entry.carried("plugins.params-*.config.strip")
        if entry := at.get("setParamsByID"):
            for item in entry.items():
                alias = model.macros.expand_text(item, item.name)
                ours = alias == model.at.name or self.draft.alias(model.name, alias)
                item.left(
                    f'"{alias}" is an alias, but fields do not depend on the alias that was asked for'
                    if ours
                    else "that name is another model's",
                    "let a filter of your own do it: exchange.request.requested_model says which it was",
                )
        if fields := {key: value for key, value in fields.items() if value}:
            remote.params(self.draft, name, fields, model.at.name)

    def _variant(self, model: _Group) -> dict[str, Any]:
        at = model.at.get("cmd")
        assert at is not None  # noqa: S101 - it was there when the model got its name
        command = _split(at, model.macros)
        proxy = self._proxy(model)
        if proxy is not None and not _is_here(proxy):
            at.left("the sidecar starts servers on its own machine", "start it there by other means")
            return {"url": proxy}
        fixed = _port(at, proxy) if proxy is not None else None
        env = self._env(model)
        placed = command if commands.takes_port(command) else commands.with_port(command, fixed)
        if placed is None:
            placed, env = command, {"PORT": commands.PORT, **env}
            self.draft.comment(
                model.name, "CHECK: its command does not say which port it listens on. It gets it in PORT."
            )
            at.changed("variants[0].command", "split into words", "say where {port} goes: it stands in PORT now")
        else:
            at.changed("variants[0].command", "split into words, with macros filled in")
        server = managed.Server(
            model=model.name, at=at, command=placed, env=env, folder=Path(self.draft.options.folder)
        )
        variant = managed.variant(self.draft, server)
        self._check(model, command)
        self._stop(model, variant)
        if limit := self.root.get("healthCheckTimeout"):
            variant["load_timeout"] = limit.duration() if limit.number() >= _SHORTEST_LOAD_S else f"{_SHORTEST_LOAD_S}s"
            limit.changed("variants[0].load_timeout", "of each model")
        return variant

    def _proxy(self, model: _Group) -> str | None:
        """Where it listens, with `{port}` for the port that it is given; None if nothing is said."""
        at = model.at.get("proxy")
        if at is None:
            return None
        url = model.macros.expand(at)
        if not _is_here(url):
            url = remote.base_url(at, url, version="")
            at.carried("variants[0].url")
        elif urlsplit(url.replace(commands.PORT, "1")).path.strip("/"):
            at.left(
                "a server that is started here has no path before its own",
                "give it a url variant, and start it by hand",
            )
        else:
            at.changed("variants[0].command", "each server gets a port, and is asked there")
        return url

    def _env(self, model: _Group) -> dict[str, str]:
        found = {}
        for at in each(model.at.get("env")):
            name, equals, value = model.macros.expand(at).partition("=")
            if not equals or not name:
                raise at.wrong("NAME=value")
            found[name] = value
            if name == "CUDA_VISIBLE_DEVICES" and managed.tells_devices(value):
                at.changed("variants[0].required_devices", "the sidecar sets it to the devices that it has reserved")
            elif managed.holds_secret(name, value):
                at.changed("the variable in its place", "secrets do not stand in manifests", "set it, as is told below")
            else:
                at.carried("variants[0].env")
        return found

    def _check(self, model: _Group, command: Command) -> None:
        at = model.at.get("checkEndpoint")
        if at is None:
            return
        path = model.macros.expand(at)
        if path in ("/health", "/v1/models"):
            at.changed("mode", "a server is ready when /health says so, or /v1/models where there is no such path")
            return
        do = "a mode of your own can ask elsewhere: `sidecar plugin new interface`"
        at.left("a server is ready when /health says so, or /v1/models where there is no such path", do)
        if not command.has(re.compile(r"llama-server|llama\.cpp|vllm|sglang")):
            text = f"CHECK: it was asked at {path} whether it is ready. Here that is /health, or /v1/models: {do}."
            self.draft.comment(model.name, text)

    def _stop(self, model: _Group, variant: dict[str, Any]) -> None:
        own, general = model.at.get("unloadTimeout"), self.root.get("unloadTimeout")
        if at := next((at for at in (own, general) if at and at.number()), None):
            variant["stop_timeout"] = at.duration()
        for at in (own, general):
            if at:
                at.changed("variants[0].stop_timeout", "0 is the general one, or the default")
        if at := model.at.get("cmdStop"):
            why = "servers are stopped by signals to their whole process group, in the order TERM, KILL"
            do = "" if variant.get("foreign_listener") else "let the server end on SIGTERM"
            at.left(f"{why}; `docker run` passes TERM on" if variant.get("foreign_listener") else why, do)

    # --- what is about several --------------------------------------------------------------------------------------

    def _peers(self) -> None:
        peers = self.root.get("peers")
        for at in peers.items() if peers else ():
            proxy, models = at.get("proxy"), at.get("models")
            if proxy is None or models is None:
                raise at.wrong("a proxy and a list of models")
            if not self.macros.expand(proxy).startswith(("http://", "https://")):
                at.left(
                    "it is reached in a way that is not HTTP over TCP", "put a tunnel in between, and declare its url"
                )
                continue
            self._peer(at, proxy, models)

    def _peer(self, at: At, proxy: At, models: At) -> None:
        url = remote.base_url(proxy, self.macros.expand(proxy), version="")
        proxy.carried("variants[0].url")
        if entry := at.get("timeouts"):
            entry.left(*MODEL_LEFT["timeouts"])
        key = self._peer_key(at)
        for entry in models.each():
            there = entry.text()
            taken = self.draft.is_taken(there)
            name, table = self.draft.model(f"{at.name}/{there}" if taken else there, commands.modes_by_name(there))
            self.draft.alias(name, f"{at.name}/{there}")
            variant: dict[str, Any] = {"url": url} | ({"model_name": there} if there != name else {})
            table["variants"] = [variant | ({"api_key": key} if key else {})]
            self._filters(_Group(at, name, self.macros), at.get("filters"), name)
            entry.carried(f"models.{name}")
            self.draft.comment(
                name, f"What it speaks ({', '.join(commands.modes_by_name(there))}) is a guess by its name."
            )

    def _peer_key(self, at: At) -> dict[str, str] | None:
        entry = at.get("apiKey")
        if entry is None:
            return None
        match = re.fullmatch(r"\$\{env\.(\w+)\}", entry.text())
        what = f"the key of {at.name}"
        return remote.key(self.draft, entry, match[1] if match else "", f"{at.name}_api_key", what)


def _split(at: At, macros: Macros) -> Command:
    try:
        return commands.split(macros.expand(at))
    except commands.CommandError as error:
        raise at.wrong(f"a command: {error}") from None


def _protected(at: At) -> None:
    if model := at.get("model"):
        model.left("fields of requests can be set, but not the model, which decides where they go")


def _is_here(url: str) -> bool:
    try:
        return urlsplit(url.replace(commands.PORT, "1")).hostname in ("localhost", "127.0.0.1", "::1", "0.0.0.0")  # noqa: S104 - read, not bound
    except ValueError:
        return False


def _port(at: At, url: str) -> int | None:
    """The port of an address; None if it is the placeholder, or there is none."""
    try:
        port = urlsplit(url.replace(commands.PORT, "1")).port
    except ValueError:
        raise at.wrong("an address such as http://127.0.0.1:8080") from None
    return None if commands.PORT in url else port
