"""Command lines of servers: split into words, given the port that the sidecar chooses, and read for what they tell.

What they tell: which modes the server speaks, which devices it runs on, and which files of weights it loads.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence

import msgspec

from sidecar.mechanism import placeholders

PORT = "{port}"
TEXT_MODES = ["chat", "base"]
SERVER_MODES = [
    "chat",
    "base",
    "messages",
    "responses",
]  # of llama.cpp's, vLLM's and SGLang's servers

_WINDOWS = re.compile(r"(?i)^\"?[a-z]:[\\/]|\\[^\s]*\.exe\b|^[^\s/]+\.exe\b")
_CONTAINER_ENGINES = ("docker", "podman", "nerdctl")
_PORT_FLAGS = ("--port", "--listen-port", "--http-port", "--server-port", "--server_port")
_PUBLISH = re.compile(r"^((?:[\d.]+:|\[[^\]]*\]:)?)(\d+|\{port\})(:\d+(?:/tcp)?)$")
_DEVICE_FLAGS = ("-ngl", "--gpu-layers", "--n-gpu-layers")
_MODE_WORDS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("reranker", re.compile(r"^--(rerank|reranking)$|[-_/ ]rerank", re.IGNORECASE)),
    ("embedding", re.compile(r"^--embeddings?(-only)?$|^--is-embedding$|[-_/]embed(ding)?s?[-_./]", re.IGNORECASE)),
)
_MODE_PROGRAMS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("transcription", re.compile(r"whisper|parakeet|speaches|faster-whisper|asr", re.IGNORECASE)),
    ("speech", re.compile(r"kokoro|piper|orpheus|xtts|[-_/]tts|audiocpp", re.IGNORECASE)),
    ("image", re.compile(r"sd-server|stable-diffusion|diffusion\.cpp|comfyui", re.IGNORECASE)),
    ("embedding", re.compile(r"text-embeddings|infinity_emb|infinity-emb", re.IGNORECASE)),
)
_MANY_MODES = re.compile(r"llama-server|llama\.cpp|llama_cpp|koboldcpp|vllm|sglang|llamafile", re.IGNORECASE)
_SIZES_ITSELF = re.compile(r"(^|[/_.-])(vllm|sglang)", re.IGNORECASE)


class CommandError(ValueError):
    """A command line that cannot be read: unbalanced quotes, or nothing."""


class Command(msgspec.Struct, frozen=True):
    """A command line in words."""

    words: tuple[str, ...]
    windows: bool = False

    @property
    def program(self) -> str:
        """Its first word, without folders."""
        return re.split(r"[\\/]", self.words[0])[-1]

    @property
    def container(self) -> bool:
        """Whether it runs a container engine."""
        return self.program in _CONTAINER_ENGINES

    def after(self, *flags: str) -> str:
        """The value of the first of the flags that is given, `--flag VALUE` or `--flag=VALUE`; "" if none is."""
        for position, word in enumerate(self.words):
            name, equals, value = word.partition("=")
            if word in flags:
                return self.words[position + 1] if position + 1 < len(self.words) else ""
            if equals and name in flags:
                return value
        return ""

    def has(self, pattern: re.Pattern[str]) -> bool:
        """Whether a word matches."""
        return any(pattern.search(word) for word in self.words)


def split(text: str) -> Command:
    """A command line as llama-swap and shells read it: lines that begin with `#` are comments, `\\` joins lines.

    There is no shell: what would need one (pipes, variables) comes out as plain words. Raises CommandError.
    """
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    whole = re.sub(r"[ \t]*\\\n", " ", "\n".join(lines) + "\n").strip()
    windows = bool(_WINDOWS.search(whole))
    try:
        # In Windows' paths a backslash is no escape; quotes then stay, and have to be taken off.
        words = [_unquoted(word) for word in shlex.split(whole, posix=False)] if windows else shlex.split(whole)
    except ValueError as error:
        raise CommandError(f"it cannot be split into words: {error}") from None
    if not words:
        raise CommandError("it is empty")
    return Command(tuple(words), windows)


def _unquoted(word: str) -> str:
    return word[1:-1] if len(word) > 1 and word[0] == word[-1] and word[0] in "\"'" else word


def takes_port(command: Command) -> bool:
    """Whether the placeholder of the port is in it."""
    return any("port" in placeholders.names_in(word) for word in command.words)


def with_port(command: Command, port: int | None) -> Command | None:
    """The command on the port that it is given, in place of a fixed one; None if it does not say where its port stands.

    Of a container only what is published changes: within, it may listen where it likes.
    """
    if port is not None and command.container:
        words = [_published(word, port) for word in command.words]
    else:
        words = list(_on_port(command.words, port))
    changed = msgspec.structs.replace(command, words=tuple(words))
    if takes_port(changed):
        return changed
    if port is None and command.has(_MANY_MODES) and not command.container:
        return msgspec.structs.replace(command, words=(*command.words, "--port", PORT))
    return None


def _published(word: str, port: int) -> str:
    match = _PUBLISH.match(word)
    return f"{match[1]}{PORT}{match[3]}" if match and match[2] == str(port) else word


def _on_port(words: Sequence[str], port: int | None) -> Iterable[str]:
    wanted = str(port) if port is not None else None
    for position, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag in _PORT_FLAGS and equals and value.isdecimal() and value == (wanted or value):
            yield f"{flag}={PORT}"
        elif position and words[position - 1] in _PORT_FLAGS and word.isdecimal() and word == (wanted or word):
            yield PORT
        elif wanted and (word == wanted or word.endswith(f":{wanted}")):
            yield word.removesuffix(wanted) + PORT
        else:
            yield word


def modes(command: Command) -> list[str]:
    """What it speaks, by its flags and its program; by its weights' name, if that is all."""
    for mode, pattern in _MODE_WORDS:
        if command.has(pattern):
            return [mode]
    for mode, pattern in _MODE_PROGRAMS:
        if pattern.search(command.program) or (command.container and command.has(pattern)):
            return [mode]
    return list(SERVER_MODES) if command.has(_MANY_MODES) else list(TEXT_MODES)


def modes_by_name(model: str) -> list[str]:
    """What a model speaks of which only the name is known."""
    known = (
        ("reranker", r"rerank"),
        ("embedding", r"embed|(^|[-_/])(bge|e5|gte)[-_]"),
        ("transcription", r"whisper|transcri|parakeet"),
        ("speech", r"(^|[-_/])tts|kokoro"),
        ("image", r"dall-e|gpt-image|stable-diffusion|(^|[-_/])flux|imagen"),
        ("classifier", r"moderation"),
    )
    return next(([mode] for mode, pattern in known if re.search(pattern, model, re.IGNORECASE)), list(TEXT_MODES))


def sizes_itself(command: Command) -> bool:
    """Whether it takes a share of the memory that is free when it starts (vLLM, SGLang)."""
    return command.has(_SIZES_ITSELF)


def device_class(command: Command, default: str) -> str:
    """Which class of devices it runs on, as far as the command tells."""
    if command.after(*_DEVICE_FLAGS) == "0" or command.after("--device") in ("none", "cpu"):
        return "cpu"
    return "amd" if re.search(r"rocm|hip\b", command.words[0], re.IGNORECASE) else default
