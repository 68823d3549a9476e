"""The checks that every plugin should pass, as pytest's, or as data."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from plugin_sdk.kinds import Plugin
from plugin_sdk.messages import Request
from plugin_sdk.testing import by_kind, samples
from plugin_sdk.testing.common import CHECKS
from plugin_sdk.testing.subject import Fault, Settings, Subject, raised

Check = Callable[[Subject], Any]

THREADS = 4


def contract(
    plugin: type[Plugin[Any]],
    *,
    config: Settings | None = None,
    request: Request | None = None,
    token: str = "",
    stream: bytes = samples.STREAM,
    http: Any = None,
) -> Callable[[str], None]:
    """A test for pytest, with a parameter for each check: `test_contract = contract(MyPlugin, config={...})`.

    config: as in a manifest, or a Config; or a function that gives one of them for an empty directory.
    request: one that the plugin admits or works on; by default a chat request with a token that nobody knows.
    token: the same request, but with a token that an Auth plugin admits.
    stream: the bytes of a streamed answer that the plugin has something to do with. http: for self.http; by default
    nothing answers.
    """
    import pytest

    subject = _subject(plugin, config, _request(request, token), stream, http)

    @pytest.mark.parametrize("check", checks_of(plugin))
    def test_contract(check: str) -> None:
        __tracebackhide__ = True
        problem = run(subject, check)
        if problem:
            pytest.fail(problem, pytrace=False)

    return test_contract


def faults(
    plugin: type[Plugin[Any]],
    *,
    config: Settings | None = None,
    request: Request | None = None,
    token: str = "",
    stream: bytes = samples.STREAM,
    http: Any = None,
) -> dict[str, str]:
    """The checks that the plugin does not pass, each with what is wrong and the remedy.

    The arguments are those of `contract`. Not to be called inside a running event loop.
    """
    subject = _subject(plugin, config, _request(request, token), stream, http)
    found = {check: run(subject, check) for check in checks_of(plugin)}
    return {check: problem for check, problem in found.items() if problem}


def checks_of(plugin: type[Plugin[Any]]) -> list[str]:
    """The names of the checks that concern such a plugin."""
    return list(_checks(plugin))


def run(subject: Subject, name: str) -> str:
    """What one check finds wrong, "" if nothing."""
    check = _checks(subject.plugin)[name]
    try:
        if asyncio.iscoroutinefunction(check):
            asyncio.run(_in_few_threads(check, subject))
        else:
            check(subject)
    except Fault as fault:
        return f"{subject.name}: {fault}"
    except Exception as error:  # noqa: BLE001 - a plugin may raise anything
        return f"{subject.name}: {raised(name, error, 'it must not raise here')}"
    return ""


async def _in_few_threads(check: Check, subject: Subject) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="contract"))
    await check(subject)


def _checks(plugin: type[Plugin[Any]]) -> dict[str, Check]:
    found = [*CHECKS, *by_kind.checks_of(plugin)]
    return {check.__name__: check for check in found}


def _subject(plugin: type[Plugin[Any]], config: Settings | None, request: Request, stream: bytes, http: Any) -> Subject:
    return Subject(plugin=plugin, config=config, request=request, stream=stream, http=http)


def _request(request: Request | None, token: str) -> Request:
    found = request or samples.REQUEST
    return samples.with_token(found, token) if token else found
