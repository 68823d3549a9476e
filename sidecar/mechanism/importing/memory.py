"""How much memory a server will take before anybody has seen it run: by its files if they are here, or by their names.

A guess, and told as one: what it really takes is measured from its first start on, and `sidecar calibrate --write` puts
that in its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from sidecar.mechanism.importing.commands import Command

UNKNOWN_MB = 4096
_MB = 1_000_000
_RUNTIME_MB = 600  # of a server on a GPU, for its context and its buffers
_WEIGHTS = ("-m", "--model", "--mmproj", "-md", "--model-draft", "--diffusion-model", "--vae", "--llm", "-hf", "-hfr",
            "--hf-repo", "--model-path", "--model-id")  # fmt: skip
_CONTEXT = ("-c", "--ctx-size", "--max-model-len", "--context-length", "--ctx-size-draft")
_SHARD = re.compile(r"-00001-of-(\d{5})\.gguf$")
_PARAMETERS = re.compile(r"(?i)(?<![a-z0-9.])(\d+(?:\.\d+)?)([bm])(?![a-z])")
_QUANTS: tuple[tuple[str, float], ...] = (  # bits for each weight, of llama.cpp's types; the first that matches
    (r"iq1|tq1", 1.9), (r"iq2|q2", 3.0), (r"iq3|q3", 3.9), (r"iq4|q4|mxfp4|nvfp4|awq|gptq|int4|4bit", 4.9),
    (r"q5", 5.7), (r"q6", 6.6), (r"q8|fp8|int8|8bit", 8.5), (r"f32|fp32", 32.0),
)  # fmt: skip
_KV_BYTES = 100_000  # for each token of context, of a model of 8 billion parameters with grouped heads, at 16 bits


class Guess(msgspec.Struct, frozen=True):
    """memory_mb of all devices together. how: what it was worked out of, in words."""

    memory_mb: int
    how: str


def guess(command: Command, folder: Path) -> Guess:
    """What the server may take. folder: where relative paths begin. Looks at files, so keep it off the event loop."""
    names = list(_weights(command))
    sizes = [size for name in names if (size := _size(folder, name))]
    if sizes and len(sizes) == len([name for name in names if _is_file_name(name)]):
        weights = sum(sizes) / _MB
        how = f"by its files ({weights:.0f} MB)"
    else:
        weights = sum(_by_name(name) for name in names)
        how = f"by the names of its weights ({weights:.0f} MB)"
    if not weights:
        return Guess(UNKNOWN_MB, "since neither its files nor their names tell it")
    tokens = _context(command)
    context = tokens * _KV_BYTES * min(1.0, weights / 5000) / _MB
    if tokens:
        how += f" and its context ({tokens} tokens)"
    return Guess(_rounded(weights * 1.05 + context + _RUNTIME_MB), how)


def _weights(command: Command) -> Iterator[str]:
    words = command.words
    for position, word in enumerate(words):
        flag, equals, value = word.partition("=")
        before = words[position - 1] if position else ""
        if equals and flag in _WEIGHTS:
            yield value
        elif before in _WEIGHTS or (before == "serve" and position > 1):  # vllm serve MODEL
            yield word


def _is_file_name(name: str) -> bool:
    return name.endswith((".gguf", ".bin", ".safetensors"))


def _size(folder: Path, name: str) -> int:
    """Bytes of a file, with its other parts; of a folder of safetensors; 0 if there is none."""
    try:
        path = folder / Path(name).expanduser()
        if path.is_dir():
            return sum(part.stat().st_size for part in path.glob("*.safetensors"))
        if match := _SHARD.search(name):
            pattern = _SHARD.sub(f"-*-of-{match[1]}.gguf", path.name)
            return sum(part.stat().st_size for part in path.parent.glob(pattern))
        return path.stat().st_size if path.is_file() else 0
    except (OSError, RuntimeError, ValueError):  # not to be read, no home, a NUL in the name: then there is its name
        return 0


def _by_name(name: str) -> float:
    """MB of weights by how many parameters and which quantization the name speaks of; 0 if it does not."""
    base = name.replace("\\", "/").rpartition("/")[2]
    counts = [float(count) / (1 if unit in "bB" else 1000) for count, unit in _PARAMETERS.findall(base)]
    unsaid = 4.9 if "gguf" in base.lower() else 16.0  # llama.cpp fetches Q4_K_M of a repository unless told otherwise
    bits = next((bits for pattern, bits in _QUANTS if re.search(pattern, base, re.IGNORECASE)), unsaid)
    return max(counts, default=0.0) * 1000 * bits / 8


def _context(command: Command) -> int:
    text = command.after(*_CONTEXT)
    return int(text) if text.isdecimal() and len(text) < 9 else 0


def _rounded(amount_mb: float) -> int:
    return -(-int(amount_mb) // 100) * 100
