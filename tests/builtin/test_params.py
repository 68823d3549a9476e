"""Request fields that the manifest sets, fills in or takes out, and all others, which nobody touches."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugin_sdk import Exchange, Reject, Request
from plugin_sdk.kinds import is_inline
from sidecar.builtin.params import Params, Settings
from tests.support import plugin

pure = settings(max_examples=200, deadline=None, derandomize=True, database=None)


async def opened(**config: Any) -> Params:
    loaded = plugin(Params, "params", **config)
    assert isinstance(loaded.config, Settings)
    made = Params(loaded.config)
    await made.open()
    return made


def after(params: Params, body: bytes, method: str = "POST") -> bytes:
    """The body that is sent on."""
    request = Request(method=method, path="/v1/chat/completions", body=body, model="qwen")
    changed = params.on_request(Exchange(request))
    if changed is None:
        return body
    assert (changed.model, changed.path) == ("qwen", "/v1/chat/completions")
    return changed.body


async def test_a_field_that_is_set_replaces_the_clients() -> None:
    params = await opened(set={"temperature": 0, "chat_template_kwargs": {"enable_thinking": False}})
    expected = b'{"model":"m","temperature":0,"n":1,"chat_template_kwargs":{"enable_thinking":false}}'
    assert after(params, b'{"model": "m", "temperature": 0.7, "n": 1}') == expected


async def test_a_default_is_for_those_who_say_nothing() -> None:
    params = await opened(default={"max_tokens": 512})
    assert after(params, b'{"model":"m"}') == b'{"model":"m","max_tokens":512}'
    for said in (b'{"model": "m", "max_tokens": 9}', b'{"max_tokens": null }'):
        assert after(params, said) is said


async def test_a_field_that_is_stripped_is_gone_however_often_it_stands_there() -> None:
    params = await opened(strip=["logit_bias", "user"])
    assert after(params, b'{"user":"a","model":"m","user":"b"}') == b'{"model":"m"}'
    assert after(params, b'{"us\\u0065r":"a","model":"m"}') == b'{"model":"m"}'
    untouched = b'{ "model" : "m", "users": 1 }'
    assert after(params, untouched) is untouched


async def test_another_case_is_no_way_around_what_the_manifest_says() -> None:
    params = await opened(set={"Max_Tokens": 100}, default={"temperature": 0}, strip=["user"])
    body = '{"max_tokens":9999,"MAX_TOKENS":9,"TEMPERATURE":2,"USER":"a","u\u017fer":"b","user":"c"}'
    assert after(params, body.encode()) == b'{"TEMPERATURE":2,"Max_Tokens":100}'
    untouched = b'{"Temperature":2}'
    assert after(await opened(default={"temperature": 0}), untouched) is untouched


async def test_a_field_that_stands_there_twice_is_no_way_around_what_is_set() -> None:
    params = await opened(set={"max_tokens": 100})
    assert after(params, b'{"max_tokens":9999,"max_tokens":100}') == b'{"max_tokens":100}'


async def test_all_else_stays_byte_for_byte_and_in_its_order() -> None:
    params = await opened(set={"n": 1}, strip=["user"])
    big = b'{"z":1.10,"a":123456789012345678901234567890,"user":"x","b":{ "k": 1, "k": 2 },"c":[ 1 , 2 ],"d":"\\u00e9"}'
    kept = b'{"z":1.10,"a":123456789012345678901234567890,"b":{ "k": 1, "k": 2 },"c":[ 1 , 2 ],"d":"\\u00e9","n":1}'
    assert after(params, big) == kept


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'"text"', b"{", b"--form\r\n", b"\xff", pytest.param(b"[" * 100_000, id="deep")]
)
async def test_a_body_that_is_no_object_is_refused_as_it_would_go_past_the_manifest(body: bytes) -> None:
    params = await opened(strip=["user"])
    with pytest.raises(Reject, match="the body must be a JSON object") as refused:
        after(params, body)
    assert (refused.value.status, refused.value.code) == (400, "invalid_json")


async def test_a_request_without_a_body_passes() -> None:
    params = await opened(set={"n": 1})
    assert after(params, b"", "GET") == b""


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({}, "expected fields under set, default or strip"),
        ({"set": {"n": 1}, "strip": ["n"]}, '"n" is named twice'),
        ({"set": {"n": 1}, "default": {"n": 2}}, '"n" is named twice'),
        ({"strip": ["n", "n"]}, '"n" is named twice'),
        ({"set": {"n": 1}, "strip": ["N"]}, '"n" is named twice'),
        ({"strip": ["Model"]}, '"model" decides where the request goes'),
        ({"set": {"model": "x"}}, '"model" decides where the request goes'),
        ({"strip": ["model"]}, '"model" decides where the request goes'),
    ],
)
def test_settings_that_contradict_themselves_are_refused_at_load(config: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Settings(**config)


async def test_many_at_once_do_not_mix() -> None:
    params = await opened(set={"n": 1}, default={"k": 2}, strip=["s"])

    async def one(number: int) -> dict[str, Any]:
        body = json.dumps({"id": number, "s": number, **({"k": number} if number % 2 else {})}).encode()
        await asyncio.sleep(0)
        found: dict[str, Any] = json.loads(after(params, body))
        return found

    found = await asyncio.gather(*map(one, range(50)))
    assert found == [{"id": number, "k": number if number % 2 else 2, "n": 1} for number in range(50)]


def test_it_never_blocks() -> None:
    assert is_inline(Params.on_request)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@pure
@given(st.dictionaries(st.sampled_from("abcdef"), VALUES))
def test_whatever_is_asked_the_named_fields_obey_and_no_other_changes(body: dict[str, Any]) -> None:
    params = Params(Settings(set={"a": 1}, default={"b": [2]}, strip=("c",)))
    asyncio.run(params.open())
    found = json.loads(after(params, json.dumps(body).encode()))
    expected = {"b": [2], **{name: value for name, value in body.items() if name != "c"}, "a": 1}
    assert found == expected
