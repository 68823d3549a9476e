"""The schema says what the loader says: of every key, with good and bad values; and taplo reads it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import tomli_w

from plugin_sdk.config import convert
from sidecar.core.manifest import DeviceDeclaration, DeviceMatch, Model, PluginDeclaration, Settings, Variant
from sidecar.mechanism import checker, loader, manual, rules, schema, source
from sidecar.mechanism.places import Path as Place
from sidecar.mechanism.schema import Names
from sidecar.mechanism.sources import Library
from tests.support import write

ROOT = Path(__file__).resolve().parents[2]
TAPLO = Path(sysconfig.get_path("scripts")) / "taplo"

KEYS = {"sha256:" + "8c" * 32: "ann"}
COMMAND = {"required_devices": ["cpu"], "memory_mb": 100, "command": ["serve", "{port}"]}
URL = {"url": "http://127.0.0.1:9000"}
GOOD: dict[str, Any] = {
    "sidecar": {"chain": ["door", "log"]},
    "plugins": {"door": {"import": "sidecar.builtin.keys:StaticKeys", "config": {"keys": KEYS}}},
    "devices": {"big": {"match": {"index": 0}}},
    "models": {"m": {"mode": "chat", "variants": [COMMAND]}, "e": {"mode": ["chat", "base"], "variants": [URL, URL]}},
}
TABLES: dict[tuple[str | int, ...], type[msgspec.Struct]] = {
    ("sidecar",): Settings,
    ("plugins", "door"): PluginDeclaration,
    ("devices", "big"): DeviceDeclaration,
    ("devices", "big", "match"): DeviceMatch,
    ("models", "m"): Model,
    ("models", "m", "variants", 0): Variant,
    ("models", "e", "variants", 0): Variant,
}
VALUES: list[Any] = [
    *(True, False, 0, 1, -1, 70000, 1.5, "", "x", "0s", "30s", "1h30m", "soon", "30", "64MB", "1GiB", "41000-41999"),
    *("127.0.0.1:80", "127.0.0.1:99999", "localhost", "stop", "keep", "deny", "skip", "disable", "chat", "chta", "cpu"),
    *("cpu:0", "GPU-12ab", "big", "nvidai", "round_robin", "http://h:1", "https://h/v1", "ftp://h", "http://u@h"),
    *("http://h?q", "unix:/run/s", "unix:x", "{port}", "{prot}", "{env.HOME}", "a.b:C", "a.b", "entry:x", "*"),
    *("https://a.example", "https://a.example/", "log", "door", "lgo"),
    *([], [1], [""], ["x"], ["chat"], ["chta"], ["chat", "base"], ["cpu"], ["cpu", "cpu"], ["cpu:1"], ["big"]),
    *(["nvidai"], ["log"], ["log", "log"], ["lgo"], ["door", "log"], ["cpu", "log"], ["serve", "{port}"], ["serve"]),
    *(["serve", "{port}", "{prot}"], ["https://a.example"], ["https://a.example/"], [[]], [{}]),
    *({}, {"a": 1}, {"a": "x"}, {"A": "{port}"}, {"A": "{prot}"}, {"A=B": "x"}, {"cpu": 5}, {"cpu": 0}, {"cpu": "x"}),
    *({"env": "HOME"}, {"file": __file__}, {"env": "HOME", "file": "x"}, {"index": 0}, {"class": "cpu"}),
    *({"class": "nope"}, {"index": "0"}, {"keys": KEYS}, {"kyes": KEYS}, {"keys": KEYS, "recheck": "2s"}),
    *({"keys": KEYS, "recheck": 2},),
]
# What no schema can say, or does not say here: by key, with the values at which the loader alone finds a fault.
BEYOND: dict[str, list[Any]] = {
    "import": ["a.b:C", "unix:x", "entry:x"],  # whether there is such a module
    "memory_mb": [{"a": 1}],  # of a device that is not required
    "config": [{}],  # what a plugin's settings say by themselves
    "balance": ["round_robin"],  # with fewer than two servers
    "url": ["{port}", "{env.HOME}"],  # what placeholders stand for
    "aliases": [value for value in VALUES if isinstance(value, list)],  # who else is called so
    "listen": ["0.0.0.0:80"],  # who is in the chain
}


@pytest.fixture(scope="module")
def library() -> Library:
    return Library()


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory, library: Library) -> Any:
    """A validator by the schema for GOOD."""
    loaded = load(tmp_path_factory.mktemp("good"), GOOD, library)
    assert loaded.problems == ()
    names = Names.of(loaded.catalog, ["door"], ["big"], strict=True)
    made, faults = schema.manifests(names, schema.offers(library)[0])
    assert faults == []
    jsonschema.Draft7Validator.check_schema(made)
    return jsonschema.Draft7Validator(made)


def load(root: Path, declared: dict[str, Any], library: Library) -> loader.Loaded:
    """What the loader says of it."""
    write(root, {"all.toml": tomli_w.dumps(declared)})
    return loader.load(source.read(root), {"HOME": "/root"}, library=library)


def telling(path: tuple[str | int, ...], key: str) -> list[tuple[int, Any]]:
    """Of VALUES, with their numbers: all of a type that the key may have, and the first of every other type."""
    kind = next(field.type for field in msgspec.structs.fields(TABLES[path]) if field.encode_name == key)
    first: dict[type, int] = {}
    may_be = set()
    for number, value in enumerate(VALUES):
        first.setdefault(type(value), number)
        with contextlib.suppress(msgspec.ValidationError):
            convert(value, kind)
            may_be.add(type(value))
    return [(n, value) for n, value in enumerate(VALUES) if type(value) in may_be or first[type(value)] == n]


def others(path: tuple[str | int, ...], key: str) -> dict[str, Any]:
    """Like the thing at `path` but for one key: what a section holds then, by name, with numbers of VALUES."""
    section, name, *below = path
    made = {}
    for number, value in telling(path, key):
        thing: Any = json.loads(json.dumps(GOOD[str(section)][name]))
        table = thing
        for step in below:
            table = table[step]
        table[key] = value
        made[f"t{number}"] = thing
    return made


def fields(*paths: tuple[str | int, ...]) -> list[tuple[tuple[str | int, ...], str]]:
    return [(path, field.encode_name) for path in paths for field in msgspec.structs.fields(TABLES[path])]


def named(value: Any) -> str:
    return value if isinstance(value, str) else ".".join(map(str, value))


def agree(key: str, told: dict[int, list[str]], errors: dict[int, bool]) -> None:
    """The loader and the schema find fault with the same values, but for what no schema can know."""
    differ = []
    for number in errors:
        value = VALUES[number]
        faulty, wrong = told.get(number, []), errors[number]
        if bool(faulty) != wrong and not (faulty and value in BEYOND.get(key, [])):
            differ.append((value, faulty or "only the schema finds fault with it"))
    assert differ == []


@pytest.mark.parametrize(("path", "key"), fields(*list(TABLES)[1:]), ids=named)
def test_it_agrees_with_the_loader_on_every_key(
    path: tuple[str | int, ...], key: str, strict: Any, tmp_path: Path, library: Library
) -> None:
    section = str(path[0])
    things = others(path, key)
    told: dict[int, list[str]] = {}
    for problem in load(tmp_path, {**GOOD, section: {**GOOD[section], **things}}, library).problems:
        told.setdefault(int(problem.subject[1][1:]), []).append(str(problem))
    errors = {int(name[1:]): not strict.is_valid({section: {name: thing}}) for name, thing in things.items()}
    agree(key, told, errors)


@pytest.mark.parametrize(("path", "key"), fields(("sidecar",)), ids=named)
def test_it_agrees_with_the_loader_on_the_settings(
    path: tuple[str | int, ...], key: str, strict: Any, tmp_path: Path, library: Library
) -> None:
    loaded = load(tmp_path, GOOD, library)
    told: dict[int, list[str]] = {}
    for number, value in telling(path, key):
        found = told.setdefault(number, [])

        def report(path: Place, message: str, meant: Place | None = None, to: list[str] = found) -> None:
            to.append(message)

        settings = checker.read({**GOOD["sidecar"], key: value}, Settings, path, report)
        if settings is not None and not found:
            known = rules.Known.of(settings, "", loaded.catalog, ["door"], ["big"])
            found += [fault.message for fault in rules.check_settings(settings, known)]
    errors = {
        number: not strict.is_valid({"sidecar": {**GOOD["sidecar"], key: value}})
        for number, value in telling(path, key)
    }
    agree(key, told, errors)


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `sidecar schema` says without any manifests."""
    folder = tmp_path_factory.mktemp("printed")
    command = [sys.executable, "-m", "sidecar", "schema", "--out", "sidecar.schema.json"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "sidecar.schema.json"


def taplo(*files: Path, schema: Path | None = None) -> tuple[int, str]:
    """The exit code of `taplo check`, and what it says."""
    by = ["--schema", f"file://{schema}"] if schema else []
    command: list[str | Path] = [TAPLO, "check", "--no-auto-config", *by, *files]
    done = subprocess.run(command, capture_output=True, text=True, cwd=files[0].parent, check=False)
    return done.returncode, done.stderr


def test_taplo_finds_no_fault_with_any_manifest_of_ours(tmp_path: Path) -> None:
    for folder in [ROOT / "manifests", *(ROOT / "examples" / "plugins").iterdir()]:
        root = folder / "manifests" if (folder / "manifests").is_dir() else folder
        library = Library()
        loaded = loader.load(source.read(root), {}, library=library)
        names = Names.of(
            loaded.catalog, loaded.declaration.plugins, loaded.declaration.devices, strict=not loaded.problems
        )
        made, _ = schema.manifests(names, schema.offers(library)[0])
        (tmp_path / "schema.json").write_text(json.dumps(made))
        files = [root / name for name, _ in source.read(root).files]
        assert files
        assert taplo(*files, schema=tmp_path / "schema.json")[0] == 0, folder


def test_taplo_tells_mistakes_by_the_line_that_names_the_schema(printed: Path) -> None:
    good = "#:schema ./sidecar.schema.json\n" + tomli_w.dumps(GOOD)
    manifest = write(printed.parent, {"good.toml": good}) / "good.toml"
    assert taplo(manifest) == (0, taplo(manifest)[1])
    for number, (right, wrong) in enumerate(MISTAKES.items()):
        assert right in good
        write(printed.parent, {f"bad-{number}.toml": good.replace(right, wrong, 1)})
        code, told = taplo(printed.parent / f"bad-{number}.toml")
        assert (code, "bad-" in told) == (1, True), wrong


MISTAKES = {
    'mode = "chat"': 'mode = "chta"',
    "memory_mb = 100": "memory_mb = 0",
    "[models.m]": "[models.m]\nidle_timeout = 600",
    "[models.e]": '[models.e]\naliasses = ["a"]',
    '"{port}",': '"{prot}",',
    "[sidecar]": '[sidecar]\nlisten = "localhost"',
    "index = 0": "idx = 0",
    'url = "http://127.0.0.1:9000"': 'url = "http://127.0.0.1:9000"\nmemory_mb = 5',
    '"ann"': "7",
    "StaticKeys": "Static Keys",
    "[plugins.door]": '[plugins.door]\non_error = "skip"',
}


def test_every_key_of_the_manifests_is_explained(strict: Any) -> None:
    definitions = strict.schema["definitions"]
    for kind in dict.fromkeys(TABLES.values()):
        for key, node in definitions[kind.__name__]["properties"].items():
            assert node.get("description") or kind is DeviceMatch, (kind.__name__, key)
    assert manual.keys()["[models.NAME]"]["pinned"] == definitions["Model"]["properties"]["pinned"]["description"]


def test_settings_of_plugins_are_explained_by_their_docstrings(strict: Any) -> None:
    keys = strict.schema["definitions"]["sidecar.builtin.keys:StaticKeys.Settings"]
    assert keys["properties"]["recheck"]["description"]
    assert keys["additionalProperties"] is False


def test_names_that_manifests_declare_are_offered_and_others_pass_unless_it_is_strict(library: Library) -> None:
    offered = schema.offers(library)[0]
    names = Names(modes=("chat",), classes=("cpu",), devices=("big",), chain=("log",))
    variants = [{**COMMAND, "required_devices": ["x"]}]
    declared = {"models": {"m": {"mode": "chat", "chain": ["mine"], "variants": variants}}}
    for strict, faults in ((False, 0), (True, 2)):
        made, _ = schema.manifests(msgspec.structs.replace(names, strict=strict), offered)
        assert len(list(jsonschema.Draft7Validator(made).iter_errors(declared))) >= faults
        assert jsonschema.Draft7Validator(made).is_valid(declared) is not strict
