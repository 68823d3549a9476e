"""llama-swap's macros: `${name}` in texts, of the configuration or of a model, which may hold others."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from sidecar.mechanism.importing.account import At
from sidecar.mechanism.importing.commands import PORT
from sidecar.mechanism.importing.reading import Path

_MACRO = re.compile(r"\$\{([A-Za-z0-9_.-]+)\}")
_DEEPEST = 20  # macros in macros: more are a circle
_LONGEST = 1_000_000  # characters: more come of macros that double each other


class _Book(msgspec.Struct):
    """All macros, and by path the models that used them."""

    all: list[At]
    users: dict[Path, list[str]]


class Macros:
    """The macros that hold in one place. `PORT` and `env.NAME` become the manifest's placeholders."""

    def __init__(self, known: dict[str, At], model_id: str | None, book: _Book) -> None:
        self._known = known
        self._model_id = model_id
        self._book = book

    @classmethod
    def of(cls, at: At | None) -> Macros:
        """Those of the whole configuration."""
        macros = cls({}, None, _Book([], {}))
        macros._add(at)
        return macros

    def within(self, at: At | None, model_id: str) -> Macros:
        """Those that hold in a model: its own, and the others."""
        macros = Macros(dict(self._known), model_id, self._book)
        macros._add(at)
        return macros

    def _add(self, at: At | None) -> None:
        for entry in at.items() if at else ():
            self._known[entry.name] = entry
            self._book.all.append(entry)

    def expand(self, at: At) -> str:
        """The text that stands there, with macros filled in. Raises InputError if one is not known, or never ends."""
        return self.expand_text(at, at.text())

    def expand_text(self, at: At, text: str) -> str:
        """The same for a text that stands elsewhere. at: where errors are."""
        for _ in range(_DEEPEST):
            filled = _MACRO.sub(lambda match: self._value(at, match[1]), text)
            if filled == text:
                return text
            text = filled
            if len(text) > _LONGEST:
                break
        raise at.wrong("macros that come to an end: these go round in a circle")

    def filled(self, at: At) -> Any:
        """A value of any kind, with macros filled in. One that is nothing but a macro is of the macro's kind."""
        return self._filled(at, at.value)

    def _filled(self, at: At, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._filled(at, item) for key, item in value.items() if item is not None}
        if isinstance(value, list):
            return [self._filled(at, item) for item in value if item is not None]
        if not isinstance(value, str):
            return value
        whole = _MACRO.fullmatch(value)
        if whole and whole[1] in self._known and not isinstance(self._known[whole[1]].value, str):
            self._use(whole[1])
            return self._known[whole[1]].value
        return self.expand_text(at, value)

    def _value(self, at: At, name: str) -> str:
        if name == "PORT":
            return PORT
        if name == "PID":
            return "{pid}"  # only in cmdStop, which is not carried
        if name == "MODEL_ID" and self._model_id is not None:
            return self._model_id
        if name.startswith("env."):
            return f"{{{name}}}"
        if name not in self._known:
            raise at.wrong(f"macros that there are: there is none called {name}")
        self._use(name)
        return self._known[name].text()

    def _use(self, name: str) -> None:
        users = self._book.users.setdefault(self._known[name].path, [])
        if (user := self._model_id or "peers") not in users:
            users.append(user)

    def tell(self) -> None:
        """Say what became of each, once all are filled in."""
        for entry in self._book.all:
            if users := self._book.users.get(entry.path):
                entry.changed(", ".join(users), "filled in where it stood")
            else:
                entry.left("nothing that was carried uses it")
