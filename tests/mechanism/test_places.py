"""Lines of keys in TOML, in every way that TOML lets them be written."""

from __future__ import annotations

import pytest

from sidecar.mechanism.places import Path, Places, Unshown, shown

TEXT = """\
# a comment
[sidecar]
listen = "x"   # another

[models."qwen2.5"]
mode = "chat"
idle.timeout = "1s"

[[models."qwen2.5".variants]]   # the first
name = "a"
memory_mb = { nvidia = 1,
  cpu = 2 }

[models."qwen2.5".variants.env]
HOME = "/"

[[models."qwen2.5".variants]]
command = [
  "serve",
  # what follows is a flag
  "--port", "{port}",
]
[models."qwen2.5".variants.env]
HOME = '''
two lines'''
PATH = "/bin"

[models.small]
variants = [
  { name = "a" },
  { name = "b", env = { A = "1" } },
]
'literal key' = 1
"esc\\u0061ped" = 2
"""
QWEN = ("models", "qwen2.5")


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("sidecar",), 2),
        (("sidecar", "listen"), 3),
        (QWEN, 5),
        ((*QWEN, "mode"), 6),
        ((*QWEN, "idle", "timeout"), 7),
        ((*QWEN, "variants"), 9),
        ((*QWEN, "variants", 0), 9),
        ((*QWEN, "variants", 0, "name"), 10),
        ((*QWEN, "variants", 0, "memory_mb", "nvidia"), 11),
        ((*QWEN, "variants", 0, "memory_mb", "cpu"), 12),
        ((*QWEN, "variants", 0, "env", "HOME"), 15),
        ((*QWEN, "variants", 1), 17),
        ((*QWEN, "variants", 1, "command"), 18),
        ((*QWEN, "variants", 1, "command", 0), 19),
        ((*QWEN, "variants", 1, "command", 2), 21),
        ((*QWEN, "variants", 1, "env", "HOME"), 24),
        ((*QWEN, "variants", 1, "env", "PATH"), 26),
        (("models", "small", "variants", 1, "name"), 31),
        (("models", "small", "variants", 1, "env", "A"), 31),
        (("models", "small", "literal key"), 33),
        (("models", "small", "escaped"), 34),
    ],
)
def test_a_key_is_found_at_its_line(path: Path, line: int) -> None:
    assert Places(TEXT.encode()).line(path) == line


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ((*QWEN, "variants", 1, "memory_mb"), 17),
        ((*QWEN, "variants", 0, "command", 3), 9),
        ((*QWEN, "chain", 0), 5),
        (("models", "unheard"), 5),
        (("plugins", "keys"), 0),
        ((), 0),
    ],
)
def test_what_is_not_there_is_told_at_the_nearest_part_that_is(path: Path, line: int) -> None:
    assert Places(TEXT.encode()).line(path) == line


def test_windows_line_ends_count_once() -> None:
    assert Places(b"[a]\r\nb = 1\r\nc = 2\r\n").line(("a", "c")) == 3


@pytest.mark.parametrize("text", [b"", b"[a\nb = = 2\n]]", b"\xff\xfe\x00", b'a = """', b"[[[[" * 500])
def test_a_file_that_is_no_toml_breaks_nothing(text: bytes) -> None:
    assert Places(text).line(("b",)) >= 0


def test_paths_are_shown_as_a_reader_would_write_them() -> None:
    assert shown(("models", "qwen", "variants", 0, "memory_mb")) == "models.qwen.variants[0].memory_mb"
    assert shown(()) == ""


def test_a_key_that_may_be_a_secret_is_found_and_not_shown() -> None:
    path = ("models", Unshown("qwen2.5"), "mode")
    assert Places(TEXT.encode()).line(path) == 6
    assert shown(path) == "models[...].mode"
