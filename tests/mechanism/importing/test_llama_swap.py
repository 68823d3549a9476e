"""What llama-swap's settings become, one by one."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.core.manifest import Variant
from sidecar.mechanism.importing.account import Fate
from sidecar.mechanism.importing.draft import NOBODY
from sidecar.mechanism.importing.reading import InputError
from tests.mechanism.importing.world import models, text, validated


def variant(content: str, folder: Path, name: str = "m") -> Variant:
    """The one variant of a model."""
    (found,) = models(text("llama_swap", content), folder)[name].variants
    assert isinstance(found, Variant)
    return found


def test_macros_hold_others_and_a_models_own_come_first(tmp_path: Path) -> None:
    content = """
macros:
  bin: llama-server
  run: "${bin} --port ${PORT} ${size}"
  size: "-c 1"
models:
  m:
    macros: {size: "-c ${n}", n: 2}
    cmd: ${run} --alias ${MODEL_ID}
"""
    assert variant(content, tmp_path).command == ("llama-server", "--port", "{port}", "-c", "2", "--alias", "m")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            "models: {m: {cmd: '${gone} --port ${PORT}'}}",
            "models.m.cmd: expected macros that there are: there is none called gone",
        ),
        (
            "macros: {a: '${b}', b: '${a}'}\nmodels: {m: {cmd: '${a}'}}",
            "models.m.cmd: expected macros that come to an end",
        ),
        (
            "macros: {a: '${b}${b}', b: '${a}x'}\nmodels: {m: {cmd: '${a}'}}",
            "models.m.cmd: expected macros that come to an end",
        ),
        ("models: {m: {ttl: 1}}", "models.m: expected a cmd"),
        ('models: {m: {cmd: "a \'b"}}', "models.m.cmd: expected a command"),
        ("models: {m: {cmd: [a]}}", "models.m.cmd: expected text"),
        ("models: [m]", "models: expected a table"),
        ("models: {m: {cmd: 's ${PORT}', ttl: soon}}", "models.m.ttl: expected a number"),
        ("models: {m: {cmd: 's ${PORT}', env: [A]}}", "models.m.env[0]: expected NAME=value"),
        ("models: {m: {cmd: 's', proxy: 'http://10.0.0.1:x'}}", "models.m.proxy: expected an address"),
        ("models: {m: {cmd: 's ${PORT}'}}\nstartPort: 70000", "startPort: expected a port"),
        ("peers: {p: {proxy: http://x}}", "peers.p: expected a proxy and a list of models"),
    ],
)
def test_what_cannot_be_meant_is_told_with_its_place(content: str, told: str) -> None:
    with pytest.raises(InputError) as error:
        text("llama_swap", content)
    assert told in str(error.value)


def test_visible_devices_become_those_that_are_required(tmp_path: Path) -> None:
    content = "models: {m: {cmd: 's --port ${PORT}', env: ['CUDA_VISIBLE_DEVICES=%s', 'A=b']}}"
    told = {
        "0": ("nvidia:0",),
        "1,0": ("nvidia:1", "nvidia:0"),
        "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6": ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6",),
        "-1": ("cpu",),
    }
    for number, (value, devices) in enumerate(told.items()):
        found = variant(content % value, tmp_path / str(number))
        assert (found.required_devices, found.env) == (devices, {"A": "b"})


def test_a_containers_gpus_are_read_from_its_command(tmp_path: Path) -> None:
    cmd = "docker run --gpus \\'\"device=1,2\"\\' -p ${PORT}:80 vllm/vllm-openai --model x"
    found = variant(f"models: {{m: {{cmd: '{cmd.replace(chr(92) + chr(39), '')}'}}}}", tmp_path)
    assert found.required_devices == ("nvidia:1", "nvidia:2")
    assert found.foreign_listener
    assert found.exclusive_start


def test_a_server_that_asks_for_a_key_is_given_it(tmp_path: Path) -> None:
    imported = text("llama_swap", "models: {m: {cmd: 'llama-server --port ${PORT} --api-key sk-plain-one'}}")
    assert "sk-plain-one" not in repr(imported)
    found = validated(imported, tmp_path)[0].declaration.models["m"].variants[0]
    assert found.api_key is not None
    assert list(imported.variables) == ["M_API_KEY"]


def test_different_secrets_get_different_variables_and_the_same_one_the_same() -> None:
    models_ = "".join(
        f"  m{n}: {{cmd: 's --port ${{PORT}}', env: ['HF_TOKEN={value}']}}\n"
        for n, value in enumerate(["a1", "b2", "a1"])
    )
    imported = text("llama_swap", f"models:\n{models_}")
    assert list(imported.variables) == ["HF_TOKEN", "HF_TOKEN_2"]
    used = [imported.files[f"models/m{n}.toml"] for n in range(3)]
    assert ['"{env.HF_TOKEN}"' in one for one in used] == [True, False, True]


def test_a_secret_takes_no_variable_that_the_configuration_speaks_of() -> None:
    content = "models: {m: {cmd: 's --port ${PORT} ${env.HF_TOKEN}', env: [HF_TOKEN=plain]}}"
    assert list(text("llama_swap", content).variables) == ["HF_TOKEN_2"]


def test_templates_with_braces_come_from_a_variable(tmp_path: Path) -> None:
    imported = text("llama_swap", "models: {m: {cmd: \"llama-server --port ${PORT} --chat-template '{{x}}{name}'\"}}")
    assert list(imported.variables) == ["M_ARGUMENT_4"]
    assert models(imported, tmp_path)["m"]


def test_a_name_that_is_none_here_stays_as_an_alias_and_takes_nobodys_name(tmp_path: Path) -> None:
    found = models(
        text("llama_swap", "models: {My Model!: {cmd: 's ${PORT}'}, My-Model: {cmd: 's ${PORT}'}}"), tmp_path
    )
    assert {name: model.aliases for name, model in found.items()} == {"My-Model": (), "My-Model-2": ("My Model!",)}


def test_what_a_peer_has_gives_way_to_local_names_and_aliases(tmp_path: Path) -> None:
    content = """
models: {m: {cmd: 's ${PORT}', aliases: [x]}}
peers:
  p: {proxy: 'http://p:1', models: [m, x, y]}
  q: {proxy: 'http://q:1', models: [y]}
"""
    found = models(text("llama_swap", content), tmp_path)
    told = {name: model.variants[0].model_name for name, model in found.items() if name != "m"}
    assert told == {"p/m": "m", "p/x": "x", "y": "", "q/y": "y"}
    assert found["y"].aliases == ("p/y",)


def test_names_that_are_the_same_as_files_get_files_of_their_own() -> None:
    imported = text("llama_swap", "models: {a/b: {cmd: 's ${PORT}'}, a-b: {cmd: 's ${PORT}'}, A-B: {cmd: 's ${PORT}'}}")
    files = [name for name in imported.files if name.startswith("models/")]
    assert len({name.casefold() for name in files}) == 3


def test_keys_that_are_not_known_here_leave_the_door_shut(tmp_path: Path) -> None:
    imported = text("llama_swap", "apiKeys: ['${env.GONE}']\nmodels: {m: {cmd: 's ${PORT}'}}")
    loaded, problems = validated(imported, tmp_path)
    assert problems == []
    assert loaded.declaration.settings.chain == ("keys",)
    assert loaded.declaration.plugins["keys"].config == {"keys": {NOBODY: "nobody"}}
    assert any("no client has a key yet" in note for note in imported.notes)


def test_keys_in_variables_that_are_set_are_hashed() -> None:
    imported = text("llama_swap", "apiKeys: ['${env.KEY_A}', b]", KEY_A="sk-from-there")
    assert NOBODY not in imported.files["plugins.toml"]
    assert imported.files["plugins.toml"].count("sha256:") == 2
    assert "sk-from-there" not in repr(imported)


def test_without_keys_there_is_no_door_and_it_listens_on_loopback(tmp_path: Path) -> None:
    loaded, _ = validated(text("llama_swap", "models: {m: {cmd: 's ${PORT}'}}"), tmp_path)
    assert loaded.declaration.settings.listen == "127.0.0.1:8080"
    assert loaded.declaration.settings.chain == ()


def test_requests_in_flight_are_limited_for_each_model_and_by_nothing_else(tmp_path: Path) -> None:
    content = """
models:
  a: {cmd: 's ${PORT}', concurrencyLimit: 2, filters: {stripParams: seed}}
  b: {cmd: 's ${PORT}', concurrencyLimit: 2}
  c: {cmd: 's ${PORT}', concurrencyLimit: 30}
  d: {cmd: 's ${PORT}', concurrencyLimit: 0}
"""
    imported = text("llama_swap", content)
    loaded, problems = validated(imported, tmp_path)
    assert problems == []
    assert {name: model.chain or () for name, model in loaded.declaration.models.items()} == {
        "a": ("params-a", "limits-2"),
        "b": ("limits-2",),
        "c": ("limits-30",),
        "d": (),
    }
    for most in (2, 30):
        config = loaded.declaration.plugins[f"limits-{most}"].config
        assert config == {"requests_per_minute": 0, "tokens_per_minute": 0, "concurrent_total": most}
    fates = {entry.path: (entry.fate, entry.to) for entry in imported.entries if "concurrencyLimit" in entry.path}
    assert fates["models.c.concurrencyLimit"] == (Fate.CHANGED, "plugins.limits-30.config.concurrent_total")
    assert fates["models.d.concurrencyLimit"] == (Fate.CHANGED, "")


def test_what_is_stripped_and_set_is_set(tmp_path: Path) -> None:
    content = (
        "models: {m: {cmd: 's ${PORT}', filters: {stripParams: 'seed, top_p,model', setParams: {top_p: 1, model: x}}}}"
    )
    imported = text("llama_swap", content)
    loaded, problems = validated(imported, tmp_path)
    assert problems == []
    assert loaded.declaration.plugins["params-m"].config == {"set": {"top_p": 1}, "strip": ["seed"]}
    assert loaded.declaration.models["m"].chain == ("params-m",)
    (entry,) = [entry for entry in imported.entries if entry.path == "models.m.filters.setParams.model"]
    assert entry.fate is Fate.LEFT


def test_relative_paths_are_meant_from_where_the_configuration_lay(tmp_path: Path) -> None:
    here, there, path = (
        variant(f"models: {{m: {{cmd: '{cmd} --port ${{PORT}}'}}}}", tmp_path / str(number)).cwd
        for number, cmd in enumerate(
            ("./bin/llama-server", "llama-server -m models/x.gguf", "llama-server -m /m/x.gguf")
        )
    )
    assert (here, there, path) == ("/opt/gateway", "/opt/gateway", "")


def test_a_command_that_does_not_say_its_port_gets_it_in_a_variable_and_is_marked(tmp_path: Path) -> None:
    imported = text("llama_swap", "models: {m: {cmd: some-server, proxy: 'http://127.0.0.1:7'}}")
    assert models(imported, tmp_path)["m"].variants[0].env == {"PORT": "{port}"}
    assert "# CHECK: its command does not say which port" in imported.files["models/m.toml"]


def test_null_is_told_since_toml_has_none() -> None:
    imported = text("llama_swap", "models: {m: {cmd: 's ${PORT}', filters: {setParams: {stop: null, seed: 1}}}}")
    (entry,) = [entry for entry in imported.entries if entry.path.endswith(".stop")]
    assert entry.fate is Fate.LEFT
    assert "null" in entry.why


def test_nothing_gives_settings_and_no_models(tmp_path: Path) -> None:
    assert models(text("llama_swap", "models: {}"), tmp_path) == {}
