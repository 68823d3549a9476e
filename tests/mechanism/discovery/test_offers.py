"""From what was found to manifests: names, modes, commands, memory, and what is left for people."""

from __future__ import annotations

import tomllib
from typing import Any

import msgspec

from sidecar.mechanism.discovery import asking
from sidecar.mechanism.discovery.asking import Answer, Served
from sidecar.mechanism.discovery.offers import Found, Wanted, convert
from sidecar.mechanism.discovery.processes import Held
from sidecar.mechanism.discovery.sockets import Listener
from sidecar.mechanism.importing.account import Fate
from sidecar.mechanism.importing.draft import Imported, Options

VLLM = (
    "/opt/vllm/bin/python",
    "/opt/vllm/bin/vllm",
    "serve",
    "Qwen/Qwen3-8B",
    "--port",
    "9000",
    "--api-key",
    "sk-vllm",
)


def found(port: int, *models: str, engine: str = "", why: str = "", **held: Any) -> Found:
    """A server."""
    answer = Answer(engine, tuple(Served(model) for model in models), why)
    return Found(Listener("127.0.0.1", port, (1,)), answer, Held(pid=1, **held) if models else Held())


def offered(*servers: Found, manage: bool = False, key: str = "", listen: str = "") -> tuple[Imported, dict[str, Any]]:
    """What is offered, and the models in it."""
    imported = convert(servers, Wanted(Options(listen=listen), manage, key))
    models: dict[str, Any] = {}
    for name, text in imported.files.items():
        if name.startswith("models/"):
            models |= tomllib.loads(text)["models"]
    return imported, models


def test_a_server_is_offered_where_it_runs() -> None:
    imported, models = offered(found(9000, "qwen", engine="vLLM"), found(9001, "bge-m3"))
    assert models == {
        "qwen": {
            "mode": ["chat", "base", "messages", "responses"],
            "variants": [{"url": "http://127.0.0.1:9000"}],
        },
        "bge-m3": {"mode": "embedding", "variants": [{"url": "http://127.0.0.1:9001"}]},
    }
    assert not [entry for entry in imported.entries if entry.fate is Fate.LEFT]


def test_a_file_is_called_by_its_name_and_clients_may_go_on_calling_it_as_before() -> None:
    _, models = offered(found(9000, "/srv/models/qwen3-8b-q4.gguf", engine="llama.cpp"))
    assert models["qwen3-8b-q4"]["aliases"] == ["/srv/models/qwen3-8b-q4.gguf"]
    assert models["qwen3-8b-q4"]["variants"][0]["model_name"] == "/srv/models/qwen3-8b-q4.gguf"


def test_servers_with_the_same_model_share_its_load() -> None:
    _, models = offered(found(9000, "qwen"), found(9001, "qwen"))
    assert [variant["url"] for variant in models["qwen"]["variants"]] == [
        "http://127.0.0.1:9000",
        "http://127.0.0.1:9001",
    ]
    assert models["qwen"]["balance"] == "least_busy"


def test_a_command_is_offered_with_its_port_open_its_memory_measured_and_its_secrets_hidden() -> None:
    env = {"HF_TOKEN": "hf-secret", "CUDA_VISIBLE_DEVICES": "1", "VLLM_LOGGING_LEVEL": "INFO"}
    held: dict[str, Any] = {
        "command": VLLM,
        "env": env,
        "cwd": "/srv",
        "private_mb": 3000,
        "devices": {"nvidia:1": 20_000},
    }
    imported, models = offered(found(9000, "qwen", engine="vLLM", **held), manage=True)
    (variant,) = models["qwen"]["variants"]
    assert variant["command"] == [*VLLM[:5], "{port}", "--api-key", "{env.QWEN_API_KEY}"]
    assert (variant["required_devices"], variant["memory_mb"], variant["cwd"]) == (["nvidia"], 22_000, "/srv")
    assert variant["env"] == {"HF_TOKEN": "{env.HF_TOKEN}", "VLLM_LOGGING_LEVEL": "INFO"}
    assert variant["exclusive_start"] is True
    assert set(imported.variables) == {"HF_TOKEN", "QWEN_API_KEY"}
    assert "secret" not in "".join(imported.files.values())
    assert "sk-vllm" not in repr(imported)


def test_one_without_a_gpu_is_measured_by_the_memory_of_its_processes() -> None:
    _, models = offered(found(9000, "m", command=("serve", "--port=9000"), private_mb=1234), manage=True)
    (variant,) = models["m"]["variants"]
    assert (variant["required_devices"], variant["memory_mb"]) == (["cpu"], 1400)
    assert variant["command"] == ["serve", "--port={port}"]


def test_what_cannot_be_started_by_us_stays_where_it_runs_and_is_told() -> None:
    servers = (
        found(9000, "a", command=("serve", "-p9000")),
        found(9001, "b", why="", command=(), env={}),
        found(9002, "c", "d", engine="Ollama", command=("ollama", "serve")),
    )
    imported, models = offered(*servers, manage=True)
    assert all("url" in models[name]["variants"][0] for name in "abcd")
    left = {entry.path: entry.why for entry in imported.entries if entry.fate is Fate.LEFT}
    assert "does not say 9000" in left['"127.0.0.1:9000".process']
    assert "several models" in left['"127.0.0.1:9002".process']


def test_those_that_were_not_understood_are_listed_with_what_to_do() -> None:
    servers = (
        found(9000, why=asking.NEEDS_KEY),
        found(9001, why=asking.SLOW),
        found(9002, "m", ours=True),
        found(9003, why=asking.SIDECAR),
    )
    imported, models = offered(*servers)
    told = {entry.path.split(".engine")[0].split(".models")[0]: (entry.why, entry.do) for entry in imported.entries}
    assert models == {}
    assert told['"127.0.0.1:9000"'] == (asking.NEEDS_KEY, "name the variable that has it with --api-key-env")
    assert told['"127.0.0.1:9001"'] == (asking.SLOW, "")


def test_a_key_is_named_for_those_who_ask_for_one_and_never_written() -> None:
    shut = found(9000, "m")
    shut = msgspec.structs.replace(shut, answer=msgspec.structs.replace(shut.answer, keyed=True))
    imported, models = offered(shut, found(9001, "n"), key="VLLM_KEY")
    assert models["m"]["variants"] == [{"url": "http://127.0.0.1:9000", "api_key": {"env": "VLLM_KEY"}}]
    assert models["n"]["variants"] == [{"url": "http://127.0.0.1:9001"}]
    assert imported.variables == {"VLLM_KEY": "the key that servers ask for"}


def test_the_sidecar_listens_where_nobody_does() -> None:
    imported, _ = offered(found(8080, "m"), found(8081, why=asking.SLOW))
    assert tomllib.loads(imported.files["sidecar.toml"])["sidecar"]["listen"] == "127.0.0.1:8082"
    chosen, _ = offered(found(8080, "m"), listen="127.0.0.1:7000")
    assert tomllib.loads(chosen.files["sidecar.toml"])["sidecar"]["listen"] == "127.0.0.1:7000"
