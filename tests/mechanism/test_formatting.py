"""Laying out changes neither what manifests mean nor what they say, and is done when it is done."""

from __future__ import annotations

import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.mechanism.formatting import FormatError, formatted

ROOT = Path(__file__).resolve().parents[2]
TAPLO = Path(sysconfig.get_path("scripts")) / "taplo"
MANIFESTS = sorted(
    path
    for folder in ("manifests", "examples")
    for path in (ROOT / folder).rglob("*.toml")
    if path.name != "pyproject.toml"
)

SPACES = st.sampled_from(["", " ", "  ", "\t"])
COMMENTS = st.sampled_from(["", "", "# why", "  # wie schön", "#!tight", "     # far off  "])
KEYS = st.sampled_from(["a", "b-1", "1979", '"c d"', "'q#'", "x . y", 'x."[t]" .z'])
BREAKS = st.sampled_from(["", "", " ", "\n", "\n\n\n  ", " # in between\n", "\n # alone\n"])
SCALARS = st.sampled_from(
    [
        *("1", "0xf", "-1.5e3", "nan", "true", '"a # b"', "'[x]'", "1979-05-27 07:32:00", "07:32:00"),
        *('"""a\n # no comment\n"""', "'''\n[no]\n'''", '"\\"]"'),
    ]
)


@st.composite
def arrays(draw: st.DrawFn, inner: st.SearchStrategy[str]) -> str:
    items = draw(st.lists(inner, max_size=4))
    parts = [f"{draw(BREAKS)}{item}{draw(BREAKS)}" for item in items]
    trailing = draw(st.booleans())
    tail = f",{draw(BREAKS)}" if items and trailing else ""
    return f"[{','.join(parts)}{tail}]"


@st.composite
def inline_tables(draw: st.DrawFn, inner: st.SearchStrategy[str]) -> str:
    items = draw(st.lists(st.tuples(KEYS, inner), max_size=3, unique_by=lambda item: item[0][0]))
    return "{" + ",".join(f"{draw(SPACES)}{key}{draw(SPACES)}={draw(SPACES)}{value} " for key, value in items) + "}"


VALUES = st.recursive(SCALARS, lambda inner: arrays(inner) | inline_tables(inner), max_leaves=6)


@st.composite
def documents(draw: st.DrawFn) -> str:
    """Manifests as they may be typed; now and then a name is there twice, and it is none."""
    lines: list[str] = []
    for _ in range(draw(st.integers(0, 8))):
        kind = draw(st.sampled_from(["pair", "pair", "pair", "table", "array", "comment", "blank"]))
        end = f"{draw(SPACES)}{draw(COMMENTS)}"
        if kind == "pair":
            key = draw(KEYS) if draw(st.booleans()) else f"k{len(lines)}"
            lines.append(f"{draw(SPACES)}{key}{draw(SPACES)}={draw(SPACES)}{draw(VALUES)}{end}")
        elif kind == "table":
            lines.append(f"{draw(SPACES)}[{draw(SPACES)}t{len(lines)}{draw(SPACES)}.{draw(KEYS)}]{end}")
        elif kind == "array":
            lines.append(f"[[{draw(SPACES)}list{draw(SPACES)}]]{end}")
        else:
            lines.append("" if kind == "blank" else f"{draw(SPACES)}# alone")
    return "\n".join(lines) + draw(st.sampled_from(["", "\n", "\n\n\n"]))


def essence(content: bytes) -> str:
    """All but spaces, line ends and commas, comments included."""
    return "".join(content.decode().replace(",", "").split())


@settings(max_examples=100, deadline=None)
@given(documents(), st.booleans())
def test_nothing_is_lost_and_the_second_time_nothing_changes(text: str, windows: bool) -> None:
    keeps_everything(text, windows)


@pytest.mark.soak
@settings(max_examples=10_000, deadline=None)
@given(documents(), st.booleans())
def test_nothing_is_lost_of_ten_thousand_manifests(text: str, windows: bool) -> None:
    keeps_everything(text, windows)


def keeps_everything(text: str, windows: bool) -> None:
    """All but spaces, commas and line ends stays, and so does what comes out."""
    content = text.replace("\n", "\r\n" if windows else "\n").encode()
    try:
        meant = tomllib.loads(content.decode())
    except tomllib.TOMLDecodeError:
        with pytest.raises(FormatError, match="is not TOML"):
            formatted(content)
        return
    after = formatted(content)
    assert repr(tomllib.loads(after.decode())) == repr(meant)
    assert essence(after) == essence(content)
    assert formatted(after) == after
    assert b"\n\n\n" not in after.replace(b"\r", b"")


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_our_own_manifests_are_laid_out(path: Path) -> None:
    content = path.read_bytes()
    assert formatted(content) == content


def test_what_taplo_lays_out_stays_and_taplo_leaves_it_then(tmp_path: Path) -> None:
    texts = [path.read_text(encoding="utf-8") for path in MANIFESTS]
    files = [tmp_path / f"{number}.toml" for number in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    taplo = [str(TAPLO), "fmt", "--no-auto-config", *map(str, files)]
    subprocess.run(taplo, check=True, capture_output=True, cwd=tmp_path)
    assert [file.read_text() for file in files] != texts  # an argv in pairs, for one
    assert [formatted(file.read_bytes()) for file in files] == [file.read_bytes() for file in files]
    subprocess.run([*taplo, "--check"], check=True, capture_output=True, cwd=tmp_path)


MESSY = """
[b]
short="x"   # columns
longer   = [ "a","b" ]# of their own
a =1      # one
bb =  22  # two
[[c.d]]
e = [ "--port","{port}",
      "--host", "h" ]
# about f

[f]
g = {h=1,i = { }}"""
NEAT = """[b]
short = "x"   # columns
longer = ["a", "b"] # of their own
a = 1    # one
bb = 22  # two

[[c.d]]
e = [
  "--port", "{port}",
  "--host", "h",
]
# about f

[f]
g = { h = 1, i = {} }
"""


def test_spaces_indents_and_blank_lines_are_put_right() -> None:
    assert formatted(MESSY.encode()).decode() == NEAT


@pytest.mark.parametrize(
    ("content", "line", "why"),
    [
        (b"a = 1\nb = \n", 2, "is not TOML: Invalid value"),
        (b"a = 1\n\xff = 2\n", 2, "is not UTF-8"),
        (b"a = " + b"[" * 5000 + b"]" * 5000, 0, "nested too deep"),
        (b"a = 1" + b"0" * 5000, 0, "is not a manifest"),
        (b"a = 1\na = 2\n", 2, "is not TOML"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line(content: bytes, line: int, why: str) -> None:
    with pytest.raises(FormatError, match=why) as caught:
        formatted(content)
    assert caught.value.line == line


def test_nothing_stays_nothing_and_a_large_file_is_laid_out() -> None:
    assert formatted(b"") == b""
    assert formatted(b"\n\n") == b""
    large = "".join(f"[models.m{number}]\nmode=['a', 'b']  # {number}\n" for number in range(1000)).encode()
    assert formatted(large).count(b"\n") == 3 * 1000 - 1
