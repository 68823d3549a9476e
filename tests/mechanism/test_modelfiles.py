"""The files of a model are found by what a command says, however it says it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sidecar.mechanism import modelfiles
from sidecar.mechanism.modelfiles import named


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Models, and things that are none."""
    for name, size in {
        "m.gguf": 10,
        "big-00001-of-00002.gguf": 20,
        "big-00002-of-00002.gguf": 30,
        "hf/model-1.safetensors": 40,
        "hf/model-2.safetensors": 50,
        "hf/pytorch_model.bin": 60,
        "hf/config.json": 1,
        "serve.py": 7,
        "old/pytorch_model.bin": 70,
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    return tmp_path


@pytest.mark.parametrize(
    ("argv", "sizes"),
    [
        (["-m", "m.gguf", "--port", "1"], [10]),
        (["--model=m.gguf"], [10]),
        (["-m", "big-00001-of-00002.gguf"], [20, 30]),
        (["--model", "hf"], [40, 50]),
        (["--model", "old"], [70]),
        (["serve.py", "--name", "x", ""], []),
        (["-m", "gone.gguf", "no/where", "nul\0", "x" * 5000], []),
        (["m.gguf", "./m.gguf"], [10]),
    ],
)
def test_what_a_command_names_is_found_once(folder: Path, argv: list[str], sizes: list[int]) -> None:
    assert list(named(["serve", *argv], folder, {}).values()) == sizes


def test_the_program_itself_is_no_model(folder: Path) -> None:
    assert named([str(folder / "m.gguf")], folder, {}) == {}


def test_a_large_file_of_no_known_kind_is_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelfiles, "LARGE_BYTES", 7)
    assert named(["serve", "serve.py"], folder, {}) == {str(folder / "serve.py"): 7}


def test_a_model_of_the_hub_is_found_in_its_cache_by_the_newest_snapshot(folder: Path) -> None:
    cache = folder / "cache" / "hub" / "models--org--m"
    (cache / "blobs").mkdir(parents=True)
    for when, name in enumerate(("old", "new")):
        snapshot = cache / "snapshots" / name
        snapshot.mkdir(parents=True)
        (cache / "blobs" / name).write_bytes(b"x" * (100 + when))
        (snapshot / "model.safetensors").symlink_to(cache / "blobs" / name)
        (snapshot / "gone.safetensors").symlink_to(cache / "blobs" / "gone")
        os.utime(snapshot, (when, when))
    found = {str(cache / "blobs" / "new"): 101}
    assert named(["vllm", "serve", "org/m"], folder, {"HF_HOME": str(folder / "cache")}) == found
    assert named(["vllm", "serve", "org/m"], folder, {"HF_HUB_CACHE": str(folder / "cache" / "hub")}) == found
    assert named(["vllm", "serve", "org/other"], folder, {"HF_HOME": str(folder / "cache")}) == {}


def test_folders_without_end_are_not_read_to_the_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelfiles, "MOST_FILES", 1)
    assert list(named(["serve", "hf"], folder, {}).values()) == [40]
