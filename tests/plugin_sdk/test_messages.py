"""What passes between the sidecar and its plugins."""

from __future__ import annotations

import pytest

from plugin_sdk import ANONYMOUS, DeviceStatus, End, Endpoint, Headers, Outcome, Principal, Request

HEADERS = Headers(((b"Accept", b"a"), (b"X-Key", b"one"), (b"x-key", b"two"), (b"X-Name", "café".encode("latin-1"))))


def request(*headers: tuple[bytes, bytes]) -> Request:
    return Request(method="POST", path="/v1/chat/completions", headers=Headers(headers))


def test_headers_are_looked_up_without_regard_to_case() -> None:
    assert HEADERS.get("accept") == HEADERS.get("ACCEPT") == "a"
    assert "x-KEY" in HEADERS
    assert "x-other" not in HEADERS


def test_the_first_of_several_values_is_got_and_all_can_be() -> None:
    assert HEADERS.get("x-key") == "one"
    assert HEADERS.get_all("X-Key") == ["one", "two"]
    assert HEADERS.get_all("x-other") == []


def test_an_absent_header_is_the_default() -> None:
    assert HEADERS.get("x-other") == ""
    assert HEADERS.get("x-other", "none") == "none"


def test_values_are_read_as_latin_1_and_never_fail() -> None:
    assert HEADERS.get("x-name") == "café"
    assert Headers(((b"a", bytes(range(128, 256))),)).get("a") == bytes(range(128, 256)).decode("latin-1")


def test_headers_are_kept_as_they_came() -> None:
    assert HEADERS.raw[1:3] == ((b"X-Key", b"one"), (b"x-key", b"two"))
    assert Headers().raw == ()


def test_header_values_are_not_shown() -> None:
    assert repr(HEADERS) == "Headers(['Accept', 'X-Key', 'x-key', 'X-Name'])"


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        ([(b"Authorization", b"Bearer abc")], "abc"),
        ([(b"authorization", b"bearer   abc ")], "abc"),
        ([(b"x-api-key", b"abc")], "abc"),
        ([(b"Authorization", b"Basic xyz"), (b"x-api-key", b"abc")], "abc"),
        ([(b"Authorization", b"Bearer abc"), (b"x-api-key", b"xyz")], "abc"),
        ([(b"Authorization", b"Basic xyz")], ""),
        ([(b"Authorization", b"Bearer")], ""),
        ([], ""),
    ],
)
def test_the_bearer_token_is_that_of_either_convention(headers: list[tuple[bytes, bytes]], token: str) -> None:
    assert request(*headers).bearer_token == token


def test_a_request_is_anonymous_and_frozen() -> None:
    one = request()
    assert one.principal is ANONYMOUS
    with pytest.raises(AttributeError):
        one.model = "other"  # type: ignore[misc] # that it is refused is the point


def test_principals_do_not_share_attributes() -> None:
    assert Principal("a").attributes == {}
    assert Principal("a", {"team": "x"}) != Principal("a")


def test_an_outcome_needs_a_model_alone() -> None:
    outcome = Outcome(model="m")
    assert (outcome.end, outcome.usage, outcome.first_byte_s) == (End.OK, None, None)


def test_a_device_status_needs_nothing() -> None:
    status = DeviceStatus()
    assert (status.total_mb, status.free_mb, status.used_mb, status.problem) == (0, 0, None, "")


def test_an_endpoint_is_posted_to() -> None:
    assert Endpoint("/v1/embeddings", "embeddings").method == "POST"
