"""Where URLs lead, and which lead nowhere."""

from __future__ import annotations

import pytest

from sidecar.mechanism import origins
from sidecar.mechanism.origins import Origin


@pytest.mark.parametrize(
    ("url", "origin", "host", "shown"),
    [
        ("http://h:8000", Origin("http", "h", 8000), b"h:8000", "http://h:8000"),
        ("http://h/", Origin("http", "h", 80), b"h", "http://h:80"),
        ("https://h/openai/v2/", Origin("https", "h", 443, prefix="/openai/v2"), b"h", "https://h:443"),
        ("http://[::1]:80", Origin("http", "::1", 80), b"[::1]", "http://[::1]:80"),
        ("unix:/run/a b.sock", Origin("http", "localhost", 80, "/run/a b.sock"), b"localhost", "unix:/run/a b.sock"),
        ("unix:///run/s", Origin("http", "localhost", 80, "/run/s"), b"localhost", "unix:/run/s"),
    ],
)
def test_a_url_leads_to_an_address_or_a_socket(url: str, origin: Origin, host: bytes, shown: str) -> None:
    origins.check(url)
    assert Origin.of(url) == origin
    assert (origin.host_header, str(origin)) == (host, shown)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("h:8000", 'expected "http://HOST:PORT", "https://HOST" or "unix:/PATH"'),
        ("ftp://h", "expected"),
        ("http://", "expected"),
        ("http://h:99999", "out of range"),
        ("http://h/a b", "nor spaces"),
        ("http://h/\r\nx", "line breaks"),
        ("http://h?x=1", "no query"),
        ("http://me:secret@h", "a key goes into api_key"),
        ("unix:run/s", "the absolute path of a socket"),
        ("unix:", "the absolute path of a socket"),
        ("unix:/run/\0s", "the absolute path of a socket"),
        ("unix:/" + "s" * 107, "at most 107 bytes"),
    ],
)
def test_a_url_that_leads_nowhere_is_told_why(url: str, why: str) -> None:
    with pytest.raises(ValueError) as told:
        origins.check(url)
    assert why in str(told.value)
