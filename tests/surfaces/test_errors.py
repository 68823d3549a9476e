"""The errors that clients get: statuses, codes, and what is made of a server's own."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.control.leases import RefusedError
from sidecar.surfaces.dataplane.errors import QUOTED_BYTES, ApiError, error_body


def event(status: int, body: bytes) -> dict[str, Any]:
    """The error object that goes into an event, which must be one line."""
    made = error_body(status, body)
    assert b"\n" not in made
    assert b"\r" not in made
    error: dict[str, Any] = json.loads(made)["error"]
    return error


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("model_not_found", 404, "not_found_error"),
        ("queue_full", 429, "rate_limit_error"),
        ("queue_timeout", 503, "server_error"),
        ("exited", 503, "server_error"),
        ("shutting_down", 503, "server_error"),
    ],
)
def test_a_refusal_has_the_status_of_its_code(code: str, status: int, kind: str) -> None:
    error = ApiError.refused(RefusedError(code, "256 requests wait already", None), "qwen")
    assert error.status == status
    told = json.loads(error.body())["error"]
    assert (told["code"], told["type"], told["param"]) == (code, kind, "model")
    assert told["message"] == 'the model "qwen" is not available: 256 requests wait already'


@pytest.mark.parametrize(("seconds", "said"), [(0.0, b"1"), (6.2, b"7"), (30.0, b"30")])
def test_a_full_queue_says_in_whole_seconds_when_to_come_back(seconds: float, said: bytes) -> None:
    error = ApiError.refused(RefusedError("queue_full", "full", seconds), "qwen")
    assert dict(error.response_headers())[b"retry-after"] == said


def test_without_a_time_to_come_back_none_is_named() -> None:
    error = ApiError.refused(RefusedError("unplaceable", "never fits", None), "qwen")
    assert b"retry-after" not in dict(error.response_headers())


def test_a_servers_own_error_object_goes_into_an_event_as_it_is() -> None:
    told = {"message": "too long\nby far", "type": "exceed_context", "n_ctx": 4096, "more": {"deep": [1.5, None]}}
    assert event(400, json.dumps({"error": told, "other": 1}, indent=2).encode()) == told


@pytest.mark.parametrize(
    ("body", "quoted"),
    [
        (b"<html>\r\n<h1>Bad Gateway</h1>\n</html>", "<html> <h1>Bad Gateway</h1> </html>"),
        (b'{"error": "model is loading"}', '{"error": "model is loading"}'),
        (b'{"error": {"code": 7}}', '{"error": {"code": 7}}'),
        (b'{"error": {"message": "cut o', '{"error": {"message": "cut o'),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"[" * 100_000, "[" * QUOTED_BYTES),
        (b"", "nothing else"),
    ],
)
def test_an_error_in_no_known_shape_is_quoted_up_to_a_bound(body: bytes, quoted: str) -> None:
    told = event(503, body)
    assert told["message"] == f"the server answered 503: {quoted}"
    assert (told["code"], told["type"]) == ("upstream_error", "server_error")
