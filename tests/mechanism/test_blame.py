"""An author is told where a plugin has failed, and what to do."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from plugin_sdk import Auth, Principal, Request, auth
from sidecar.mechanism.blame import TRACEBACK_CHARACTERS, advice, shown
from sidecar.mechanism.bounded import out_of_place
from sidecar.mechanism.watchdog import BlockedError


class Door(Auth):
    """A class."""

    def authenticate(self, request: Request) -> Principal:
        raise NotImplementedError


@auth
def word(request: Request) -> Principal:
    """A function."""
    raise NotImplementedError


@pytest.mark.parametrize("method", [Door().authenticate, word().authenticate])
def test_a_wrong_result_has_the_place_of_the_method(method: Callable[..., Any]) -> None:
    assert advice(method, TypeError("expected a Principal"), 5.0) == f"{__file__}:{inspect.getsourcelines(method)[1]}"


@pytest.mark.parametrize("method", [None, len])
def test_what_python_does_not_know_is_left_out(method: Callable[..., Any] | None) -> None:
    assert advice(method, TypeError("expected a Principal"), 5.0) == ""


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (TimeoutError(), "it did not end within 0.25 s: give what it waits for a shorter time limit, or the plugin a"),
        (out_of_place(SystemExit(3)), "raise nothing but errors: Reject to refuse a request"),
        (out_of_place(BlockedError()), "make it a plain `def` without @inline, or call asyncio.to_thread"),
    ],
)
def test_what_helps_is_told(error: Exception, remedy: str) -> None:
    assert advice(None, error, 0.25).startswith(remedy)


def test_of_a_long_error_the_end_is_shown() -> None:
    assert shown(ValueError("x" * 2 * TRACEBACK_CHARACTERS + "the end")).endswith("the end\n")
    assert len(shown(ValueError("x" * 2 * TRACEBACK_CHARACTERS))) == TRACEBACK_CHARACTERS + len("...")
