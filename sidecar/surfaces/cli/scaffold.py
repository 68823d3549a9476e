"""What `sidecar plugin new` writes: a module that is a whole plugin, its test, and what a manifest says of it."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

import msgspec

import plugin_sdk
from sidecar.mechanism.plugins import BUILTIN, BUILTIN_CHAIN
from sidecar.mechanism.versions import installed_at


class Draft(msgspec.Struct, frozen=True):
    """A kind's beginning: the module, the body of its test with what that imports, and the table in a manifest.

    subject: what `contract` is called with. `NAME`, `CLASS` and `UPPER` stand for the plugin's name, its class, and its
    name in capitals.
    """

    module: str
    imports: str
    test: str
    manifest: str
    subject: str = "CLASS"


KINDS: dict[str, Draft] = {
    "device": Draft(
        module='''"""Devices of the class "NAME"."""

from plugin_sdk import Config, Device, DeviceStatus


class Settings(Config):
    """total_mb: the memory of the device, in MB."""

    total_mb: int = 16384


class CLASS(Device[Settings]):
    """Says which devices there are, and how full they are. A plain `def` may block: it runs in a thread."""

    provides = "NAME"

    def probe(self) -> list[DeviceStatus]:
        return [DeviceStatus(id="NAME-0", total_mb=self.config.total_mb, free_mb=self.config.total_mb)]
''',
        imports="",
        test="""def test_no_device_is_fuller_than_full() -> None:
    assert all(0 <= device.free_mb <= device.total_mb for device in CLASS().probe())
""",
        manifest="""# Models ask for one with: required_devices = ["NAME"]
[plugins.NAME]
import = "NAME:CLASS"
config = { total_mb = 16384 }
""",
    ),
    "interface": Draft(
        module='''"""The mode "NAME": which paths its servers have, and what healthy means."""

from plugin_sdk import Endpoint, Interface, NotReady, Upstream


class CLASS(Interface):
    """A mode of its own."""

    provides = "NAME"
    endpoints = (Endpoint("/v1/NAME", "NAME"),)

    async def ready(self, upstream: Upstream) -> bool:
        reply = await upstream.get("/health")
        if reply.status != 200:
            raise NotReady(f"/health answered {reply.status}")
        return True
''',
        imports="",
        test="""def test_its_path_is_the_one_that_clients_use() -> None:
    assert [endpoint.path for endpoint in CLASS.endpoints] == ["/v1/NAME"]
""",
        manifest="""# Models are of this mode with: mode = "NAME"
[plugins.NAME]
import = "NAME:CLASS"
""",
    ),
    "auth": Draft(
        module='''"""Who may come in: whoever knows the token."""

import hmac

from plugin_sdk import Auth, Config, Principal, Reject, Request, Secret, inline


class Settings(Config):
    """token: what callers have to bring. principal: what they are called then."""

    token: Secret
    principal: str = "NAME"


class CLASS(Auth[Settings]):
    """Admits whoever brings the token. `@inline`: it never blocks, so it needs no thread."""

    @inline
    def authenticate(self, request: Request) -> Principal:
        if not hmac.compare_digest(request.bearer_token.encode(), self.config.token.reveal().encode()):
            raise Reject(401, "the token is not known")
        return Principal(self.config.principal)
''',
        imports="from plugin_sdk import Headers, Request, Secret\n",
        test="""def test_whoever_knows_the_token_comes_in() -> None:
    door = CLASS(Settings(token=Secret("open")))
    request = Request(method="POST", path="/", headers=Headers(((b"authorization", b"Bearer open"),)))
    assert door.authenticate(request).id == "NAME"
""",
        manifest="""# In force where it stands in a chain: chain = ["NAME"]
[plugins.NAME]
import = "NAME:CLASS"
config = { token = { env = "UPPER_TOKEN" } }
""",
        subject='CLASS, config=Settings(token=Secret("open"))',
    ),
    "route": Draft(
        module='''"""Where a request goes: to the server that has the fewest."""

from plugin_sdk import Request, Route, Target, inline


class CLASS(Route):
    """Picks one of the targets; None leaves it to the next plugin, or to the manifest."""

    @inline
    def resolve(self, request: Request, targets: tuple[Target, ...]) -> Target | None:
        return min((one for one in targets if one.ready), key=lambda one: one.in_flight, default=None)
''',
        imports="from plugin_sdk import Request, Target\n",
        test="""def test_the_least_busy_one_is_chosen() -> None:
    busy, idle = Target(name="a", base_url="http://a", in_flight=2), Target(name="b", base_url="http://b")
    assert CLASS().resolve(Request(method="POST", path="/"), (busy, idle)) is idle
""",
        manifest="""# In force where it stands in a chain: chain = ["keys", "NAME"]
[plugins.NAME]
import = "NAME:CLASS"
""",
    ),
    "filter": Draft(
        module='''"""Changes or refuses what passes: requests that are too long."""

from plugin_sdk import ByteSize, Config, Exchange, Filter, Reject, inline


class Settings(Config):
    """most: the longest body that passes."""

    most: ByteSize = ByteSize(1_000_000)


class CLASS(Filter[Settings]):
    """Refuses long requests. Hooks that are not overridden (on_response, on_chunk, on_event, on_end) cost nothing."""

    @inline
    def on_request(self, exchange: Exchange) -> None:
        if len(exchange.request.body) > self.config.most:
            raise Reject(413, f"at most {self.config.most} bytes")
''',
        imports="import pytest\n\nfrom plugin_sdk import ByteSize, Exchange, Reject, Request\n",
        test="""def test_a_body_that_is_too_long_is_refused() -> None:
    with pytest.raises(Reject):
        CLASS(Settings(most=ByteSize(1))).on_request(Exchange(Request(method="POST", path="/", body=b"12")))
""",
        manifest="""# In force where it stands in a chain: chain = ["keys", "NAME"]
[plugins.NAME]
import = "NAME:CLASS"
config = { most = "1MB" }
""",
    ),
    "stats": Draft(
        module='''"""What became of requests: off their path, one at a time."""

from plugin_sdk import Outcome, Stats


class CLASS(Stats):
    """Counts tokens by model. A plain `def` may block: it runs in a thread."""

    async def open(self) -> None:
        self.tokens: dict[str, int] = {}

    def record(self, outcome: Outcome) -> None:
        used = outcome.usage.output_tokens if outcome.usage else 0
        self.tokens[outcome.model] = self.tokens.get(outcome.model, 0) + used
''',
        imports="import asyncio\n\nfrom plugin_sdk import Outcome, Usage\n",
        test="""def test_tokens_are_counted_by_model() -> None:
    sink = CLASS()
    asyncio.run(sink.open())
    sink.record(Outcome(model="m", usage=Usage(output_tokens=3)))
    assert sink.tokens == {"m": 3}
""",
        manifest="""# In force where it stands in a chain: chain = ["keys", "NAME"]
[plugins.NAME]
import = "NAME:CLASS"
""",
    ),
}

_PACKAGE = """[build-system]
requires = ["hatchling>=1.25"]
build-backend = "hatchling.build"

[project]
name = "sidecar-plugin-DASHED"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["llm-sidecar"]

[project.entry-points."sidecar.plugins"]
NAME = "NAME:CLASS"

[tool.hatch.build.targets.wheel]
include = ["NAME.py"]
"""


def fault_of_name(name: str) -> str:
    """Why a plugin cannot be called so; "" if it can."""
    if not (name.isascii() and name.isidentifier() and name == name.lower()) or keyword.iskeyword(name):
        return f'"{name}" cannot name a module: use lower-case letters, digits and _, such as my_plugin'
    if name.startswith(("_", "test_")) or name.endswith("_test") or name in ("tests", "conftest", "setup"):
        return f'"{name}" would not be looked at: names of tests, setup and those that begin with _ are left out'
    if name in BUILTIN or name in BUILTIN_CHAIN:
        return f'"{name}" is a built-in: choose another name'
    place = installed_at(name)
    return f'"{name}" is also installed ({place}), which would win: choose another name' if place else ""


def files(kind: str, name: str, *, package: bool) -> dict[str, str]:
    """What to write, by file name."""
    draft = KINDS[kind]
    class_name = "".join(part.capitalize() for part in name.split("_"))
    if class_name in (*plugin_sdk.__all__, "Settings"):
        class_name += "Plugin"
    names = "CLASS, Settings" if "Settings" in draft.test else "CLASS"
    imports = f"{draft.imports}from plugin_sdk.testing import contract\n\nfrom NAME import {names}\n"
    test = f'"""What is expected of NAME."""\n\n{imports}\ntest_contract = contract({draft.subject})\n\n\n{draft.test}'
    texts = {f"{name}.py": draft.module, f"test_{name}.py": test, f"{name}.toml": draft.manifest}
    if package:
        texts["pyproject.toml"] = _PACKAGE
    return {file: _filled(text, name, class_name) for file, text in texts.items()}


def write(folder: Path, texts: dict[str, str]) -> None:
    """Write all files, none of which may be there. Raises FileExistsError before anything is written, or OSError."""
    there = [str(folder / file) for file in texts if (folder / file).exists()]
    if there:
        raise FileExistsError(f"already there: {', '.join(there)}")
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in texts.items():
        with (folder / file).open("x", encoding="utf-8") as opened:
            opened.write(text)


def _filled(text: str, name: str, class_name: str) -> str:
    filling = {"CLASS": class_name, "UPPER": name.upper(), "DASHED": name.replace("_", "-"), "NAME": name}
    return re.sub("|".join(filling), lambda match: filling[match.group()], text)
