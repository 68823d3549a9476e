"""Guesses at what a server takes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sidecar.mechanism.importing.commands import split
from sidecar.mechanism.importing.memory import UNKNOWN_MB, guess


def sparse(path: Path, megabytes: int) -> Path:
    """A file of that size that takes no room."""
    with path.open("wb") as file:
        os.truncate(file.fileno(), megabytes * 1_000_000)
    return path


def test_files_that_are_here_are_measured_with_all_their_parts(tmp_path: Path) -> None:
    for part in (1, 2, 3):
        sparse(tmp_path / f"big-0000{part}-of-00003.gguf", 4000)
    sparse(tmp_path / "mmproj.gguf", 500)
    told = guess(split("llama-server -m big-00001-of-00003.gguf --mmproj mmproj.gguf"), tmp_path)
    assert 12_500 < told.memory_mb < 15_000
    assert "its files (12500 MB)" in told.how


def test_more_context_takes_more(tmp_path: Path) -> None:
    sparse(tmp_path / "m.gguf", 5000)
    short, long = (guess(split(f"llama-server -m m.gguf -c {tokens}"), tmp_path) for tokens in (4096, 65536))
    assert short.memory_mb + 5000 < long.memory_mb
    assert "65536 tokens" in long.how


@pytest.mark.parametrize(
    ("command", "least", "most"),
    [
        ("llama-server -m /gone/Qwen2.5-Coder-32B-Instruct-Q4_K_M.gguf", 18_000, 24_000),
        ("llama-server -m /gone/Qwen3-Coder-30B-A3B-Q3_K_S.gguf", 13_000, 18_000),
        ("llama-server -hf ggml-org/gpt-oss-20b-GGUF", 11_000, 15_000),
        ("vllm serve Qwen/Qwen3-8B", 15_000, 19_000),
        ("llama-server -m gemma-3-270m-it-Q8_0.gguf", 600, 1_500),
    ],
)
def test_names_tell_what_files_would(command: str, least: int, most: int, tmp_path: Path) -> None:
    assert least < guess(split(command), tmp_path).memory_mb < most


def test_what_tells_nothing_gets_a_number_that_says_so(tmp_path: Path) -> None:
    told = guess(split("some-server --port 1"), tmp_path)
    assert told.memory_mb == UNKNOWN_MB
    assert "neither" in told.how


def test_paths_that_lead_nowhere_or_make_no_sense_are_no_error(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir()
    for name in ("~nobody-here/x-7b.gguf", "x" * 5000 + ".gguf", "locked", "/proc/1/mem.gguf"):
        assert guess(split(f"llama-server -m {name}"), tmp_path).memory_mb > 0
