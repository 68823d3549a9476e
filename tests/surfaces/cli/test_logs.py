"""How `sidecar logs` shows what a server has said to a terminal that must stay whole."""

from __future__ import annotations

import pytest

from sidecar.surfaces.cli.logs import plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext", "plain\ttext"),
        ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m\x1b[0m"),
        ("\x1b[1;33mleft on", "\x1b[1;33mleft on\x1b[0m"),
        ("a\x1b[2Jb\x1b[10;10Hc\x1b[?25ld\x1b[6n", "abcd"),
        ("\x1b]0;title\x07a\x1b]52;c;ZWNobw==\x1b\\b\x1bPq\x1b\\c\x1bcd\x1b(Be", "abcde"),
        ("a\x07b\x08c\x9b2Jd\u202ee\x1b", "abc2Jde"),
        (" 1 %\r 50 %\r100 %", "100 %"),
    ],
)
def test_colours_stay_and_nothing_else_that_a_terminal_obeys(text: str, shown: str) -> None:
    assert plain(text) == shown
