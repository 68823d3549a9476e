"""Plugins that have to be ported by hand: what stands in their place until then, which is closed, unknown or nothing.

So the manifests load, and nothing is let in, placed or answered that the missing code would not have allowed.
"""

from __future__ import annotations

import keyword
import re
from typing import Any

import msgspec

import plugin_sdk
from sidecar.mechanism.importing.draft import Draft

_IMPORTED = ("Any", "Settings", *plugin_sdk.__all__)
_SKIPPED = ("test_", "tests", "conftest", "setup")  # files of such names are not taken for plugins
_WORD = re.compile(r"[^A-Za-z0-9]+")

_DEVICE = '''"""Devices of the class "{name}": to be ported. Until then they are unknown, and nothing is placed there.

`sidecar plugin new device` and examples/plugins/my_gpu show what is needed.
"""

from plugin_sdk import Device, DeviceStatus


class {cls}(Device):
    """Not ported yet."""

    provides = "{name}"

    def probe(self) -> list[DeviceStatus]:
        raise OSError("plugins/{file}.py is to be ported")
'''
_INTERFACE = '''"""The mode "{name}": to be ported. Its path is a guess by its name.

`sidecar plugin new interface` and examples/plugins/my_mode show what is needed.
"""

from plugin_sdk import Endpoint, Interface


class {cls}(Interface):
    """Not ported yet: put the paths of its get_supported_endpoints here."""

    provides = "{name}"
    endpoints = (Endpoint("/v1/{path}/completions", "text_completion"),)
'''
_AUTH = '''"""The auth plugin "{name}": to be ported. Until then it lets nobody in.

`sidecar plugin new auth` and examples/plugins/database_auth show what is needed.
"""

from typing import Any

from plugin_sdk import Auth, Config, Principal, Reject, Request


class Settings(Config):
    """Its settings, as they were."""

{fields}

class {cls}(Auth[Settings]):
    """Not ported yet."""

    def authenticate(self, request: Request) -> Principal:
        raise Reject(503, "plugins/{file}.py is to be ported", code="not_ported")
'''


def device(draft: Draft, name: str) -> str:
    """A device class that is always unknown. Returns its name."""
    return _add(draft, name, _DEVICE).name


def interface(draft: Draft, name: str) -> str:
    """A mode with a path that is guessed. Returns its name."""
    return _add(draft, name, _INTERFACE).name


def auth(draft: Draft, name: str, settings: dict[str, Any]) -> str:
    """An auth plugin that refuses everybody. Returns its name in chains."""
    fields = "".join(f"    {_identifier(key)}: Any = None\n" for key in settings) or "    ...\n"
    made = _add(draft, name, _AUTH, fields=fields)
    config = {_identifier(key): value for key, value in settings.items()}
    return draft.plugin(made.file, f"{made.file}:{made.cls}", config)


class _Skeleton(msgspec.Struct, frozen=True):
    """name: what it provides. file: without `.py`."""

    name: str
    file: str
    cls: str


def _add(draft: Draft, name: str, template: str, **more: str) -> _Skeleton:
    said = "".join(char for char in name if char.isprintable() and char not in '"\\').strip() or "plugin"
    cls = "".join(part[:1].upper() + part[1:] for part in _WORD.split(said)) or "Plugin"
    path = _WORD.sub("", said).lower() or "plugin"
    wanted = _identifier(said).lower()[:60]
    cls = cls if cls[0].isalpha() and not keyword.iskeyword(cls) and cls not in _IMPORTED else f"My{cls}"
    for number in range(1, len(draft.code) + 2):  # plugins have different names, of whatever kinds they are
        suffix = f"_{number}" if number > 1 else ""
        made = _Skeleton(said + suffix, wanted + suffix, cls)
        text = template.format(name=made.name, cls=cls, file=made.file, path=path, **more)
        if draft.code.get(made.file, text) == text:
            break
    draft.code[made.file] = text
    draft.note(f"plugins/{made.file}.py stands in for a plugin that has to be ported: see the comment in it")
    return made


def _identifier(text: str) -> str:
    word = _WORD.sub("_", text).strip("_") or "plugin"
    unfit = not word[0].isalpha() or word.lower().startswith(_SKIPPED) or keyword.iskeyword(word)
    return f"p_{word}" if unfit else word
