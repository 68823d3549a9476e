"""What interface plugins do is watched and counted; what they do wrong reaches no client."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from plugin_sdk import Interface, NotReady, Reject, Reply, Request, Upstream, Usage
from sidecar.mechanism.bounded import PluginCallError
from sidecar.mechanism.instance import Instance
from sidecar.mechanism.modes import Mode
from sidecar.mechanism.watchdog import Watchdog
from tests.mechanism.conftest import block_until
from tests.support import plugin

REQUEST = Request(method="POST", path="/v1/haiku", body=b"{}")
ERROR = (503, "exited", "exited with code 7", None)


class Haiku(Interface):
    """Does in each method what it is told: raises an error, or returns anything else."""

    provides = "haiku"
    does: Any = None

    def _do(self) -> Any:
        if isinstance(self.does, BaseException):
            raise self.does
        return self.does() if callable(self.does) else self.does

    async def ready(self, upstream: Any) -> bool:
        return self._do()  # type: ignore[no-any-return] # untyped plugins return anything

    def validate(self, request: Request) -> None:
        return self._do()  # type: ignore[no-any-return] # as above

    def usage(self, tail: bytes, streamed: bool) -> Usage | None:
        return self._do()  # type: ignore[no-any-return] # as above

    def error(self, status: int, code: str, message: str, param: str | None = None) -> bytes:
        return self._do()  # type: ignore[no-any-return] # as above

    def error_event(self, error: bytes) -> bytes:
        return self._do()  # type: ignore[no-any-return] # as above


class Nowhere:
    """A server that is never asked."""

    async def get(self, path: str) -> Reply:
        raise AssertionError

    async def post(self, path: str, body: bytes) -> Reply:
        raise AssertionError


async def used(does: Any, cls: type[Interface] = Haiku, deadline_s: float = 5.0) -> tuple[Mode, Instance]:
    instance = Instance("haiku", plugin(cls, deadline_s=deadline_s))
    await instance.open()
    assert isinstance(instance.plugin, Interface)
    if isinstance(instance.plugin, Haiku):
        instance.plugin.does = does
    return Mode(instance, instance.plugin), instance


def counted(instance: Instance) -> tuple[int, int, int]:
    """Calls that went well, those that failed, and durations that are held."""
    return instance.runs, instance.failed, len(instance.durations_s)


async def test_calls_that_go_well_are_counted_with_their_durations() -> None:
    mode, instance = await used(b"said")
    assert (mode.error(*ERROR), mode.error_event(b"{}")) == (b"said", b"said")
    assert counted(instance) == (2, 0, 2)
    mode, instance = await used(None)
    mode.validate(REQUEST)
    assert mode.usage(b"", streamed=False) is None
    assert counted(instance) == (2, 0, 2)
    mode, instance = await used(Usage(input_tokens=3))
    assert mode.usage(b"", streamed=True) == Usage(input_tokens=3)


async def test_what_is_not_overridden_is_not_called() -> None:
    class Plain(Interface):
        provides = "plain"

    mode, instance = await used(None, Plain)
    assert not mode.validates
    mode.validate(REQUEST)
    assert counted(instance) == (0, 0, 0)


@pytest.mark.parametrize("does", [KeyError("words"), SystemExit(3), TimeoutError(), Reject(400, "no"), "text", 7])
async def test_no_words_and_no_counts_are_had_from_a_method_that_fails(does: Any) -> None:
    mode, instance = await used(does)
    assert mode.error(*ERROR) is None
    assert mode.error_event(b"{}") is None
    assert mode.usage(b"", streamed=False) is None
    assert counted(instance) == (0, 3, 0)
    assert "Error" in instance.last_error or "Reject" in instance.last_error


async def test_an_error_that_would_break_an_event_in_two_is_a_failure() -> None:
    mode, instance = await used(b'{\n"error": {}}')
    assert (mode.error(*ERROR), instance.failed) == (None, 1)


@pytest.mark.parametrize("usage", [{"input_tokens": "3"}, {"output_tokens": -5}, {"response_model": None}])
async def test_counts_that_are_none_are_a_failure(usage: dict[str, Any]) -> None:
    mode, instance = await used(Usage(**usage))
    assert (mode.usage(b"", streamed=False), instance.failed) == (None, 1)


async def test_an_error_without_a_body_is_a_failure() -> None:
    mode, instance = await used(None)
    assert mode.error(*ERROR) is None
    assert instance.failed == 1
    assert "TypeError: expected bytes, got NoneType" in instance.last_error


async def test_a_request_that_is_refused_is_no_failure() -> None:
    mode, instance = await used(Reject(400, "five syllables, please"))
    with pytest.raises(Reject, match="five syllables"):
        mode.validate(REQUEST)
    assert instance.failed == 0


@pytest.mark.parametrize("does", [KeyError("words"), SystemExit(3), True])
async def test_a_request_that_cannot_be_judged_is_refused(does: Any) -> None:
    mode, instance = await used(does)
    with pytest.raises(Reject) as refused:
        mode.validate(REQUEST)
    assert (refused.value.status, refused.value.code) == (503, "interface_unavailable")
    assert instance.failed == 1


async def test_a_plugin_that_is_left_out_judges_no_request_and_has_no_words() -> None:
    mode, instance = await used(None)
    instance.out = True
    with pytest.raises(Reject, match="is not available"):
        mode.validate(REQUEST)
    assert mode.error(*ERROR) is None
    assert mode.usage(b"", streamed=False) is None
    assert mode.validates
    assert instance.failed == 0


@pytest.mark.parametrize("does", [True, False])
async def test_whether_a_server_is_ready_is_an_answer(does: bool) -> None:
    mode, instance = await used(does)
    assert await mode.ready(Nowhere()) is does
    assert counted(instance) == (1, 0, 1)


@pytest.mark.parametrize("does", [NotReady("loading"), ConnectionRefusedError("nobody there"), TimeoutError()])
async def test_a_server_that_is_not_ready_is_no_failure_of_the_plugin(does: Exception) -> None:
    mode, instance = await used(does)
    with pytest.raises(type(does)):
        await mode.ready(Nowhere())
    assert counted(instance) == (1, 0, 1)


@pytest.mark.parametrize(
    ("does", "error"), [(KeyError("status"), KeyError), (SystemExit(3), PluginCallError), ("yes", TypeError)]
)
async def test_a_probe_that_fails_is_counted_and_raises(does: Any, error: type[Exception]) -> None:
    mode, instance = await used(does)
    with pytest.raises(error):
        await mode.ready(Nowhere())
    assert counted(instance) == (0, 1, 0)


async def test_a_server_that_hangs_is_not_ready_when_the_deadline_is_over() -> None:
    class Hangs(Interface):
        """Waits for a server that never answers."""

        provides = "hangs"

        async def ready(self, upstream: Upstream) -> bool:
            return await asyncio.Event().wait()

    mode, instance = await used(None, Hangs, deadline_s=0.02)
    for ask in (mode.ready, mode.alive):
        with pytest.raises(TimeoutError, match=r"the health check did not answer within 0\.02 s"):
            await ask(Nowhere())
    assert counted(instance) == (2, 0, 2)


async def test_whether_a_server_is_alive_is_what_ready_says_unless_the_plugin_knows_better() -> None:
    class Deep(Interface):
        """Asks for work once."""

        provides = "deep"

        async def ready(self, upstream: Upstream) -> bool:
            raise NotReady("it does not work")

        async def alive(self, upstream: Upstream) -> bool:
            return True

    mode, _ = await used(None, Deep)
    with pytest.raises(NotReady):
        await mode.ready(Nowhere())
    assert await mode.alive(Nowhere())
    mode, instance = await used(False)
    assert not await mode.alive(Nowhere())
    assert counted(instance) == (1, 0, 1)


@pytest.mark.parametrize("method", ["error", "error_event", "usage", "validate"])
async def test_a_method_that_blocks_the_loop_is_named(method: str, caplog: pytest.LogCaptureFixture) -> None:
    mode, instance = await used(lambda: block_until(lambda: caplog.messages))
    watchdog = Watchdog(lambda: (instance.marker,))
    watchdog.start()
    arguments: dict[str, tuple[Any, ...]] = {
        "error": ERROR,
        "error_event": (b"{}",),
        "usage": (b"", False),
        "validate": (REQUEST,),
    }
    with caplog.at_level(logging.WARNING, "sidecar.mechanism.watchdog"):
        getattr(mode, method)(*arguments[method])
    watchdog.close()
    assert instance.marker.blocked == 1
    assert caplog.messages[0].startswith("plugin haiku is blocking the event loop at ")
    assert caplog.messages[0].endswith("(block_until)")
