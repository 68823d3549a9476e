"""The kinds of plugin: what a class of each gets without writing it."""

from __future__ import annotations

import logging
from typing import Any, Generic, TypeVar

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugin_sdk import (
    Auth,
    Config,
    Device,
    DeviceStatus,
    Interface,
    NotReady,
    Outcome,
    Plugin,
    Principal,
    Reply,
    Request,
    Stats,
    Usage,
    device,
    inline,
)
from plugin_sdk.kinds import is_inline, settings_of
from plugin_sdk.usage import openai_usage

C = TypeVar("C", bound=Config)
T = TypeVar("T")

pure = settings(max_examples=200, deadline=None, derandomize=True, database=None)


class Limits(Config):
    most: int = 5


class Strict(Config):
    path: str


class Plain(Auth):
    """Without settings."""


class Limited(Auth[Limits]):
    @inline
    def authenticate(self, request: Request) -> Principal:
        return Principal(f"{self.config.most}")


class Inherits(Limited):
    def authenticate(self, request: Request) -> Principal:
        return Principal("other")


class Mixin(Generic[T]):
    """Generic, but no plugin."""


class Mixed(Mixin[int], Auth[Limits]):
    """A mixin's argument is no settings."""


class Family(Auth[C]):
    """Leaves the settings to those who inherit."""


class Member(Family[Limits]):
    """Says them."""


class Tagged(Auth[Limits], Generic[T]):
    """Has a type parameter of its own."""


class OfNumbers(Tagged[int]):
    """Says that one, which is no settings."""


class NeedsPath(Stats[Strict]):
    """Has a required setting."""


@pytest.mark.parametrize(
    ("plugin", "kind"),
    [
        (Plain, Config),
        (Limited, Limits),
        (Inherits, Limits),
        (Mixed, Limits),
        (Family, Config),
        (Member, Limits),
        (OfNumbers, Limits),
        (Plugin, Config),
        (Device, Config),
    ],
)
def test_the_settings_of_a_plugin_are_those_that_its_class_was_given(plugin: type[Plugin[Any]], kind: type) -> None:
    assert settings_of(plugin) is kind


def test_a_plugin_has_its_config_a_name_and_a_logger() -> None:
    given_all = Limited(Limits(7), name="gate")
    assert (given_all.config, given_all.name, given_all.log.name) == (Limits(7), "gate", "sidecar.plugins.gate")
    assert isinstance(given_all.log, logging.Logger)
    by_default = Limited()
    assert (by_default.config, by_default.name) == (Limits(), "Limited")


def test_a_plugin_with_a_required_setting_cannot_do_without_config() -> None:
    with pytest.raises(TypeError, match="path"):
        NeedsPath()
    assert NeedsPath(Strict("x")).config.path == "x"


async def test_opening_and_closing_do_nothing_by_themselves() -> None:
    plugin = Plain()
    await plugin.open()
    await plugin.close()


def test_the_one_method_has_to_be_written() -> None:
    with pytest.raises(NotImplementedError):
        Device().probe()
    with pytest.raises(NotImplementedError):
        Plain().authenticate(Request(method="POST", path="/"))
    with pytest.raises(NotImplementedError):
        Stats().record(Outcome(model="m"))
    with pytest.raises(NotImplementedError):
        Stats().record_many([])


def test_each_kind_has_a_name() -> None:
    assert [kind.kind for kind in (Plugin, Device, Interface, Auth, Stats)] == [
        "",
        "device",
        "interface",
        "auth",
        "stats",
    ]


def test_inline_is_a_mark_that_an_override_does_not_inherit() -> None:
    assert is_inline(Limited().authenticate)
    assert not is_inline(Inherits().authenticate)
    assert not is_inline(Plain().authenticate)


# --- devices of a function ------------------------------------------------------------------------------------------


@device("my_gpu", visibility_env="MY_VISIBLE_DEVICES")
def my_gpu() -> DeviceStatus:
    """A GPU of mine."""
    return DeviceStatus(total_mb=16384, free_mb=8192)


@device("later")
async def later() -> list[DeviceStatus]:
    return []


@device("quick")
@inline
def quick() -> list[DeviceStatus]:
    return []


def test_a_function_becomes_a_device_class() -> None:
    assert issubclass(my_gpu, Device)
    assert (my_gpu.__name__, my_gpu.__doc__, my_gpu.__module__) == ("my_gpu", "A GPU of mine.", __name__)
    assert (my_gpu.provides, my_gpu.visibility_env, my_gpu.kind) == ("my_gpu", "MY_VISIBLE_DEVICES", "device")
    assert my_gpu().probe() == DeviceStatus(total_mb=16384, free_mb=8192)
    assert settings_of(my_gpu) is Config


async def test_the_function_may_be_a_coroutine_function() -> None:
    assert later.visibility_env == ""
    found = later().probe()
    assert not isinstance(found, DeviceStatus | list)
    assert await found == []


def test_the_function_may_promise_not_to_block() -> None:
    assert is_inline(quick().probe)
    assert not is_inline(my_gpu().probe)


# --- interfaces -----------------------------------------------------------------------------------------------------


class Server:
    """An upstream with fixed answers; 404 for the rest."""

    def __init__(self, **replies: Reply) -> None:
        self._replies = replies
        self.asked: list[str] = []

    async def get(self, path: str) -> Reply:
        self.asked.append(path)
        return self._replies.get(path.rpartition("/")[2], Reply(404))

    async def post(self, path: str, body: bytes) -> Reply:
        raise AssertionError(f"nobody posts to {path}")


async def test_a_server_is_ready_when_its_health_is_good() -> None:
    server = Server(health=Reply(200))
    assert await Interface().ready(server)
    assert server.asked == ["/health"]


async def test_a_server_without_health_is_ready_when_it_lists_models() -> None:
    server = Server(models=Reply(200))
    assert await Interface().ready(server)
    assert server.asked == ["/health", "/v1/models"]


@pytest.mark.parametrize("reply", [Reply(503, b"loading \xff model"), Reply(302, b"elsewhere")])
async def test_a_server_that_is_not_ready_says_why(reply: Reply) -> None:
    with pytest.raises(
        NotReady, match=f"health check answered {reply.status}: (loading \N{REPLACEMENT CHARACTER} model|elsewhere)"
    ):
        await Interface().ready(Server(health=reply))


async def test_a_long_answer_is_cut() -> None:
    with pytest.raises(NotReady) as caught:
        await Interface().ready(Server(health=Reply(500, b"x" * 10_000)))
    assert len(str(caught.value)) < 300


async def test_a_server_with_neither_path_is_not_ready() -> None:
    with pytest.raises(NotReady, match="404"):
        await Interface().ready(Server())


def test_an_interface_refuses_nothing_and_reads_openai_usage_by_default() -> None:
    interface = Interface()
    interface.validate(Request(method="POST", path="/"))
    assert interface.usage(b'{"usage": {"prompt_tokens": 3}}', streamed=False) == Usage(input_tokens=3)


# --- usage ----------------------------------------------------------------------------------------------------------

CHUNK = b'data: {"model": "m", "choices": [{"delta": {"content": "\\"usage\\""}}], "usage": null}\n\n'
LAST = b'data: {"model": "m", "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4}}\n\n'


def test_usage_of_a_whole_body() -> None:
    body = (
        b'{"id": "x", "model": "qwen", "usage": {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13, '
        b'"prompt_tokens_details": {"cached_tokens": 7}}}'
    )
    found = Usage(input_tokens=9, output_tokens=4, cached_tokens=7, response_model="qwen")
    assert openai_usage(body, streamed=False) == found


def test_the_input_follows_from_the_total_where_it_is_not_given() -> None:
    assert openai_usage(b'{"usage": {"total_tokens": 12}}', streamed=False) == Usage(input_tokens=12)
    more_out_than_all = b'{"usage": {"total_tokens": 2, "completion_tokens": 3}}'
    assert openai_usage(more_out_than_all, streamed=False) == Usage(output_tokens=3)


@pytest.mark.parametrize("details", [b"null", b"{}", b'{"cached_tokens": null}', b'{"cached_tokens": "many"}'])
def test_details_that_tell_nothing_are_no_cached_tokens(details: bytes) -> None:
    body = b'{"usage": {"prompt_tokens": 1, "prompt_tokens_details": ' + details + b"}}"
    assert openai_usage(body, streamed=False) == Usage(input_tokens=1)


@pytest.mark.parametrize("end", [b"data: [DONE]\n\n", b"", b": comment\n\n"])
def test_usage_of_a_stream_stands_in_its_last_event_that_has_one(end: bytes) -> None:
    found = Usage(input_tokens=9, output_tokens=4, response_model="m")
    assert openai_usage(CHUNK + LAST + end, streamed=True) == found
    assert openai_usage((CHUNK + LAST + end).replace(b"\n", b"\r\n"), streamed=True) == found
    assert openai_usage(LAST + CHUNK + end, streamed=True) == found


def test_the_tail_of_a_stream_may_begin_in_the_middle_of_an_event() -> None:
    assert openai_usage(LAST[20:] + LAST, streamed=True) is not None
    assert openai_usage(LAST[20:], streamed=True) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b'{"choices": []}',
        b'{"usage": null}',
        b'{"usage": {"prompt_tokens": "many"}}',
        b'{"usage": {"prompt_tokens": 9',
        CHUNK,
    ],
)
def test_no_usage_is_none(body: bytes) -> None:
    assert openai_usage(body, streamed=False) is None
    assert openai_usage(b"data: " + body, streamed=True) is None


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "\xff", "usage": {"prompt_tokens": 1}}',
        b'{"usage": {"prompt_tokens": 1, "prompt_tokens_details": {"\xff": 1}}}',
        b'{"x": ' + b"[" * 100_000,
    ],
    ids=["not UTF-8", "not UTF-8 in the details", "nested without end"],
)
def test_a_body_that_cannot_be_decoded_has_no_usage(body: bytes) -> None:
    assert openai_usage(body, streamed=False) is None
    assert openai_usage(b'data: {"usage": 0}\ndata: ' + body.replace(b'"x"', b'"usage"'), streamed=True) is None


@pure
@given(st.binary(max_size=40), st.sampled_from([b"", LAST, b'{"model": "']), st.booleans())
def test_no_body_makes_it_raise(noise: bytes, before: bytes, streamed: bool) -> None:
    found = openai_usage(before + noise, streamed)
    assert found is None or isinstance(found, Usage)


def test_usage_is_a_plain_value() -> None:
    assert msgspec.to_builtins(Usage(input_tokens=1))["input_tokens"] == 1
