"""Heads of requests: what is taken from them, and what is refused because others might read it in another way."""

from __future__ import annotations

import pytest

from sidecar.surfaces.dataplane.heads import HEAD_BYTES, HEADERS_MOST, BadRequestError, check_size, read, target

HOST = (b"Host", b"here")


def status(version: str, *headers: tuple[bytes, bytes]) -> int:
    """With which such a head is refused."""
    with pytest.raises(BadRequestError) as refused:
        read(version, list(headers))
    return refused.value.status


def test_what_matters_is_noted_and_the_rest_is_passed_on_in_its_order() -> None:
    facts = read(
        "1.1",
        [
            (b"X-Twice", b"1"),
            (b"HOST", b"here:80"),
            (b"Content-Type", b"application/json"),
            (b"x-twice", b"2"),
            (b"Content-Length", b"17"),
            (b"Authorization", b"Bearer secret"),
            (b"X-API-Key", b"secret"),
            (b"Expect", b"100-Continue"),
            (b"TraceParent", b"00-x"),
            (b"Keep-Alive", b"x"),
        ],
    )
    assert (facts.http11, facts.length, facts.content_type, facts.expects_continue, facts.traced) == (
        True,
        17,
        "application/json",
        True,
        True,
    )
    assert facts.passed_on == [
        (b"X-Twice", b"1"),
        (b"Content-Type", b"application/json"),
        (b"x-twice", b"2"),
        (b"TraceParent", b"00-x"),
    ]


@pytest.mark.parametrize(
    ("sent", "noted"),
    [(b"req-17/A", "req-17/A"), (b"a b", ""), (b"x" * 129, ""), (b"", ""), (b"caf\xe9", ""), (b'{"a\x1b":1}', "")],
)
def test_what_a_client_calls_its_request_is_noted_if_it_can_be_written_and_passed_on_as_it_is(
    sent: bytes, noted: str
) -> None:
    facts = read("1.1", [HOST, (b"X-Request-ID", sent)])
    assert (facts.request_id, facts.passed_on) == (noted, [(b"X-Request-ID", sent)])


@pytest.mark.parametrize("named", [b"X-Secret", b"close, x-secret ,", b"keep-alive,X-SECRET"])
def test_what_connection_names_ends_here(named: bytes) -> None:
    headers = [HOST, (b"X-Secret", b"1"), (b"Connection", named), (b"X-Kept", b"2"), (b"x-secret", b"3")]
    assert read("1.1", headers).passed_on == [(b"X-Kept", b"2")]


def test_space_after_a_value_belongs_to_none() -> None:
    headers = [HOST, (b"X-A", b" 1 \t "), (b"Content-Length", b"3 ")]
    facts = read("1.1", headers)
    assert (facts.passed_on, facts.length) == ([(b"X-A", b" 1")], 3)
    assert headers[1] == (b"X-A", b" 1")


def test_an_old_client_needs_no_host_and_expects_nothing() -> None:
    facts = read("1.0", [(b"Expect", b"100-continue")])
    assert (facts.http11, facts.expects_continue) == (False, False)


def test_other_versions_are_not_spoken() -> None:
    for version in ("2.0", "0.9", "1.2"):
        assert status(version, HOST) == 505


@pytest.mark.parametrize(
    "hosts", [(), (b"a", b"b"), (b"a", b"a"), (b"a b",), (b"a/b",), (b"a@b",), (b"a,b",), (b"\xc3\xbc",), (b'a"',)]
)
def test_there_is_one_host_and_it_is_one(hosts: tuple[bytes, ...]) -> None:
    assert status("1.1", *((b"Host", host) for host in hosts)) == 400


@pytest.mark.parametrize("host", [b"", b"h", b"h:8000", b"[::1]:80", b"a.b-c_d"])
def test_hosts_of_all_kinds_are_taken(host: bytes) -> None:
    assert read("1.1", [(b"Host", host)]).hosts == 1


@pytest.mark.parametrize(
    ("version", "coding", "refused"),
    [
        ("1.1", b"gzip, chunked", 501),
        ("1.1", b"identity", 501),
        ("1.1", b"xchunked", 501),
        ("1.1", b"", 501),
        ("1.0", b"chunked", 400),
    ],
)
def test_no_coding_but_chunks_is_understood(version: str, coding: bytes, refused: int) -> None:
    assert status(version, HOST, (b"Transfer-Encoding", coding)) == refused
    assert not read("1.1", [HOST, (b"Transfer-Encoding", b"Chunked")]).passed_on


def test_nothing_else_can_be_expected() -> None:
    assert status("1.1", HOST, (b"Expect", b"a miracle")) == 417


def test_there_are_not_too_many_headers_and_they_are_not_too_large() -> None:
    many = [(b"X-A", b"1")] * (HEADERS_MOST - 1)
    read("1.1", [HOST, *many])
    assert status("1.1", HOST, (b"X-B", b"1"), *many) == 431
    check_size([(b"X", b"x" * (HEAD_BYTES - 1))])
    with pytest.raises(BadRequestError):
        check_size([(b"X", b"x" * HEAD_BYTES)])


@pytest.mark.parametrize(
    ("url", "found"),
    [
        (b"/v1/x", ("/v1/x", "/v1/x", "")),
        (b"/v1/x?a=%20b&c?d", ("/v1/x?a=%20b&c?d", "/v1/x", "a=%20b&c?d")),
        (b"/v1%2fx?", ("/v1%2fx?", "/v1%2fx", "")),
        (b"*", ("*", "*", "")),
        (b"http://here:80/v1/x?a=1", ("/v1/x?a=1", "/v1/x", "a=1")),
        (b"http://here", ("/", "/", "")),
    ],
)
def test_a_target_is_taken_as_it_came(url: bytes, found: tuple[str, str, str]) -> None:
    assert target(url) == found


@pytest.mark.parametrize(
    "url", [b"", b"/a b", b"/a#b", b"/\xc3\xbc", b"/\x00", b"/\x7f", b"here", b"here:80", b"http:///x"]
)
def test_a_target_that_is_none_is_refused(url: bytes) -> None:
    with pytest.raises(BadRequestError) as refused:
        target(url)
    assert refused.value.status == 400
