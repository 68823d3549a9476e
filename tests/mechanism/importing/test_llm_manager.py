"""What LLM-Manager's settings become, its scripts and plugins among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sidecar.mechanism.importing.reading import InputError
from sidecar.mechanism.importing.scripts import understand
from tests.mechanism.importing.world import convert, models, text, tree, validated


def test_a_script_that_runs_one_command_becomes_that_command(tmp_path: Path) -> None:
    found = models(convert("llm_manager/config.yaml", tree("llm_manager/config.yaml")), tmp_path)[
        "Next-80B-64K"
    ].variants
    assert found[0].command[:3] == ("./llama-server", "-m", "/models/next-80b-Q4_K_M.gguf")
    assert "{port}" in found[0].command
    assert (found[0].cwd, found[0].env) == ("/opt/llama", {"LD_LIBRARY_PATH": "/opt/llama/lib"})
    assert found[0].memory_mb == {"rtx 4060": 6144, "v100": 1, "cpu": 6144}
    assert found[1].env == {"CUDA_VISIBLE_DEVICES": "-1"}
    assert found[1].command[0] == "C:\\llama\\llama-server.exe"


def test_a_script_that_does_more_is_run_with_the_port_behind_it(tmp_path: Path) -> None:
    imported = convert("llm_manager/config.yaml", tree("llm_manager/config.yaml"))
    (variant,) = models(imported, tmp_path)["Reranker"].variants
    assert variant.command == ("scripts/clever.sh", "--port", "{port}")
    assert variant.cwd.endswith("/configs/llm_manager")
    assert "# CHECK: scripts/clever.sh must listen" in imported.files["models/Reranker.toml"]


@pytest.mark.parametrize(
    ("script", "command"),
    [
        ("#!/bin/sh\nexec server --port 1\n", ("server", "--port", "1")),
        ("@echo off\r\nREM x\r\nserver.exe -m C:\\x ^\r\n --port 1\r\n", ("server.exe", "-m", "C:\\x", "--port", "1")),
        ("server --port 1 | tee log\n", None),
        ("server --port $PORT\n", None),
        ("server --port 1 > log\n", None),
        ("server1 &\nserver2\n", None),
        ("one\ntwo\n", None),
        ("if true; then server; fi\n", None),
        ("export A=$(date)\nserver\n", None),
        ("server 'x\n", None),
        ("", None),
    ],
)
def test_only_what_can_mean_one_thing_is_understood(script: str, command: tuple[str, ...] | None) -> None:
    found = understand(script)
    assert (found.command.words if found else None) == command


def test_a_model_of_the_first_form_has_the_devices_that_it_takes_memory_of(tmp_path: Path) -> None:
    found = models(convert("llm_manager/first.json", tree("llm_manager/first.json")), tmp_path)
    assert {name: [(v.required_devices, v.memory_mb) for v in model.variants] for name, model in found.items()} == {
        "Coder-30B": [(("rtx 4060", "v100"), {"rtx 4060": 6144, "v100": 16000})],
        "Story-14B": [(("v100",), {"v100": 16000})],
        "Slow-7B": [(("cpu",), 4096)],  # guessed, which its file says
    }
    assert found["Story-14B"].auto_start
    assert found["Story-14B"].variants[0].command[0] == "C:\\llama\\llama-server.exe"


def test_gpus_are_matched_by_parts_of_their_names(tmp_path: Path) -> None:
    loaded, problems = validated(convert("llm_manager/config.json", tree("llm_manager/config.json")), tmp_path)
    assert problems == []
    devices = loaded.declaration.devices
    assert {name: (one.match.device_class, one.match.name) for name, one in devices.items()} == {
        "rtx 4060": ("nvidia", "*RTX 4060*"),
        "v100": ("nvidia", "*V100*"),
    }


def test_plugins_of_ones_own_get_a_place_that_knows_of_nothing(tmp_path: Path) -> None:
    imported = convert("llm_manager/guide.json", tree("llm_manager/guide.json"))
    loaded, problems = validated(imported, tmp_path)
    assert problems == []
    assert {"plugins/my_gpu.py", "plugins/mymode.py"} <= imported.files.keys()
    model = loaded.declaration.models["MyModel"]
    assert (model.modes, model.variants[0].required_devices) == (("MyMode",), ("my_gpu",))
    device: Any = loaded.catalog.providing("device")["my_gpu"].make()
    with pytest.raises(OSError, match="is to be ported"):
        device.probe()


def test_plugins_of_the_same_name_get_names_of_their_own(tmp_path: Path) -> None:
    content = """{
      "a": {"aliases": ["x"], "mode": "my_gpu", "port": 1,
            "s": {"required_devices": ["my_gpu", "test gpu"], "script_path": "a.sh", "memory_mb": 5}}
    }"""
    imported = text("llm_manager", content)
    assert {"plugins/my_gpu.py", "plugins/my_gpu_2.py", "plugins/p_test_gpu.py"} <= imported.files.keys()
    assert models(imported, tmp_path)["a"].modes == ("my_gpu",)


def test_an_open_address_is_not_opened_without_keys(tmp_path: Path) -> None:
    imported = convert("llm_manager/config.json", tree("llm_manager/config.json"))
    loaded, problems = validated(imported, tmp_path)
    assert problems == []
    assert loaded.declaration.settings.listen == "127.0.0.1:8080"
    (entry,) = [entry for entry in imported.entries if entry.path == "program.openai_host"]
    assert "[plugins.keys]" in entry.do


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("Local-Models: {a: {mode: Chat}}", "Local-Models.a: expected at least one way to run it"),
        (
            "Local-Models: {a: {s: {required_devices: [cpu]}}}",
            "Local-Models.a.s: expected required_devices, and a script_path",
        ),
        ("a: {gpu_mem_mb: {v100: 1}}", "a: expected required_devices, and a script_path or bat_path"),
        ("a: {bat_path: a.bat, gpu_mem_mb: 7}", "a.gpu_mem_mb: expected a table"),
        ("Local-Models: {a: 1}", "Local-Models.a: expected a table"),
        ("program: {port: http}", "program.port: expected a number"),
    ],
)
def test_what_cannot_be_meant_is_told_with_its_place(content: str, told: str) -> None:
    with pytest.raises(InputError) as error:
        text("llm_manager", content)
    assert told in str(error.value)
