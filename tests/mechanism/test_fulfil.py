"""A class that does not fulfil its kind is refused with what is missing, and what was probably meant."""

from __future__ import annotations

from typing import Any

import pytest

import plugin_sdk
from sidecar.builtin import cpu, interfaces, keys, log
from sidecar.mechanism.fulfil import KINDS, faults_of

NAMES = {kind.__name__: kind for kind in KINDS}


def faults(base: str, body: str) -> list[str]:
    """The faults of a class `It` with that body."""
    space: dict[str, Any] = dict(vars(plugin_sdk))
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    exec(f"class It({base}):\n{lines}\n", space)  # noqa: S102 - it is the test's own text
    return list(faults_of(space["It"]))


@pytest.mark.parametrize(
    ("base", "body", "told"),
    [
        ("Auth", "...", "It does not define authenticate, which an auth plugin must"),
        ("Auth", "def authentciate(self, r): ...", 'must; is "authentciate" meant to be it?'),
        ("Auth", "def authenticate(self): ...", "It.authenticate takes (self), and is called with (self, request)"),
        ("Auth", "def authenticate(self, a, b): ...", "takes (self, a, b), and is called with (self, request)"),
        ("Auth", "authenticate = 3", "It.authenticate is no method"),
        (
            "Auth",
            "def __init__(self): ...",
            "It.__init__ takes (self), and is called with (config, name=..., services=...)",
        ),
        ("Auth", "def authenticate(self, r):\n    yield r", "It.authenticate is a generator: return what it gives"),
        ("Auth", "def authenticate(self, r): ...\ndef open(self): ...", "It.open must be `async def`"),
        ("Auth", "def authenticate(self, r): ...\nasync def close(self, x): ...", "It.close takes (self, x)"),
        ("Route", "...", "It does not define resolve, which a route plugin must"),
        ("Route", "def resolve(self, r): ...", "is called with (self, request, targets)"),
        ("Route", "def resolve(self, r, t): ...\ndef models(self):\n    yield 1", "is a generator"),
        ("Route", "def resolve(self, r, t): ...\nasync def finished(self, t, o): ...", "must be a plain `def`"),
        ("Stats", "...", "It does not define record"),
        ("Device", "provides = 'npu'", "It does not define probe"),
        ("Device", "def probe(self): ...", 'It does not say what it provides: provides = "NAME"'),
        ("Device", "provides = 3\ndef probe(self): ...", "It does not say what it provides"),
        ("Interface", "provides = 'haiku'", "It does not define endpoints"),
        ("Interface", "endpoints = (Endpoint('/v1/x', 'x'),)", "It does not say what it provides"),
        ("Interface", "provides = 'haiku'\nendpoints = ('/v1/x',)", "It.endpoints must be a tuple of Endpoint"),
        *(
            ("Interface", f"provides = 'haiku'\nendpoints = (Endpoint({path!r}, 'x'),)", told)
            for path, told in (
                ("v1/x", "It.endpoints: 'v1/x' is no path that can be asked for: it begins with \"/\""),
                ("/v1/x?y=1", "is no path that can be asked for"),
                ("/v1/%78", "is no path that can be asked for"),
                (5, "It.endpoints: 5 is no endpoint: path, operation and method must be text"),
                ("/-/status", "It.endpoints: '/-/status' belongs to the sidecar itself"),
                ("/-", "belongs to the sidecar itself"),
                ("/v1/models", "belongs to the sidecar itself"),
                ("/v1/models/all", "belongs to the sidecar itself"),
                ("/upstream/x/y", "belongs to the sidecar itself"),
            )
        ),
        ("Interface", "provides = 'x'\nendpoints = (Endpoint('/x', 'x', 'post'),)", "methods are in capitals"),
        ("Filter", "...", "It does not define any hook, so it would do nothing; hooks: on_chunk, on_end"),
        ("Filter", "def on_reqest(self, e): ...", 'It.on_reqest is no hook; did you mean "on_request"?'),
        ("Filter", "def on_end(self, e, o): ...\ndef on_chunks(self, e, c): ...", 'did you mean "on_chunk"?'),
        ("Filter", "def on_chunk(self, e, c): ...\ndef on_event(self, e, v): ...", "sees either bytes or events"),
        ("Filter", "def on_chunk(self, chunk): ...", "is called with (self, exchange, chunk)"),
        ("Stats", "def record(self, o): ...\ndef record_many(self): ...", "It.record_many takes (self)"),
        ("Auth, Stats", "def authenticate(self, r): ...\ndef record(self, o): ...", "It is of several kinds"),
    ],
)
def test_what_is_wrong_is_told(base: str, body: str, told: str) -> None:
    assert told in "\n".join(faults(base, body))


@pytest.mark.parametrize(
    ("base", "body"),
    [
        ("Auth", "async def authenticate(self, request): ..."),
        ("Auth", "@staticmethod\ndef authenticate(request): ..."),
        ("Auth", "@classmethod\ndef authenticate(cls, request): ..."),
        ("Auth", "def authenticate(self, *args, **kwargs): ..."),
        ("Auth", "def authenticate(self, request, extra=None): ...\ndef on_purpose(self): ..."),
        ("Route", "def resolve(self, request, targets): ...\ndef finished(self, target, outcome): ..."),
        ("Route", "def resolve(self, request, targets): ...\nasync def models(self): ..."),
        ("Filter", "def on_end(self, exchange, outcome): ..."),
        ("Interface", "provides = 'x'\nendpoints = (Endpoint('/v1/models-of-mine', 'x', 'GET'),)"),
        ("Interface", "provides = 'x'\nendpoints = (Endpoint('/x', 'x'),)\ndef usage(self, tail, streamed): ..."),
    ],
)
def test_what_is_right_is_not(base: str, body: str) -> None:
    assert faults(base, body) == []


@pytest.mark.parametrize("plugin", [cpu.Cpu, interfaces.Chat, keys.StaticKeys, log.Log])
def test_the_built_in_ones_are_what_they_say(plugin: type[Any]) -> None:
    assert list(faults_of(plugin)) == []


@pytest.mark.parametrize("name", ["auth", "route", "stats", "on_request", "on_chunk", "on_event", "on_end"])
def test_a_decorated_function_with_wrong_parameters_is_refused(name: str) -> None:
    made = getattr(plugin_sdk, name)(lambda: None)
    [told] = faults_of(made)
    assert "takes ()" in told
    assert "called with (" in told
