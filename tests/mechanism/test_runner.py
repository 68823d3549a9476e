"""Real processes: started without a shell, ended to the last grandchild, never confused with anybody else's."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import msgspec
import pytest

from sidecar.mechanism import procfs
from sidecar.mechanism.runner import (
    MARKER,
    Exit,
    Launch,
    ServerProcess,
    SpawnError,
    child_environment,
    send,
    spawn,
    stop_marked,
    take_over,
)
from sidecar.mechanism.serverlog import ServerLog
from tests import servers
from tests.servers import PROCESS
from tests.support import PATIENCE_S, until, write

TITLED = str(Path(servers.__file__).with_name("titled.py"))

Start = Callable[..., Awaitable[ServerProcess]]


def launch(folder: Path, *argv: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Launch:
    marker = str(folder)  # as unique as a server's own, also beside another run of the tests
    return Launch(
        argv=argv,
        env=child_environment(os.environ, env or {}, marker),
        cwd=cwd or folder,
        marker=marker,
        log=ServerLog(folder / "logs", "m"),
    )


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """`await start(flags)` runs `tests.servers.process`, and waits until it says that it is ready."""
    started: list[ServerProcess] = []

    async def begin(*flags: str, ready: bool = True, **env: str) -> ServerProcess:
        process = await spawn(launch(tmp_path, sys.executable, PROCESS, *flags, env=env))
        started.append(process)
        if ready:
            await until(lambda: "ready" in said(process), "it is ready")
        return process

    yield begin
    for process in started:
        for one in process.family():
            send(one, signal.SIGKILL)
        await asyncio.wait_for(process.stop(0), PATIENCE_S)


def said(process: ServerProcess) -> list[str]:
    """The lines of its stdout."""
    return process.log.out.read_text().splitlines()


def children(process: ServerProcess) -> list[int]:
    return [int(line.split()[1]) for line in said(process) if line.startswith("child ")]


def descriptors(process: ServerProcess) -> dict[str, str]:
    """What its file descriptors stand for."""
    return {link.name: str(link.readlink()) for link in Path(f"/proc/{process.pid}/fd").iterdir()}


def alive(pid: int) -> bool:
    found = procfs.process(pid)
    return found is not None and found.alive


async def end_of(process: ServerProcess) -> Exit:
    """How it ended; the future itself must not be cancelled by a test's impatience."""
    return await asyncio.wait_for(asyncio.shield(process.exited), PATIENCE_S)


# --- starting -----------------------------------------------------------------------------------------------------


async def test_arguments_arrive_as_they_are_and_no_shell_sees_them(start: Start) -> None:
    words = ["$(touch /tmp/x)", "a b", "*", "'\"", ";ls", "", "ü", "{not}"]
    process = await start("--", *words)
    assert said(process) == [*(f"word {word}" for word in words), "ready"]


async def test_it_has_a_session_of_its_own_and_no_stdin(start: Start) -> None:
    process = await start()
    found = procfs.process(process.pid)
    assert found is not None
    assert (found.session, found.group, found.parent) == (process.pid, process.pid, os.getpid())
    assert descriptors(process)["0"] == "/dev/null"


async def test_it_inherits_no_descriptor_of_ours(start: Start, tmp_path: Path) -> None:
    with (tmp_path / "secret").open("wb") as ours:
        os.set_inheritable(ours.fileno(), True)
        process = await start()
    assert set(descriptors(process).values()) == {"/dev/null", str(process.log.out), str(process.log.err)}


async def test_its_environment_is_ours_and_the_manifests_and_the_marker(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OURS", "1")
    monkeypatch.setenv("BOTH", "ours")
    flags = [flag for name in ("OURS", "BOTH", "THEIRS", "SIDECAR_SERVER") for flag in ("--show", name)]
    process = await start(*flags, BOTH="theirs", THEIRS="2", SIDECAR_SERVER="forged")
    assert said(process)[:4] == ["OURS=1", "BOTH=theirs", "THEIRS=2", f"SIDECAR_SERVER={tmp_path}"]


def test_who_sets_a_title_is_asked_to_leave_the_environment_in_place_unless_the_manifest_decides() -> None:
    assert child_environment({}, {}, "m") == {"SPT_NOENV": "1", MARKER: "m"}
    assert child_environment({"SPT_NOENV": ""}, {}, "m")["SPT_NOENV"] == ""
    assert child_environment({"SPT_NOENV": "2"}, {"SPT_NOENV": ""}, "m")["SPT_NOENV"] == ""


async def test_it_runs_where_it_is_told_to(tmp_path: Path) -> None:
    write(tmp_path, {"there/script": "#!/bin/sh\npwd\n"})
    (tmp_path / "there" / "script").chmod(0o755)
    process = await spawn(launch(tmp_path, "./script", cwd=tmp_path / "there"))
    assert await end_of(process) == Exit(0)
    assert said(process) == [str(tmp_path / "there")]
    await process.stop(0)


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (("no-such-program-here",), 'command not found: "no-such-program-here" is neither a path nor on PATH'),
        (("./missing",), 'command not found: "./missing"'),
        (("./text",), '"./text" may not be executed: Permission denied'),
        (("./folder",), '"./folder" may not be executed'),
        (("./garbage",), '"./garbage" could not be started: [Errno 8] Exec format error'),
    ],
)
async def test_a_command_that_cannot_run_is_explained(tmp_path: Path, argv: tuple[str, ...], reason: str) -> None:
    write(tmp_path, {"text": "#!/bin/sh\n", "garbage": "\x01\x02", "folder/x": ""})
    (tmp_path / "garbage").chmod(0o755)
    with pytest.raises(SpawnError) as told:
        await spawn(launch(tmp_path, *argv))
    assert str(told.value).startswith(reason)


async def test_a_script_whose_interpreter_is_missing_is_not_said_to_be_missing_itself(tmp_path: Path) -> None:
    write(tmp_path, {"script": "#!/no/such/python\n"})
    (tmp_path / "script").chmod(0o755)
    with pytest.raises(SpawnError, match="interpreter"):
        await spawn(launch(tmp_path, "./script"))


async def test_a_missing_working_directory_is_explained(tmp_path: Path) -> None:
    with pytest.raises(SpawnError) as told:
        await spawn(launch(tmp_path, "true", cwd=tmp_path / "gone"))
    assert str(told.value) == f"the working directory {tmp_path}/gone does not exist"


async def test_logs_that_cannot_be_written_are_a_reason_not_to_start(tmp_path: Path) -> None:
    write(tmp_path, {"logs": "a file where the folder should be"})
    with pytest.raises(SpawnError, match="logs"):
        await spawn(launch(tmp_path, "true"))


async def test_an_environment_that_no_program_can_have_is_a_reason_not_to_start(tmp_path: Path) -> None:
    with pytest.raises(SpawnError):
        await spawn(launch(tmp_path, "true", env={"A=B": "1"}))


# --- its end ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "end", "words"),
    [
        (("--exit", "0"), Exit(0), "exited with code 0"),
        (("--exit", "7"), Exit(7), "exited with code 7"),
        (("--kill", "SIGKILL"), Exit(None, "SIGKILL"), "was killed by SIGKILL"),
        (("--kill", "SIGSEGV"), Exit(None, "SIGSEGV"), "was killed by SIGSEGV"),
    ],
)
async def test_its_end_is_noticed_at_once_with_code_or_signal(
    start: Start, flags: tuple[str, ...], end: Exit, words: str
) -> None:
    process = await start(*flags, ready=False)
    assert await end_of(process) == end
    assert str(end) == words


async def test_a_death_is_noticed_within_milliseconds(start: Start) -> None:
    process = await start()
    killed = time.monotonic()
    os.kill(process.pid, signal.SIGKILL)
    await end_of(process)
    assert time.monotonic() - killed < 0.5


async def test_a_realtime_signal_has_no_name_and_is_reported_all_the_same(start: Start) -> None:
    process = await start()
    os.kill(process.pid, signal.SIGRTMIN + 3)
    await asyncio.wait([process.exited], timeout=2)
    assert process.exited.done()
    assert process.exited.result().code is None


async def test_its_last_words_are_kept(start: Start) -> None:
    process = await start("--say", "loading", "--say", "CUDA out of memory", "--exit", "1", ready=False)
    await end_of(process)
    assert process.log.tail() == ["loading", "CUDA out of memory"]


async def test_its_end_is_noticed_though_a_child_lives_on_and_stop_ends_that_too(start: Start) -> None:
    process = await start("--child", "--exit", "1")
    await end_of(process)
    [child] = children(process)
    assert alive(child)
    assert [one.pid for one in process.family()] == [child]
    await process.stop(PATIENCE_S)
    assert not alive(child)


# --- stopping -----------------------------------------------------------------------------------------------------


async def test_stop_ends_it_and_leaves_no_zombie(start: Start) -> None:
    process = await start()
    await process.stop(PATIENCE_S)
    assert process.exited.result() == Exit(None, "SIGTERM")
    assert procfs.process(process.pid) is None


async def test_stop_reaches_grandchildren_also_those_that_left_the_session(start: Start) -> None:
    process = await start("--child", "--daemon")
    family = [process.pid, *children(process)]
    assert len(family) == 3
    assert {one.pid for one in process.family()} == set(family)
    await process.stop(PATIENCE_S)
    assert not any(alive(pid) for pid in family)


async def test_who_ignores_term_is_killed_after_the_grace_and_not_before(start: Start) -> None:
    process = await start("--ignore-term", "--child", "--daemon")
    began = time.monotonic()
    stopping = asyncio.create_task(process.stop(0.3))
    await asyncio.wait({stopping}, timeout=0.15)
    assert not stopping.done()
    assert alive(process.pid)
    await stopping
    assert 0.3 <= time.monotonic() - began < PATIENCE_S
    assert process.exited.result() == Exit(None, "SIGKILL")
    assert not any(alive(pid) for pid in children(process))


async def test_no_grace_means_at_once(start: Start) -> None:
    process = await start("--ignore-term")
    await asyncio.wait_for(process.stop(0), PATIENCE_S)
    assert not alive(process.pid)


async def test_stopping_what_has_ended_is_quick(start: Start) -> None:
    process = await start("--exit", "4", ready=False)
    await end_of(process)
    await asyncio.wait_for(process.stop(PATIENCE_S), 1)
    assert process.exited.result() == Exit(4)


async def test_stopping_twice_is_stopping_once(start: Start) -> None:
    process = await start()
    await process.stop(PATIENCE_S)
    await process.stop(PATIENCE_S)


async def test_two_who_stop_it_at_the_same_time_both_see_it_gone(start: Start) -> None:
    process = await start("--child")
    await asyncio.gather(process.stop(PATIENCE_S), process.stop(0))
    assert not alive(process.pid)


async def test_stop_leaves_its_neighbours_alone(start: Start, tmp_path: Path) -> None:
    process = await start("--child")
    neighbour = await asyncio.create_subprocess_exec(sys.executable, PROCESS, stdout=subprocess.DEVNULL)
    await process.stop(PATIENCE_S)
    assert alive(neighbour.pid)
    neighbour.kill()
    await neighbour.wait()


async def test_one_killed_while_it_is_stopped_is_one_stopped(start: Start) -> None:
    process = await start("--ignore-term")
    stopping = asyncio.create_task(process.stop(PATIENCE_S))
    await asyncio.sleep(0)
    os.kill(process.pid, signal.SIGKILL)
    await asyncio.wait_for(stopping, 2)
    assert process.exited.result() == Exit(None, "SIGKILL")


async def test_a_suspended_server_is_ended_too(start: Start) -> None:
    process = await start()
    os.kill(process.pid, signal.SIGSTOP)
    await until(lambda: procfs.process(process.pid).state == "T", "it is suspended")  # type: ignore[union-attr] # it is there
    await asyncio.wait_for(process.stop(0.1), PATIENCE_S)
    assert not alive(process.pid)


async def test_the_loop_runs_on_while_a_server_is_stopped(start: Start) -> None:
    process = await start("--ignore-term")
    stopping = asyncio.create_task(process.stop(0.3))
    longest, last = 0.0, time.monotonic()
    while not stopping.done():
        await asyncio.sleep(0.001)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    assert longest < 0.25


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the number of exit(2) is that of x86-64")
@pytest.mark.timeout(20)
async def test_a_server_whose_first_thread_has_ended_still_runs_and_can_be_stopped(tmp_path: Path) -> None:
    program = """
import ctypes, threading
threading.Thread(target=threading.Event().wait).start()
print("ready", flush=True)
ctypes.CDLL(None).syscall(60, 0)  # exit(2) ends the calling thread alone
"""
    process = await spawn(launch(tmp_path, sys.executable, "-c", program))
    try:
        await until(lambda: procfs.process(process.pid).state == "Z", "its leader is a zombie")  # type: ignore[union-attr] # it is there
        assert not process.exited.done()
        assert [one.pid for one in process.family()] == [process.pid]
    finally:
        os.kill(process.pid, signal.SIGKILL)  # or the reaping blocks, if it is taken for dead
        await end_of(process)
        await process.stop(PATIENCE_S)


# --- taking over -------------------------------------------------------------------------------------------------


@pytest.fixture
async def start_titled(tmp_path: Path) -> AsyncIterator[Start]:
    """`await start_titled(flags)` runs a server that has overwritten its environment, mark and all."""
    started: list[ServerProcess] = []

    async def begin(*flags: str) -> ServerProcess:
        process = await spawn(launch(tmp_path, sys.executable, TITLED, *flags))
        started.append(process)
        await until(lambda: "ready" in said(process), "it is ready")
        process.family()
        return process

    yield begin
    for process in started:
        await asyncio.wait_for(process.stop(0), PATIENCE_S)


async def test_one_that_has_overwritten_its_mark_is_taken_over_with_all_its_family(start_titled: Start) -> None:
    process = await start_titled("child", "daemon")
    again = take_over(process.pid, process.started, process.marker, process.log)
    assert again is not None
    assert {one.pid for one in again.family()} == {process.pid, *children(process)}
    await asyncio.wait_for(again.stop(PATIENCE_S), PATIENCE_S)
    assert not any(alive(pid) for pid in (process.pid, *children(process)))


async def test_the_family_of_one_taken_over_is_stopped_though_its_leader_has_died(start_titled: Start) -> None:
    process = await start_titled("child", "daemon")
    again = take_over(process.pid, process.started, process.marker, process.log)
    assert again is not None
    again.family()
    os.kill(process.pid, signal.SIGKILL)
    await asyncio.wait_for(again.stop(PATIENCE_S), PATIENCE_S)
    assert not any(alive(pid) for pid in children(process))


async def test_an_overwritten_mark_is_no_excuse_for_another_start_time(start_titled: Start) -> None:
    process = await start_titled()
    assert take_over(process.pid, process.started + 1, process.marker, process.log) is None


async def test_one_that_carries_the_mark_of_another_is_not_taken_over(start: Start) -> None:
    process = await start()
    assert take_over(process.pid, process.started, process.marker + "-2", process.log) is None


async def test_one_whose_environment_cannot_be_read_is_not_taken_over(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = await start()
    monkeypatch.setattr(procfs, "_environment", lambda _: None)
    assert take_over(process.pid, process.started, process.marker, process.log) is None


async def test_what_was_left_behind_without_marks_is_stopped_by_its_leader(start_titled: Start) -> None:
    process = await start_titled("child", "daemon")
    await asyncio.wait_for(stop_marked(process.marker, PATIENCE_S), PATIENCE_S)
    assert alive(process.pid)  # nothing shows that it is meant
    await asyncio.wait_for(stop_marked(process.marker, PATIENCE_S, (process.pid, process.started)), PATIENCE_S)
    assert not any(alive(pid) for pid in (process.pid, *children(process)))


# --- signals ------------------------------------------------------------------------------------------------------


async def test_a_signal_goes_to_the_process_that_was_seen(start: Start) -> None:
    process = await start()
    [seen] = process.family()
    send(seen, signal.SIGTERM)
    assert await end_of(process) == Exit(None, "SIGTERM")


async def test_a_signal_never_goes_to_another_process_with_the_same_number(start: Start) -> None:
    process = await start()
    [seen] = process.family()
    send(msgspec.structs.replace(seen, started=seen.started - 1), signal.SIGKILL)
    send(msgspec.structs.replace(seen, started=seen.started + 1), signal.SIGKILL)
    await asyncio.wait([process.exited], timeout=0.1)
    assert alive(process.pid)


async def test_a_signal_to_one_that_is_gone_is_nothing(start: Start) -> None:
    process = await start()
    [seen] = process.family()
    await process.stop(PATIENCE_S)
    send(seen, signal.SIGKILL)


# --- its port -----------------------------------------------------------------------------------------------------


async def test_it_owns_no_port_on_which_nobody_listens(start: Start) -> None:
    process = await start()
    assert not process.owns_port(1)
