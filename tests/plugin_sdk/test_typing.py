"""What authors write is understood by mypy and pyright, both strict: what is right passes, what is wrong is told."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import write

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "plugin_sdk" / "README.md").read_text(encoding="utf-8")
SNIPPETS = {
    Path(code.partition("\n")[0].removeprefix("# ")).name: code
    for code in re.findall(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
}

# Lines that a checker has to object to end with this; it may object to no other.
WRONG = "  # wrong"

CLASSES = """
from collections.abc import Awaitable
from typing import assert_type

from plugin_sdk import (
    Auth, Config, Device, DeviceStatus, Endpoint, Event, Exchange, Filter, Interface, Outcome, Principal, Request,
    Response, Route, Secret, Stats, Target, Upstream, Usage, inline,
)


class Settings(Config):
    word: Secret
    most: int = 3


class Gpu(Device[Settings]):
    provides = "gpu"

    async def probe(self) -> list[DeviceStatus]:
        assert_type(self.config, Settings)
        return [DeviceStatus(total_mb=self.config.most)]


class Mode(Interface[Settings]):
    provides = "mode"
    endpoints = (Endpoint("/v1/mode", "mode"),)

    async def ready(self, upstream: Upstream) -> bool:
        assert_type(self.config, Settings)
        return (await upstream.get("/health")).status == 200

    def validate(self, request: Request) -> None: ...

    def usage(self, tail: bytes, streamed: bool) -> Usage | None:
        return Usage(input_tokens=len(tail)) if streamed else None

    def error(self, status: int, code: str, message: str, param: str | None = None) -> bytes:
        return message.encode()

    def error_event(self, error: bytes) -> bytes:
        return error


class Door(Auth[Settings]):
    async def open(self) -> None:
        self.pool = await self.keep("pool", self.make, self.end)
        assert_type(self.pool, list[int])

    async def make(self) -> list[int]:
        return [self.config.most]

    async def end(self, pool: list[int]) -> None:
        pool.clear()

    async def authenticate(self, request: Request) -> Principal:
        assert_type(self.config.word.reveal(), str)
        return Principal(request.client)


class Plain(Auth):
    @inline
    def authenticate(self, request: Request) -> Principal:
        assert_type(self.config, Config)
        return Principal("x")


class Way(Route[Settings]):
    async def resolve(self, request: Request, targets: tuple[Target, ...]) -> Target | None:
        assert_type(self.config, Settings)
        return targets[0] if targets else None

    def finished(self, target: Target, outcome: Outcome) -> None: ...


class Sieve(Filter[Settings]):
    def on_request(self, exchange: Exchange) -> Request | Response | None:
        assert_type(self.config, Settings)
        return exchange.request

    async def on_response(self, exchange: Exchange) -> Response | None:
        return exchange.response

    async def on_event(self, exchange: Exchange, event: Event) -> list[Event]:
        return [event]

    async def on_end(self, exchange: Exchange, outcome: Outcome) -> None: ...


class Pieces(Filter):
    @inline
    def on_chunk(self, exchange: Exchange, chunk: bytes) -> bytes:
        return chunk


class Sink(Stats[Settings]):
    def record(self, outcome: Outcome) -> Awaitable[None] | None:
        assert_type(self.config, Settings)
        self.metrics.count("seen", 1.0, {"model": outcome.model})
        return None


Door(Settings(word=Secret("x")))
"""

FUNCTIONS = """
from typing import assert_type

from plugin_sdk import (
    Auth, Device, DeviceStatus, Event, Exchange, Filter, Outcome, Principal, Request, Response, Route, Stats, Target,
    auth, device, inline, on_chunk, on_end, on_event, on_request, on_response, route, stats,
)


@device("a")
def one() -> DeviceStatus:
    return DeviceStatus()


@device("b", visibility_env="B_VISIBLE")
async def several() -> list[DeviceStatus]:
    return []


@auth
async def door(request: Request) -> Principal:
    return Principal(request.client)


@auth
@inline
def window(request: Request) -> Principal:
    return Principal(request.client)


@route
def way(request: Request, targets: tuple[Target, ...]) -> Target | None:
    return next(iter(targets), None)


@route
async def elsewhere(request: Request, targets: tuple[Target, ...]) -> Target:
    return targets[0]


@on_request
async def asked(exchange: Exchange) -> Request:
    return exchange.request


@on_response
def answered(exchange: Exchange) -> Response | None:
    return exchange.response


@on_chunk
def piece(exchange: Exchange, chunk: bytes) -> bytes:
    return chunk


@on_event
async def event(exchange: Exchange, event: Event) -> list[Event] | None:
    return [event]


@on_end
def over(exchange: Exchange, outcome: Outcome) -> None: ...


@stats
async def seen(outcome: Outcome) -> None: ...


assert_type(one, type[Device])
assert_type(door, type[Auth])
assert_type(way, type[Route])
assert_type(asked, type[Filter])
assert_type(seen, type[Stats])
"""

MISTAKES = """
from plugin_sdk import (
    Auth, Config, Device, DeviceStatus, Event, Exchange, Filter, Interface, Outcome, Principal, Request, Response,
    Route, Stats, Target, auth, device, on_chunk, on_event, on_request, route, stats,
)


class Settings(Config):
    word: str


class Gpu(Device):
    def probe(self) -> dict[str, int]:  # wrong
        return {}


class Mode(Interface):
    endpoints = ("/v1/mode",)  # wrong

    def ready(self, upstream: object) -> str:  # wrong
        return "yes"


class Door(Auth[Settings]):
    def authenticate(self, request: Request) -> str:  # wrong
        return self.config.wrod  # wrong


class Window(Auth[Settings]):
    def authenticate(self, request: Request) -> Principal:
        return request.client  # wrong


class NoConfig(Auth[int]):  # wrong
    pass


class Way(Route):
    def resolve(self, request: Request) -> Target | None:  # wrong
        return None


class Sieve(Filter):
    def on_chunk(self, exchange: Exchange, chunk: bytes) -> str:  # wrong
        return ""

    async def on_response(self, exchange: Exchange) -> Request:  # wrong
        return exchange.request


class Sink(Stats):
    async def record(self, outcome: Outcome) -> None:
        outcome.tokens  # wrong


Window(Settings(word=3))  # wrong


@device("a")  # wrong
def gpu() -> int:
    return 1


@auth  # wrong
def door(request: Request) -> str:
    return request.client


@auth  # wrong
def two(request: Request, more: int) -> Principal:
    return Principal("x")


@route  # wrong
async def way(request: Request, targets: tuple[Target, ...]) -> str:
    return "x"


@on_request  # wrong
def asked(exchange: Exchange) -> Event:
    return Event(data=b"")


@on_chunk  # wrong
def piece(exchange: Exchange, chunk: str) -> str:
    return chunk


@on_event  # wrong
def event(exchange: Exchange, event: Event) -> Response:
    return Response()


@stats  # wrong
def seen(outcome: Outcome) -> int:
    return 1


@device  # wrong
def unnamed() -> DeviceStatus:
    return DeviceStatus()
"""

Faults = set[tuple[str, int]]  # file name, line


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that is checked, in one folder, so that each checker runs once."""
    own = {"classes.py": CLASSES, "functions.py": FUNCTIONS, "mistakes.py": MISTAKES}
    return write(tmp_path_factory.mktemp("typing"), {**SNIPPETS, **own})


def expected() -> Faults:
    return {
        ("mistakes.py", number) for number, line in enumerate(MISTAKES.split("\n"), start=1) if line.endswith(WRONG)
    }


def test_mypy_objects_to_mistakes_and_to_nothing_else(code: Path) -> None:
    cache = ROOT / ".mypy_cache" / "authors"  # kept, since a cold run takes most of its time for the libraries
    options = ["--strict", "--no-error-summary", "--config-file=", f"--cache-dir={cache}"]
    told = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "."],
        cwd=code,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.findall(r"^(\S+\.py):(\d+): error:", told.stdout, re.MULTILINE)
    assert {(name, int(line)) for name, line in found} == expected(), told.stdout + told.stderr


def test_pyright_objects_to_mistakes_and_to_nothing_else_and_passes_the_examples(code: Path) -> None:
    examples = ROOT / "examples" / "plugins"
    folders = sorted([*examples.glob("*/plugins"), *examples.glob("*/src")])
    assert folders
    config = {
        "include": [str(code), *map(str, folders)],
        "strict": [str(code)],
        "typeCheckingMode": "standard",
        "pythonVersion": "3.11",
        "extraPaths": [str(ROOT)],
        "executionEnvironments": [{"root": str(folder)} for folder in (code, *folders)],
    }
    (code / "pyrightconfig.json").write_text(json.dumps(config), encoding="utf-8")
    command = ["basedpyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(code)]
    told = subprocess.run([sys.executable, "-m", *command], cwd=code, capture_output=True, text=True, check=False)
    report = json.loads(told.stdout)
    assert report["summary"]["filesAnalyzed"] >= len(SNIPPETS) + 3
    found = [one for one in report["generalDiagnostics"] if one["severity"] == "error"]
    lines = {(Path(one["file"]).name, one["range"]["start"]["line"] + 1) for one in found}
    assert lines == expected(), "\n".join(
        f"{one['file']}:{one['range']['start']['line'] + 1} {one['message']}" for one in found
    )
