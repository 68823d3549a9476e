"""Which files of a model a command names, and how large they are: what a server has to read before it is ready.

What an argument names is a guess by its form: a file with weights, a folder of such, or a model of the Hugging Face hub
that lies in its cache. What is downloaded, or named in no argument, is not known here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

SUFFIXES = frozenset(
    {".gguf", ".ggml", ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".npz", ".nemo", ".engine"}
)
LARGE_BYTES = 64 * 2**20  # a file of no known kind that a server is given is its model if it is as large as that
MOST_FILES = 2000

_split = re.compile(r"(.*)-\d{5}-of-(\d{5})\.gguf$")
_hub_name = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+$")


def named(argv: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> dict[str, int]:
    """Paths, without symbolic links in them, and sizes in bytes. Reads folders: keep it off the event loop."""
    found: dict[str, int] = {}
    for argument in argv[1:]:
        text = argument.partition("=")[2] if argument.startswith("--") and "=" in argument else argument
        for path in _files(text, cwd, environment):
            if len(found) >= MOST_FILES:
                return found
            size = _size(path)
            if size:
                found[str(path.resolve())] = size
    return found


def _files(text: str, cwd: Path, environment: Mapping[str, str]) -> Iterable[Path]:
    if not text or text.startswith("-") or "\0" in text or len(text) > 4096:
        return ()
    path = cwd / text
    try:
        if path.is_file():
            return _parts(path) if path.suffix in SUFFIXES or path.stat().st_size >= LARGE_BYTES else ()
        if path.is_dir():
            return _weights(path)
        if _hub_name.match(text):
            return _in_hub(text, environment)
    except OSError:
        pass  # not to be looked at, by us at least: then it is not known, as if it were named nowhere
    return ()


def _parts(path: Path) -> Iterator[Path]:
    """All files of a model that llama.cpp has split, of which only the first is named."""
    split = _split.match(path.name)
    if split is None:
        yield path
        return
    yield from sorted(path.parent.glob(f"{split[1]}-?????-of-{split[2]}.gguf"))


def _weights(folder: Path) -> list[Path]:
    """Those that lie in a folder: of safetensors and older forms beside them, only the former are read."""
    files = [path for path in folder.iterdir() if path.suffix in SUFFIXES]
    safe = [path for path in files if path.suffix == ".safetensors"]
    return sorted(safe or files)


def _in_hub(name: str, environment: Mapping[str, str]) -> list[Path]:
    """Of a model in the hub's cache (huggingface.co/docs/huggingface_hub/guides/manage-cache), the newest snapshot."""
    home = environment.get("HF_HOME") or Path(environment.get("HOME", "/")) / ".cache" / "huggingface"
    cache = Path(environment.get("HF_HUB_CACHE") or Path(home) / "hub")
    snapshots = cache / f"models--{name.replace('/', '--')}" / "snapshots"
    if not snapshots.is_dir():
        return []
    newest = max(snapshots.iterdir(), key=lambda path: path.stat().st_mtime, default=None)
    return _weights(newest) if newest is not None else []


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # a link of the cache that leads nowhere
