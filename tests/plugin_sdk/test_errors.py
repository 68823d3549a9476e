"""What plugins raise on purpose."""

from __future__ import annotations

import pytest

from plugin_sdk import NotReady, PluginError, Reject


def test_both_errors_are_plugin_errors() -> None:
    assert issubclass(Reject, PluginError)
    assert issubclass(NotReady, PluginError)
    assert str(NotReady("loading")) == "loading"


def test_a_rejection_carries_what_the_client_gets() -> None:
    rejected = Reject(429, "slow down", retry_after_s=2.5, headers={"X-Limit": "10"})
    assert (rejected.status, rejected.message, str(rejected)) == (429, "slow down", "slow down")
    assert (rejected.retry_after_s, rejected.headers) == (2.5, {"X-Limit": "10"})


def test_the_headers_are_a_copy() -> None:
    headers = {"a": "1"}
    rejected = Reject(400, "no", headers=headers)
    headers["b"] = "2"
    assert rejected.headers == {"a": "1"}
    assert Reject(400, "no").headers == {}


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "invalid_request"),
        (401, "invalid_api_key"),
        (403, "permission_denied"),
        (404, "not_found"),
        (429, "rate_limit_exceeded"),
        (503, "service_unavailable"),
        (418, "rejected"),
    ],
)
def test_the_code_follows_from_the_status_unless_it_is_given(status: int, code: str) -> None:
    assert Reject(status, "no").code == code
    assert Reject(status, "no", code="quota").code == "quota"


@pytest.mark.parametrize("status", [0, 200, 302, 399, 600])
def test_only_error_statuses_reject(status: int) -> None:
    with pytest.raises(ValueError, match="from 400 to 599"):
        Reject(status, "no")


@pytest.mark.parametrize("status", [400, 599])
def test_the_first_and_the_last_error_status_reject(status: int) -> None:
    assert Reject(status, "no").status == status
