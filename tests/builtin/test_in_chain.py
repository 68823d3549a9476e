"""The built-in plugins together, in a chain as the sidecar compiles it: many at once, none mistaken for another."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from plugin_sdk import Headers, Outcome, Plugin, Reject, Request, Response, Target, Usage
from sidecar.builtin import balance, keys, limits, params, usage
from sidecar.mechanism.chain import Chain, Instance
from tests.builtin.test_keys import hashed
from tests.support import plugin, until

CALLERS = 50
TARGETS = tuple(Target(name=name, base_url=f"http://{name}") for name in "abcde")


@pytest.fixture
async def chain(tmp_path: Path) -> AsyncIterator[Chain]:
    """Keys, limits, params, balance and usage, in this order."""
    known = {hashed(f"sk-{number}"): f"team-{number}" for number in range(CALLERS)}
    stages: list[tuple[type[Plugin[Any]], str, dict[str, Any]]] = [
        (keys.StaticKeys, "keys", {"keys": known}),
        (limits.Limits, "limits", {"requests_per_minute": 4}),
        (params.Params, "params", {"set": {"user": "sidecar"}, "strip": ["logit_bias"]}),
        (balance.Balance, "balance", {"policy": "round_robin"}),
        (usage.Usage, "usage", {"path": str(tmp_path / "usage.db")}),
    ]
    instances = [Instance(name, plugin(cls, name, **config)) for cls, name, config in stages]
    for instance in instances:
        await instance.open()
        assert instance.problem == ""
    yield Chain(instances)
    for instance in instances:
        await instance.close()


async def serve(chain: Chain, number: int) -> tuple[int, str]:
    """One request as the data plane has it: its status, and where it went."""
    headers = Headers(((b"authorization", f"Bearer sk-{number}".encode()),))
    body = json.dumps({"model": "qwen", "id": number, "logit_bias": {}}).encode()
    request = Request(method="POST", path="/v1/chat/completions", headers=headers, body=body, model="qwen", mode="chat")
    principal = await chain.authenticate(request)
    assert principal.id == f"team-{number}"
    way = chain.passage("chat", 1 << 20)
    assert way is not None
    outcome = Outcome(model="qwen", principal=principal.id, status=200, started_s=1e12 + number)
    try:
        changed = await way.request(msgspec.structs.replace(request, principal=principal))
    except Reject as reject:
        await way.end(msgspec.structs.replace(outcome, status=reject.status, code=reject.code))
        chain.record(msgspec.structs.replace(outcome, status=reject.status, code=reject.code))
        return reject.status, ""
    assert isinstance(changed, Request)
    assert json.loads(changed.body) == {"model": "qwen", "id": number, "user": "sidecar"}
    routed = await chain.resolve(changed, TARGETS)
    assert routed is not None
    await asyncio.sleep(0)
    head = await way.response(Response(), "")
    assert head.headers.get("x-ratelimit-limit-requests") == "4"
    outcome = msgspec.structs.replace(outcome, usage=Usage(input_tokens=number), variant=routed.target.name)
    await way.end(outcome)
    routed.finished(outcome)
    chain.record(outcome)
    return 200, routed.target.name


async def test_many_callers_at_once_are_told_apart_by_every_stage(chain: Chain, tmp_path: Path) -> None:
    answers = await asyncio.gather(*(serve(chain, number) for number in range(CALLERS)))
    assert [status for status, _ in answers] == [200] * CALLERS
    assert sorted(name for _, name in answers) == sorted("abcde" * (CALLERS // 5))


async def test_limits_hold_for_each_caller_and_usage_has_every_request(chain: Chain, tmp_path: Path) -> None:
    answers = await asyncio.gather(*(serve(chain, number % 10) for number in range(60)))
    assert sorted(status for status, _ in answers) == [200] * 40 + [429] * 20
    database = tmp_path / "usage.db"
    await until(lambda: len(usage.read(database)) == 60, "all are written")
    rows = usage.read(database)
    for number in range(10):
        own = [row for row in rows if row["principal"] == f"team-{number}"]
        assert sorted(row["status"] for row in own) == [200] * 4 + [429] * 2
        assert {row["input_tokens"] for row in own} == {number, None}
        assert {row["code"] for row in own} == {"", "rate_limit_exceeded"}
