"""Plugins that have to be ported by hand: what stands in their place until then, which is closed, unknown or nothing.

So the manifests load, and nothing is let in, placed or answered that the missing code would not have allowed.
"""

from __future__ import annotations

import re
from typing import Any

from sidecar.mechanism.importing.draft import Draft

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


def device(draft: Draft, name: str) -> None:
    """A device class that is always unknown."""
    _add(draft, name, _DEVICE)


def interface(draft: Draft, name: str) -> None:
    """A mode with a path that is guessed."""
    _add(draft, name, _INTERFACE)


def auth(draft: Draft, name: str, settings: dict[str, Any]) -> str:
    """An auth plugin that refuses everybody. Returns its name in chains."""
    fields = "".join(f"    {_identifier(key)}: Any = None\n" for key in settings) or "    ...\n"
    file, cls = _add(draft, name, _AUTH, fields=fields)
    config = {_identifier(key): value for key, value in settings.items()}
    return draft.plugin(file, f"{file}:{cls}", config)


def _add(draft: Draft, name: str, template: str, **more: str) -> tuple[str, str]:
    file = _identifier(name).lower()
    cls = "".join(part[:1].upper() + part[1:] for part in _WORD.split(name)) or "Plugin"
    cls = cls if cls[0].isalpha() else f"P{cls}"
    path = _WORD.sub("", name).lower()
    said = name.replace("\\", "").replace('"', "")
    draft.code[file] = template.format(name=said, cls=cls, file=file, path=path, **more)
    draft.note(f"plugins/{file}.py stands in for a plugin that has to be ported: see the comment in it")
    return file, cls


def _identifier(text: str) -> str:
    word = _WORD.sub("_", text).strip("_") or "plugin"
    return word if word[0].isalpha() else f"p_{word}"
