"""Manifests in the making: what importers put in, and the files that come out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import tomli_w

from sidecar.mechanism.importing.account import Account, At, Entry, leaves

NOBODY = f"sha256:{'0' * 64}"  # the hash of no key that anybody knows: the door stays shut until another stands here

_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]*")  # as `sidecar.mechanism.rules` has it
_VARIABLE = re.compile(r"[^A-Z0-9]+")
_REFERENCE = re.compile(r"(?:os\.environ/|\$\{(?:env\.)?)(\w+)")
_IN_FILE_NAMES = re.compile(r"[^A-Za-z0-9._-]+")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._:/@+-]+")
_SECRET_NAME = re.compile(r"(?i)(^|[_.-])(api[_-]?keys?|keys?|token|secret|passw(or)?d|credentials?|auth)([_.-]|$)")


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome. files: path relative to the manifest directory, to content. entries: what became of each setting.

    variables: those that must be set in the sidecar's environment, and what for. notes: what there is to know and to do
    besides.
    """

    files: dict[str, str]
    entries: tuple[Entry, ...]
    variables: dict[str, str] = {}
    notes: tuple[str, ...] = ()


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the person says who imports. environment: to look up the keys of clients, which are written as hashes.

    device: the class that models run on where the source does not tell. folder: which relative paths are meant from.
    listen: "" = as the source has it, or the default.
    """

    environment: Mapping[str, str] = {}
    device: str = "nvidia"
    folder: str = "."
    listen: str = ""


class Draft:
    """What is written so far."""

    def __init__(self, source: str, account: Account, options: Options) -> None:
        self.options = options
        self.account = account
        self.settings: dict[str, Any] = {}
        self.plugins: dict[str, dict[str, Any]] = {}
        self.devices: dict[str, dict[str, Any]] = {}
        self.models: dict[str, dict[str, Any]] = {}
        self.code: dict[str, str] = {}  # plugins/NAME.py
        self.variables: dict[str, str] = {}
        self._source = source
        self._hidden: dict[str, str] = {}  # by text, the variable that stands for it
        self._reserved = _referred(account)
        self._notes: list[str] = []
        self._comments: dict[str, list[str]] = {}
        self._names: set[str] = set()  # names and aliases of models
        self._expected: set[str] = set()
        self._extras: dict[str, list[str]] = {}  # plugins of a model besides the default chain

    # --- names ----------------------------------------------------------------------------------------------------

    def expect(self, names: Iterable[str]) -> None:
        """Tell how models will be called, so that none of them loses its name to one that has to be renamed."""
        self._expected |= set(names)

    def is_taken(self, name: str) -> bool:
        """Whether clients mean a model by it already."""
        return name in self._names

    def model(self, wanted: str, mode: list[str]) -> tuple[str, dict[str, Any]]:
        """A new model: its name, which is as near to what is wanted as a name can be, and its table."""
        name = _NOT_IN_NAMES.sub("-", wanted).strip("-") if not _MODEL_NAME.fullmatch(wanted) else wanted
        name = name if _MODEL_NAME.fullmatch(name) else f"model-{name}"
        name = unique(name, self._names | (self._expected if name != wanted else set()))
        self._names.add(name)
        table: dict[str, Any] = {"mode": mode[0] if len(mode) == 1 else mode}
        self.models[name] = table
        if name != wanted:
            self.alias(name, wanted)
        return name, table

    def alias(self, model: str, alias: str) -> bool:
        """Let clients use another name. Whether they can: it may be taken."""
        table = self.models[model]
        if alias == model or alias in table.get("aliases", ()):
            return True
        if alias in self._names or (alias in self._expected and _MODEL_NAME.fullmatch(alias)):
            return False  # one that is no model's name is expected of the model itself
        self._names.add(alias)
        table.setdefault("aliases", []).append(alias)
        return True

    def plugin(self, wanted: str, import_path: str, config: dict[str, Any], **keys: Any) -> str:
        """Declare a plugin, and return its name: that of one that is just so, if there is one."""
        table = {"import": import_path, **({"config": config} if config else {}), **keys}
        for name, declared in self.plugins.items():
            if declared == table and name.rstrip("-0123456789") == wanted.rstrip("-0123456789"):
                return name
        name = unique(_IN_FILE_NAMES.sub("-", wanted), self.plugins)
        self.plugins[name] = table
        return name

    # --- secrets --------------------------------------------------------------------------------------------------

    def hide(self, text: str, wanted: str, what: str) -> str:
        """The variable that stands for a text which must not be written: one for each text."""
        if text not in self._hidden:
            self._hidden[text] = unique(variable(wanted), self.variables.keys() | self._reserved)
            self.variables[self._hidden[text]] = what
        return self._hidden[text]

    def key(self, at: At, principal: str, variable_name: str = "") -> None:
        """Let in whoever has a key: its hash is written. variable_name: of the one that the key is in."""
        key = self.options.environment.get(variable_name, "") if variable_name else at.text()
        keys = self._keys()
        if not key:
            if not keys:
                keys[NOBODY] = "nobody"
            do = f'set {variable_name} and import again, or add the hash: printf %s "${variable_name}" | sha256sum'
            at.left(f"the variable {variable_name} is not set here, so that its hash is not known", do)
            return
        hashed = f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"
        keys.pop(NOBODY, None)
        keys[hashed] = unique(principal, keys.values())
        at.changed("plugins.keys", "keys of clients are written as hashes")

    def shut(self) -> None:
        """Keep everybody out, since the source did, until somebody adds a key."""
        if not (keys := self._keys()):
            keys[NOBODY] = "nobody"

    def _keys(self) -> dict[str, str]:
        table = self.plugins.setdefault("keys", {"import": "sidecar.builtin.keys:StaticKeys", "config": {"keys": {}}})
        self.chain("keys", first=True)
        keys: dict[str, str] = table["config"]["keys"]
        return keys

    # --- chains ---------------------------------------------------------------------------------------------------

    def chain(self, plugin: str, *, first: bool = False) -> None:
        """Put a plugin into the default chain."""
        chain: list[str] = self.settings.setdefault("chain", [])
        if plugin not in chain:
            chain.insert(0 if first else len(chain), plugin)

    def own_chain(self, model: str, plugin: str) -> None:
        """Put a plugin into the chain of one model, behind the default ones."""
        plugins = self._extras.setdefault(model, [])
        if plugin not in plugins:
            plugins.append(plugin)

    # --- what there is to tell --------------------------------------------------------------------------------------

    def note(self, text: str, *files: str) -> None:
        """Something to know or to do. files: those in which it stands as a comment, too."""
        if text not in self._notes:
            self._notes.append(text)
        for file in files:
            self._comment(file, text)

    def comment(self, model: str, text: str) -> None:
        """Something to know about a model, at the head of its file."""
        self._comment(f"models.{model}", text)

    def _comment(self, where: str, text: str) -> None:
        lines = self._comments.setdefault(where, [])
        if text not in lines:
            lines.append(text)

    # --- the end --------------------------------------------------------------------------------------------------

    def imported(self) -> Imported:
        """The files, and what became of each setting."""
        if "keys" in self.plugins and NOBODY in self._keys():
            self.note("no client has a key yet, so that all are refused: put one into [plugins.keys]", "plugins.toml")
        if not self.models:
            self.note("no model could be carried over: is this what was meant?")
        files = {"sidecar.toml": self._file("sidecar.toml", {"sidecar": self._settings()})}
        if self.plugins:
            files["plugins.toml"] = self._file("plugins.toml", {"plugins": self.plugins})
        if self.devices:
            files["devices.toml"] = self._file("devices.toml", {"devices": self.devices})
        for name, table in self.models.items():
            if extras := self._extras.get(name):
                table["chain"] = [*self.settings.get("chain", ()), *extras]
            taken = {file.casefold() for file in files}
            file = _file_name(name, taken)
            files[file] = self._file(f"models.{name}", {"models": {name: table}})
        files |= {f"plugins/{name}.py": text for name, text in self.code.items()}
        return Imported(
            files=files,
            entries=self.account.entries(),
            variables=dict(sorted(self.variables.items())),
            notes=tuple(self._notes),
        )

    def _settings(self) -> dict[str, Any]:
        listen = self.options.listen or self.settings.get("listen", "127.0.0.1:8080")
        return {"listen": listen, **{key: value for key, value in self.settings.items() if key != "listen"}}

    def _file(self, where: str, tables: dict[str, Any]) -> str:
        head = [f"Imported from {self._source}.", *self._comments.get(where, ())]
        lines = [line for text in head for line in text.splitlines()]
        comments = "".join(f"# {''.join(char if char.isprintable() else '?' for char in line)}\n" for line in lines)
        return f"{comments}\n{tomli_w.dumps(tables)}"


def _referred(account: Account) -> frozenset[str]:
    """The variables that the source speaks of: none of them may come to stand for another secret."""
    texts = (value for _, value in leaves(account.tree.value) if isinstance(value, str))
    return frozenset(match[1] for text in texts for match in _REFERENCE.finditer(text))


def unique(wanted: str, taken: Iterable[str]) -> str:
    """The name itself, or with a number behind it."""
    taken = set(taken)
    between = "_" if wanted.isupper() else "-"
    if wanted not in taken:
        return wanted
    return next(name for number in range(2, len(taken) + 3) if (name := f"{wanted}{between}{number}") not in taken)


def variable(wanted: str) -> str:
    """A name for an environment variable."""
    name = _VARIABLE.sub("_", wanted.upper()).strip("_")
    return name if name[:1].isalpha() else f"KEY_{name}"


def is_secret(name: str) -> bool:
    """Whether a variable or a setting of that name holds a key, a token or a password, by its name."""
    return bool(_SECRET_NAME.search(name))


def _file_name(model: str, taken: set[str]) -> str:
    stem = _IN_FILE_NAMES.sub("-", model).strip(".-")[:100] or "model"
    names = (f"models/{stem}{number}.toml" for number in ("", *(f"-{count}" for count in range(2, len(taken) + 3))))
    return next(name for name in names if name.casefold() not in taken)
