"""Command lines: words, ports, and what they tell of modes and devices."""

from __future__ import annotations

import pytest

from sidecar.mechanism.importing.commands import CommandError, device_class, modes, modes_by_name, split, with_port


def words(text: str, port: int | None = None) -> list[str] | None:
    placed = with_port(split(text), port)
    return None if placed is None else list(placed.words)


def test_comments_and_joined_lines_are_read_as_llama_swap_does() -> None:
    assert split("# first\nserver \\\n  --a 'b c'\n  # second\n --d\n").words == ("server", "--a", "b c", "--d")


def test_a_command_of_windows_keeps_its_backslashes() -> None:
    command = split('C:\\llama\\server.exe -m "F:\\my models\\x.gguf"')
    assert command.words == ("C:\\llama\\server.exe", "-m", "F:\\my models\\x.gguf")
    assert command.program == "server.exe"


@pytest.mark.parametrize("text", ["", "  \n# only a comment\n", "a 'b"])
def test_what_is_no_command_is_refused(text: str) -> None:
    with pytest.raises(CommandError):
        split(text)


@pytest.mark.parametrize(
    ("text", "port", "placed"),
    [
        ("s --port 8999 -c 8999x", 8999, "s --port {port} -c 8999x"),
        ("s --port=8999", 8999, "s --port={port}"),
        ("s --listen 0.0.0.0:8999", 8999, "s --listen 0.0.0.0:{port}"),
        ("docker run -p 9501:9501 img --port 9501", 9501, "docker run -p {port}:9501 img --port 9501"),
        ("docker run -p 127.0.0.1:9501:80/tcp img", 9501, "docker run -p 127.0.0.1:{port}:80/tcp img"),
        ("llama-server -m x", None, "llama-server -m x --port {port}"),
        ("s --port 8000", None, "s --port {port}"),
        ("some-server", None, None),
        ("s --port 7777", 8999, None),
    ],
)
def test_the_port_that_is_given_takes_the_place_of_a_fixed_one(text: str, port: int | None, placed: str | None) -> None:
    assert words(text, port) == (placed.split() if placed else None)


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("llama-server -m x.gguf", ["chat", "base", "messages", "responses"]),
        ("llama-server --embeddings", ["embedding"]),
        ("llama-server -m nomic-embed-text.gguf", ["embedding"]),
        ("llama-server --reranking", ["reranker"]),
        ("whisper-server -m x", ["transcription"]),
        ("docker run onerahmet/openai-whisper-asr-webservice", ["transcription"]),
        ("sd-server -m x", ["image"]),
        ("text-embeddings-router --model-id x", ["embedding"]),
        ("docker run ghcr.io/ggml-org/llama.cpp:server", ["chat", "base", "messages", "responses"]),
        ("my-own-server", ["chat", "base"]),
    ],
)
def test_a_command_tells_its_mode(text: str, mode: list[str]) -> None:
    assert modes(split(text)) == mode


def test_a_name_tells_a_mode_where_there_is_no_command() -> None:
    told = {
        name: modes_by_name(name)
        for name in ("text-embedding-3-small", "bge-reranker", "whisper-1", "gpt-4o", "bge-m3")
    }
    assert told == {
        "text-embedding-3-small": ["embedding"],
        "bge-reranker": ["reranker"],
        "whisper-1": ["transcription"],
        "gpt-4o": ["chat", "base"],
        "bge-m3": ["embedding"],
    }


def test_a_command_tells_its_class_of_devices() -> None:
    assert device_class(split("llama-server -ngl 0"), "nvidia") == "cpu"
    assert device_class(split("llama-server-rocm -m x"), "nvidia") == "amd"
    assert device_class(split("llama-server -m x"), "nvidia") == "nvidia"
