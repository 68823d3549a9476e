"""What the READMEs say is true: their snippets run, their manifests load, their tables list what there is."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import httpx
import msgspec
import pytest
from click.testing import CliRunner

from plugin_sdk import (
    Event,
    Exchange,
    Headers,
    LoadedServer,
    ModelInfo,
    Outcome,
    Principal,
    Reject,
    Request,
    Response,
    Secret,
    Target,
    Usage,
    UsageQuery,
)
from plugin_sdk.config import convert
from plugin_sdk.kinds import settings_of
from plugin_sdk.messages import with_headers
from plugin_sdk.testing import Host
from sidecar.builtin import usage
from sidecar.builtin.usage.prices import PriceList
from sidecar.core.manifest import DeviceDeclaration, DeviceMatch, Model, PluginDeclaration, Settings, Variant
from sidecar.core.sourcing import GitDeclaration
from sidecar.mechanism import bootstrap, finding, loader, source
from sidecar.mechanism.fulfil import faults_of
from sidecar.mechanism.placeholders import AT_LOAD, AT_START
from sidecar.mechanism.plugins import BUILTIN, BUILTIN_CHAIN, KINDS
from sidecar.mechanism.sources import Library
from sidecar.surfaces.cli import main
from sidecar.surfaces.cli.plugin import WITH_SETTINGS
from tests.support import declare, write

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MANIFESTS = (ROOT / "manifests" / "README.md").read_text(encoding="utf-8")
SDK = (ROOT / "plugin_sdk" / "README.md").read_text(encoding="utf-8")
BOOTSTRAP = (ROOT / "examples" / "gitops" / "bootstrap.toml").read_text(encoding="utf-8")


TABLES: dict[str, type[msgspec.Struct]] = {
    "[sidecar]": Settings,
    "[source]": GitDeclaration,
    "[plugins.NAME]": PluginDeclaration,
    "[devices.NAME]": DeviceDeclaration,
    "[models.NAME]": Model,
    "[[models.NAME.variants]]": Variant,
}


def section(heading: str) -> str:
    """The part of the manifests' README under a heading."""
    return MANIFESTS.split(f"## `{heading}`\n", 1)[1].split("\n## ", 1)[0]


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def load_module(code: str, tmp_path: Path) -> dict[str, Any]:
    """What a snippet defines, run as a file of its own."""
    file = tmp_path / "snippet.py"
    file.write_text(code)
    spec = importlib.util.spec_from_file_location("snippet", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return vars(module)


SNIPPETS = {code.partition("\n")[0].removeprefix("# "): code for code in blocks(SDK, "python")}
TEST = "plugins/test_doors.py"
TESTED = SNIPPETS.pop(TEST)
KINDS_SHOWN = SDK.split("## The six kinds", 1)[1].split("\n## ", 1)[0]


@pytest.mark.parametrize("code", [*blocks(README, "python"), *SNIPPETS.values()])
def test_each_python_snippet_defines_a_plugin_that_loads(code: str, tmp_path: Path) -> None:
    classes = [value for value in load_module(code, tmp_path).values() if isinstance(value, type)]
    plugins = [cls for cls in classes if issubclass(cls, KINDS) and cls not in KINDS]
    assert len(plugins) == 1
    assert list(faults_of(plugins[0])) == []


def test_the_snippets_of_the_guide_lie_together_where_they_say_and_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORD", "open-sesame")
    tables = {f"table-{number}.toml": text for number, text in enumerate(blocks(SDK, "toml"))}
    loaded = declare(tmp_path, {**SNIPPETS, **tables})
    assert [str(problem) for problem in loaded.problems] == []
    used = {*loaded.catalog.loaded, *loaded.catalog.unset}
    for file in SNIPPETS:
        assert Path(file).stem in used | {"doors"}  # which has a table
    assert loaded.catalog.loaded["door"].declaration.deadline == 0.05


def test_the_smallest_plugin_of_each_kind_has_at_most_ten_lines() -> None:
    shown = blocks(KINDS_SHOWN, "python")
    assert max(code.count("\n") for code in shown) <= 10
    forms = [re.findall(r"^(?:@|class \w+\()(\w+)", code, re.MULTILINE)[0] for code in shown]
    assert [form.lower() for form in forms] == [
        *("device", "device", "interface", "auth", "auth", "route", "route", "on_request", "filter", "stats", "stats")
    ]


def test_the_doors_of_the_guide_open_to_whoever_knows_the_word(tmp_path: Path) -> None:
    right = Request(method="POST", path="/", headers=Headers(((b"authorization", b"Bearer open-sesame"),)))
    defined = load_module(SNIPPETS["plugins/doors.py"], tmp_path)
    door = defined["Door"](defined["Settings"](word=Secret("open-sesame")))
    for plugin in (door, load_module(SNIPPETS["plugins/word.py"], tmp_path)["word"]()):
        assert plugin.authenticate(right) == Principal("friend")
        with pytest.raises(Reject):
            plugin.authenticate(Request(method="POST", path="/"))


async def test_the_database_of_the_guide_knows_its_keys(tmp_path: Path) -> None:
    defined = load_module(SNIPPETS["plugins/database_auth.py"], tmp_path)
    plugin = defined["DatabaseAuth"](defined["Settings"](path=":memory:"))
    await plugin.open()
    plugin.database.executescript("CREATE TABLE keys (key, owner); INSERT INTO keys VALUES ('k', 'ann')")
    request = Request(method="POST", path="/", headers=Headers(((b"authorization", b"Bearer k"),)))
    assert await asyncio.to_thread(plugin.authenticate, request) == Principal("ann")
    plugin.database.close()


async def test_the_registry_of_the_guide_says_where_its_models_are(tmp_path: Path) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        wanted = request.url.params.get("name", "qwen")
        return httpx.Response(200, json=[{"name": "qwen", "url": "http://q:1"}] if wanted == "qwen" else [])

    registry = load_module(SNIPPETS["plugins/registry.py"], tmp_path)["Registry"]
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        plugin = registry(services=Host(http))
        assert await plugin.models() == [ModelInfo(name="qwen")]
        qwen, other = (Request(method="POST", path="/", model=name) for name in ("qwen", "other"))
        assert await plugin.resolve(qwen, ()) == Target(name="registry", base_url="http://q:1", model="qwen")
        assert await plugin.resolve(other, ()) is None


async def test_the_filters_of_the_guide_do_what_it_says(tmp_path: Path) -> None:
    exchange = Exchange(Request(method="POST", path="/", body=b"x" * 100_001, model="m"))
    exchange.response = Response(headers=Headers(((b"a", b"b"),)))
    with pytest.raises(Reject):
        load_module(SNIPPETS["plugins/short.py"], tmp_path)["short"]().on_request(exchange)
    head = load_module(SNIPPETS["plugins/stamp.py"], tmp_path)["Stamp"]().on_response(exchange)
    assert with_headers(exchange.response, head.raw).headers.raw == ((b"a", b"b"), (b"x-model", b"m"))
    discreet = load_module(SNIPPETS["plugins/discreet.py"], tmp_path)["Discreet"]()
    assert (await discreet.on_event(exchange, Event(data=b"Voldemort came"))).data == b"He came"


async def test_the_hours_of_the_guide_are_told_by_model(tmp_path: Path) -> None:
    plugin = load_module(SNIPPETS["plugins/hours.py"], tmp_path)["Hours"]()
    await plugin.open()
    for until_s in (60.0, 90.0):
        await plugin.loaded([LoadedServer(id="a", model="m", variant="v", since_s=30.0, until_s=until_s)])
    [row] = (await plugin.report(UsageQuery(by=("model",)))).rows
    assert (row.group, row.loaded_s) == (("m",), 60.0)
    with pytest.raises(Reject):
        await plugin.report(UsageQuery())


def test_the_prices_of_the_guide_cost_what_it_says() -> None:
    text = next(text for text in blocks(MANIFESTS, "toml") if "[[plugins.usage.config.prices]]" in text)
    config = convert(tomllib.loads(text)["plugins"]["usage"]["config"], usage.Settings)
    prices = PriceList(config.prices)
    december_s = 1_796_083_200.0

    def nanos(model: str, at_s: float, tokens: Usage | None) -> int | None:
        return prices.cost(Outcome(model=model, status=200, started_s=at_s, usage=tokens))

    cached, long = Usage(input_tokens=100, cached_tokens=40), Usage(input_tokens=200_000, output_tokens=10)
    assert nanos("qwen3-8b", december_s - 1, cached) == 60 * 150 + 40 * 30
    assert nanos("qwen3-8b", december_s - 1, long) == 200_000 * 300 + 10 * 1200
    assert nanos("qwen3-8b", december_s, long) == 200_000 * 200 + 10 * 800
    assert nanos("qwen3-8b", december_s, None) is None
    assert nanos("whisper", december_s, None) == 1_000_000


def test_the_test_of_the_guide_passes(tmp_path: Path) -> None:
    write(
        tmp_path, {**SNIPPETS, TEST: TESTED, "pytest.ini": "[pytest]\nasyncio_default_fixture_loop_scope = function\n"}
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path / TEST)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_error_that_the_guide_shows_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write(tmp_path, {"plugins/door.py": blocks(SDK, "py")[0]}))
    result = CliRunner().invoke(main, ["plugin", "check", "plugins/door.py"])
    shown = blocks(SDK, "console")[0].partition("\n")[2]
    assert result.stderr.replace(f"{tmp_path}/", "") == shown


def test_the_example_manifests_of_the_readme_load(tmp_path: Path) -> None:
    files = {}
    for index, text in enumerate(blocks(README, "toml")):
        files[f"example-{index}.toml"] = text.replace("sha256:8c2f...", "sha256:" + "8c" * 32)
    loaded = declare(tmp_path, files, {})
    assert [str(problem) for problem in loaded.problems] == []
    assert set(loaded.declaration.models) == {"qwen3-8b", "reranker"}


def test_the_mistake_that_the_readme_shows_is_told_so(tmp_path: Path) -> None:
    (shown,) = re.findall(r"^manifests/models/qwen3-8b\.toml:\d+: (.*)$", README, re.MULTILINE)
    text = blocks(README, "toml")[1].replace('mode = "chat"', 'mode = "chta"')
    problems = declare(tmp_path, {"qwen3-8b.toml": text}, {}).problems
    assert [str(problem).partition(": ")[2] for problem in problems] == [shown]


@pytest.mark.parametrize(("heading", "kind"), TABLES.items())
def test_each_key_of_a_table_is_explained_and_no_other(heading: str, kind: type[msgspec.Struct]) -> None:
    explained = re.findall(r"^\| `([a-z_]+)` \|", section(heading), re.MULTILINE)
    assert set(explained) == {field.encode_name for field in msgspec.structs.fields(kind)}


def test_each_way_to_match_a_device_and_each_placeholder_is_named() -> None:
    for field in msgspec.structs.fields(DeviceMatch):
        assert f"`{field.encode_name}`" in MANIFESTS
    for name in (*AT_LOAD, *AT_START, "env.NAME"):
        assert f"`{{{name}}}`" in MANIFESTS


@pytest.mark.parametrize(("heading", "kind"), TABLES.items())
def test_defaults_are_as_the_tables_say(heading: str, kind: type[msgspec.Struct]) -> None:
    for field in msgspec.structs.fields(kind):
        for row in re.findall(rf"^\| `{field.encode_name}` \| `([^`]+)` \|", section(heading), re.MULTILINE):
            default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
            assert convert(tomllib.loads(f"value = {row}")["value"], field.type) == default, field.name


def test_each_command_is_in_the_readme() -> None:
    assert isinstance(main, click.Group)
    context = click.Context(main)
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        inner = command.commands if isinstance(command, click.Group) else {"": command}
        for verb in inner:
            assert f"`sidecar {name} {verb}".rstrip() in README


def test_each_built_in_is_in_the_table_with_its_settings() -> None:
    table = MANIFESTS.split("## Built-in plugins\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in table.splitlines() if line.startswith("| `")]
    rows = {name: line for line in lines for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    for name, path in {**BUILTIN, **BUILTIN_CHAIN, **WITH_SETTINGS}.items():
        cls = finding.resolve(path, Library()).cls
        assert f"| {cls.kind} |" in rows[name]
        for field in msgspec.structs.fields(settings_of(cls)):
            assert re.search(rf"`{field.encode_name}\b", rows[name]), (name, field.name)
            for told in re.findall(rf"`{field.encode_name} = ([^`]+)`", rows[name]):
                value = convert(tomllib.loads(f"value = {told}")["value"], field.type)
                assert value == field.default, (name, field.name)


def test_the_examples_of_the_manifests_guide_load(tmp_path: Path) -> None:
    files = {f"{number}.toml": text for number, text in enumerate(blocks(MANIFESTS, "toml")) if "[source]" not in text}
    assert [str(problem) for problem in declare(tmp_path, files).problems] == []


@pytest.mark.parametrize("text", [text for text in blocks(MANIFESTS, "toml") if "[source]" in text] + [BOOTSTRAP])
def test_the_examples_of_a_source_lack_nothing_but_the_files_that_they_name(text: str, tmp_path: Path) -> None:
    write(tmp_path, {"bootstrap.toml": text})
    with pytest.raises(bootstrap.BootstrapError) as caught:
        bootstrap.read(tmp_path / "bootstrap.toml", {})
    missing = ("cannot be read: No such file", "cannot be read: [Errno 2]", "is not set")
    assert all(any(why in problem.message for why in missing) for problem in caught.value.problems)


def test_the_sample_has_no_problems() -> None:
    loaded = loader.load(source.read(ROOT / "manifests"), {})
    assert loaded.problems == ()
    assert set(loaded.declaration.models) == {"parrot", "owl", "compass"}
