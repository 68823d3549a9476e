"""A route opens when the server that we started answers on its port, and not for anything less."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from plugin_sdk import NotReady
from sidecar.builtin.interfaces import Chat
from sidecar.mechanism.instance import Instance
from sidecar.mechanism.modes import Mode
from sidecar.mechanism.readiness import NeverReadyError, Wait, until_ready
from sidecar.mechanism.runner import Launch, ServerProcess, child_environment, send, spawn
from sidecar.mechanism.serverlog import ServerLog
from sidecar.mechanism.upstream import Client
from tests.servers import HTTP_SERVER, PROCESS
from tests.support import PATIENCE_S, free_port, plugin, serving, until

Start = Callable[..., Awaitable[ServerProcess]]


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
async def start(tmp_path: Path, port: int) -> AsyncIterator[Start]:
    """`await start(flags)` runs `tests.servers.http_server` on the port."""
    started: list[ServerProcess] = []

    async def begin(*flags: str, script: str = HTTP_SERVER) -> ServerProcess:
        argv = (sys.executable, script, *flags, *(["--port", str(port)] if script == HTTP_SERVER else []))
        marker = f"{tmp_path}#{len(started)}"
        env = child_environment(os.environ, {}, marker)
        process = await spawn(
            Launch(argv=argv, env=env, cwd=tmp_path, marker=marker, log=ServerLog(tmp_path, f"m{len(started)}"))
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        for one in process.family():
            send(one, signal.SIGKILL)
        await asyncio.wait_for(process.stop(0), PATIENCE_S)


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    made = Client()
    yield made
    await made.close()


def wait(port: int, client: Client, timeout_s: float = PATIENCE_S, *, foreign: bool = False) -> Wait:
    """With the probe of the chat mode, as the control floor does it."""
    upstream = client.probe(f"http://127.0.0.1:{port}")
    return Wait(port=port, ready=lambda: Chat().ready(upstream), timeout_s=timeout_s, foreign_listener=foreign)


async def failure(process: ServerProcess, waits: Wait) -> tuple[str, str]:
    """(reason, message) of a wait that must fail."""
    with pytest.raises(NeverReadyError) as told:
        await until_ready(process, waits)
    return told.value.reason, str(told.value)


async def test_a_server_that_listens_and_is_healthy_is_ready(start: Start, client: Client, port: int) -> None:
    await until_ready(await start(), wait(port, client))


async def test_one_that_binds_late_is_waited_for(start: Start, client: Client, port: int) -> None:
    began = time.monotonic()
    await until_ready(await start("--delay-bind", "0.4"), wait(port, client))
    assert time.monotonic() - began >= 0.4


async def test_one_that_is_still_loading_is_waited_for(start: Start, client: Client, port: int) -> None:
    began = time.monotonic()
    await until_ready(await start("--unhealthy-for", "0.4"), wait(port, client))
    assert time.monotonic() - began >= 0.4


async def test_one_that_exits_is_given_up_at_once_with_its_code(start: Start, client: Client, port: int) -> None:
    began = time.monotonic()
    process = await start("--stderr-line", "no such model", "--exit-after", "0", "--exit-code", "5")
    reason, message = await failure(process, wait(port, client, 60))
    assert (reason, message) == ("Exited", "the server exited with code 5 before it was ready")
    assert process.log.tail() == ["no such model"]
    assert time.monotonic() - began < PATIENCE_S


async def test_one_that_is_killed_while_it_loads_is_given_up_at_once(start: Start, client: Client, port: int) -> None:
    process = await start("--unhealthy-for", "inf")
    waiting = asyncio.create_task(failure(process, wait(port, client, 60)))
    await until(lambda: process.owns_port(port), "it listens")
    os.kill(process.pid, signal.SIGKILL)
    assert await asyncio.wait_for(waiting, 2) == ("Exited", "the server was killed by SIGKILL before it was ready")


async def test_one_that_exits_while_its_health_check_hangs_is_given_up_soon(
    start: Start, client: Client, port: int
) -> None:
    process = await start("--hang-health")
    waiting = asyncio.create_task(failure(process, wait(port, client, 60)))
    await until(lambda: process.owns_port(port), "it listens")
    await asyncio.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    assert (await asyncio.wait_for(waiting, 2))[0] == "Exited"


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--unhealthy-for", "inf"), 'health check answered 503: {"error": {"message": "Loading model", "code": 503}}'),
        (("--delay-bind", "60"), "nothing listens on its port"),
    ],
)
async def test_one_that_never_gets_healthy_is_given_up_with_the_last_reason(
    start: Start, client: Client, port: int, flags: tuple[str, ...], why: str
) -> None:
    process = await start(*flags)
    if "--unhealthy-for" in flags:
        await until(lambda: process.owns_port(port), "it listens")
    reason, message = await failure(process, wait(port, client, 1.5))
    assert (reason, message) == ("LoadTimeout", f"not ready within load_timeout (1.5 s): {why}")
    assert not process.exited.done()


async def test_a_health_check_that_hangs_does_not_outlast_its_deadline(start: Start, client: Client, port: int) -> None:
    instance = Instance("chat", plugin(Chat, deadline_s=0.1))
    await instance.open()
    mode, upstream, tries = Mode(instance, Chat()), client.probe(f"http://127.0.0.1:{port}"), 0

    async def ready() -> bool:
        nonlocal tries
        tries += 1
        return await mode.ready(upstream)

    process = await start("--hang-health")
    await until(lambda: process.owns_port(port), "it listens")
    reason, message = await failure(process, Wait(port=port, ready=ready, timeout_s=1.5))
    assert (reason, tries > 1) == ("LoadTimeout", True)
    assert message.endswith("the health check did not answer within 0.1 s")


async def test_a_stranger_on_the_port_is_detected_and_not_served(start: Start, client: Client) -> None:
    with serving(HTTP_SERVER) as stranger:
        process = await start(script=PROCESS)
        reason, message = await failure(process, wait(stranger.port, client))
    assert reason == "PortTaken"
    assert message == f"another program listens on port {stranger.port}, which was the server's"


async def test_a_stranger_on_another_address_of_the_port_is_detected(start: Start, client: Client, port: int) -> None:
    process = await start()
    await until(lambda: process.owns_port(port), "it listens")
    with serving(HTTP_SERVER, "--host", "127.0.0.2", "--port", str(port)):
        assert (await failure(process, wait(port, client)))[0] == "PortTaken"


async def test_a_stranger_is_let_through_where_the_manifest_says_so(start: Start, client: Client) -> None:
    with serving(HTTP_SERVER) as proxy:  # as a container engine's proxy is
        await until_ready(await start(script=PROCESS), wait(proxy.port, client, foreign=True))


async def test_a_server_whose_child_listens_is_ready(start: Start, client: Client, port: int) -> None:
    await until_ready(await start("--serve-in-child"), wait(port, client))


@pytest.mark.parametrize("error", [NotReady(""), OSError(), ConnectionRefusedError()])
async def test_a_probe_that_fails_without_a_word_has_failed_all_the_same(
    start: Start, port: int, error: Exception
) -> None:
    async def ready() -> bool:
        raise error

    process = await start()
    assert (await failure(process, Wait(port=port, ready=ready, timeout_s=0.5)))[0] == "LoadTimeout"


async def test_whatever_the_probe_says_is_told(start: Start, port: int) -> None:
    answers: list[tuple[bool | Exception, str]] = [
        (False, "the interface's probe says not yet"),
        (NotReady("loading 40 %"), "loading 40 %"),
        (OSError("no answer"), "no answer"),
        (ZeroDivisionError("division by zero"), "the interface's probe failed: ZeroDivisionError: division by zero"),
    ]

    async def told(answer: bool | Exception) -> str:
        async def ready() -> bool:
            if isinstance(answer, Exception):
                raise answer
            return answer

        return (await failure(process, Wait(port=port, ready=ready, timeout_s=2.0)))[1]

    process = await start()
    await until(lambda: process.owns_port(port), "it listens")
    messages = await asyncio.gather(*(told(answer) for answer, _ in answers))
    assert messages == [f"not ready within load_timeout (2 s): {why}" for _, why in answers]


async def test_a_wait_can_be_cancelled(start: Start, client: Client, port: int) -> None:
    process = await start("--unhealthy-for", "inf")
    waiting = asyncio.create_task(until_ready(process, wait(port, client, 60)))
    await until(lambda: process.owns_port(port), "it listens")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not process.exited.cancelled()
