"""Files that are TOML, and why others are not."""

from __future__ import annotations

import pytest

from sidecar.mechanism.toml import TomlError, parsed


def test_a_file_says_what_it_says() -> None:
    assert parsed(b"a = 1\r\n[t]\r\n") == {"a": 1, "t": {}}
    assert parsed(b"") == {}


@pytest.mark.parametrize(
    ("content", "line", "told"),
    [
        (b"a = 1\nb = \n", 2, "is not TOML: Invalid value"),
        (b"a = 1\nb = [\n", 3, "is not TOML: Invalid value"),
        (b"a = 1\n\xff", 2, "is not UTF-8 text: invalid start byte"),
        (b"\xef\xbb\xbfa = 1\n", 1, "is not TOML: it begins with a byte order mark; save it as UTF-8 without one"),
        (b"a = " + b"1" * 5000, 0, "is not a manifest: Exceeds the limit"),
        (b"a = " + b"[" * 5000 + b"]" * 5000, 0, "is nested too deep"),
    ],
)
def test_what_is_none_is_told_with_its_line(content: bytes, line: int, told: str) -> None:
    with pytest.raises(TomlError) as caught:
        parsed(content)
    assert (str(caught.value)[: len(told)], caught.value.line) == (told, line)
