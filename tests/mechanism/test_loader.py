"""From files to a declaration: whole directories, with everything that is wrong in them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from plugin_sdk import Secret
from sidecar.core.manifest import Declaration, DeviceDeclaration, PluginDeclaration, Settings
from sidecar.core.nodes import Elsewhere, Node
from sidecar.mechanism.loader import Entry, Loaded, OwnSettings, load, manifest_folder, own_settings
from sidecar.mechanism.placeholders import ForeignEnvironment
from sidecar.mechanism.source import read
from tests.support import declare, model, write


def told(root: Path, files: dict[str, str]) -> list[str]:
    """Every problem, with paths relative to the root."""
    return [str(problem).replace(f"{root}/", "") for problem in declare(root, files).problems]


def test_a_good_directory_becomes_a_declaration(tmp_path: Path) -> None:
    files = {
        "sidecar.toml": '[sidecar]\nheadroom_mb = 7\nchain = ["log"]\n[devices.big]\nmatch = { index = 0 }\n',
        "models/a.toml": model("a"),
        "models/b.toml": model("b") + model("c"),
    }
    loaded = declare(tmp_path, files)
    declaration = loaded.declaration
    assert (loaded.problems, loaded.usable) == ((), True)
    assert declaration.settings.headroom_mb == 7
    assert list(declaration.models) == ["a", "b", "c"]
    assert list(declaration.devices) == ["big"]
    assert declaration.files["models.c"] == "models/b.toml"
    assert declaration.revision == read(tmp_path).revision


def test_an_empty_directory_is_a_declaration_of_nothing(tmp_path: Path) -> None:
    loaded = declare(tmp_path, {})
    assert (loaded.problems, loaded.usable) == ((), True)
    assert loaded.declaration.settings == Settings()


def test_every_fault_of_a_directory_is_told_and_the_good_models_of_the_same_files_stand(tmp_path: Path) -> None:
    files = {
        "a.toml": model("good1") + '[models.bad1]\nmodee = "chat"\n',
        "b.toml": model("bad2").replace("100", "0") + model("good2") + "[plugin.x]\n",
        "c.toml": "[models.lost]\n= 3\n",
        "d.toml": model("bad3", "priority = 'high'", "cwd = 1").replace('"cpu"', '"gpu"'),
        "sidecar.toml": "[sidecar]\nheadroom_mb = 5",
    }
    assert told(tmp_path, files) == [
        "a.toml:10: models.bad1.variants: is missing: expected an array of tables",
        'a.toml:11: models.bad1.modee: unknown key "modee"; did you mean "mode"?',
        "b.toml:7: models.bad2.variants[0].memory_mb: expected the memory that the server takes, in MB, more than 0: "
        "it is never free",
        'b.toml:19: plugin: unknown key "plugin"; did you mean "plugins"?',
        "c.toml:2: is not TOML: Invalid statement",
        "d.toml:4: models.bad3.priority: expected int, got str",
        'd.toml:6: models.bad3.variants[0].required_devices[0]: unknown device "gpu"; did you mean "cpu"?; '
        "known: amd, cpu, nvidia",
        "d.toml:9: models.bad3.variants[0].cwd: expected str, got int",
    ]
    loaded = declare(tmp_path, {})
    assert list(loaded.declaration.models) == ["good1", "good2"]
    assert loaded.usable
    assert {problem.subject for problem in loaded.problems} == {
        ("models", "bad1"),
        ("models", "bad2"),
        ("models", "bad3"),
        (),
    }


def test_a_name_declared_twice_is_told_at_both_places_and_neither_counts(tmp_path: Path) -> None:
    files = {"a.toml": model("m") + model("good"), "sub/b.toml": "# far down\n" + model("m")}
    assert told(tmp_path, files) == [
        "a.toml:2: models.m: declared more than once: also in sub/b.toml",
        "sub/b.toml:3: models.m: declared more than once: also in a.toml",
    ]
    assert list(declare(tmp_path, {}).declaration.models) == ["good"]


def test_three_who_declare_the_same_name_each_see_the_other_two(tmp_path: Path) -> None:
    device = "[devices.d]\nmatch = { index = 0 }"
    assert told(tmp_path, {"a.toml": device, "b.toml": device, "c.toml": device}) == [
        "a.toml:1: devices.d: declared more than once: also in b.toml, c.toml",
        "b.toml:1: devices.d: declared more than once: also in a.toml, c.toml",
        "c.toml:1: devices.d: declared more than once: also in a.toml, b.toml",
    ]


def test_the_sidecars_own_table_may_stand_only_once(tmp_path: Path) -> None:
    files = {"a.toml": "[sidecar]\nheadroom_mb = 1", "b.toml": "[sidecar]\nheadroom_mb = 2"}
    assert told(tmp_path, files) == [
        "a.toml:1: sidecar: declared more than once: also in b.toml",
        "b.toml:1: sidecar: declared more than once: also in a.toml",
    ]
    assert not declare(tmp_path, {}).usable


def test_text_that_is_not_utf8_is_told_with_its_line(tmp_path: Path) -> None:
    write(tmp_path, {"good.toml": model("good")})
    (tmp_path / "latin.toml").write_bytes(b"[models.m]\n# caf\xe9\n")
    loaded = load(read(tmp_path), {})
    [problem] = loaded.problems
    assert str(problem) == f"{tmp_path}/latin.toml:2: is not UTF-8 text: invalid continuation byte"
    assert list(loaded.declaration.models) == ["good"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[sidecar]\nlisten =", 2),
        ('a = "x\n', 1),
        ("a = 1\na = 2\n", 2),
        ("[a]\nb = 1\n\n[a]\n", 4),
        ("a = {b = 1,}\n", 1),
        ('a = """\nno end\n', 3),
        ("\ufeff[models]\n", 1),
        ("<<<<<<< HEAD\n", 1),
        ("a = 1 b = 2", 1),
        (model("m")[:60], 6),
    ],
)
def test_a_syntax_error_is_told_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    [problem] = declare(tmp_path, {"broken.toml": text, "good.toml": model("good")}).problems
    assert (problem.line, problem.path, problem.subject) == (line, "", ())
    assert problem.message.startswith("is not TOML: ")
    assert "at line" not in problem.message


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, f"a = {'9' * 10_000}"], ids=["deep", "long number"])
def test_a_file_that_upsets_the_parser_harms_no_other(tmp_path: Path, text: str) -> None:
    loaded = declare(tmp_path, {"broken.toml": text, "good.toml": model("good")})
    [problem] = loaded.problems
    assert problem.file == f"{tmp_path}/broken.toml"
    assert list(loaded.declaration.models) == ["good"]


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    write(tmp_path, {"good.toml": model("good")})
    snapshot = msgspec.structs.replace(read(tmp_path), unreadable=(("bad.toml", "cannot be read: Permission denied"),))
    loaded = load(snapshot, {})
    assert [str(problem) for problem in loaded.problems] == [f"{tmp_path}/bad.toml: cannot be read: Permission denied"]
    assert list(loaded.declaration.models) == ["good"]


@pytest.mark.parametrize(
    ("files", "usable"),
    [
        ({"s.toml": "[sidecar]", "m.toml": "["}, True),
        ({"m.toml": "["}, False),  # [sidecar], and the keys in it, may stand in the broken file
        ({"s.toml": "[sidecar]\nlistn = 1"}, False),
        ({"s.toml": "[sidecar]\nchain = ['nope']"}, False),
        ({"s.toml": "sidecar = 1"}, False),
        ({"s.toml": "[sidecar]", "m.toml": "[models.m]"}, True),
        ({"s.toml": "[plugins.x]\nimport = 'no.such:X'"}, True),
    ],
)
def test_only_faults_about_the_sidecar_itself_leave_nothing_to_run_with(
    tmp_path: Path, files: dict[str, str], usable: bool
) -> None:
    loaded = declare(tmp_path, files)
    assert loaded.problems
    assert loaded.usable is usable


OPEN = Declaration(settings=Settings(listen="0.0.0.0:1", chain=("log",)))


@pytest.mark.parametrize("lines", ["", "listn = 1", "insecure = true\nheadroom_mb = 'x'", "listen = '127.0.0.1:1'"])
def test_what_a_faulty_revision_of_the_settings_says_opens_no_door(tmp_path: Path, lines: str) -> None:
    write(tmp_path, {"s.toml": f"[sidecar]\n{lines}", "m.toml": model("m", "chain = []")})
    loaded = load(read(tmp_path), {}, OPEN)
    assert "models.m.chain" in [problem.path for problem in loaded.problems]
    assert "m" not in loaded.declaration.models


@pytest.mark.parametrize("files", [{}, {"s.toml": "[sidecar"}, {"s.toml": "[sidecar]\n[sidecar]"}])
def test_settings_that_are_gone_or_broken_stay_as_they_were(tmp_path: Path, files: dict[str, str]) -> None:
    loaded = load(read(write(tmp_path, {**files, "m.toml": model("m", "chain = ['log']")})), {}, OPEN)
    assert not loaded.usable
    assert loaded.declaration.settings == OPEN.settings


def test_a_plugin_or_device_that_may_stand_in_a_broken_file_is_still_known(tmp_path: Path) -> None:
    audit = PluginDeclaration(import_path="no.such:X")
    before = Declaration(plugins={"audit": audit}, devices={"big": DeviceDeclaration()})
    text = model("m", "chain = ['audit']").replace('"cpu"', '"big"')
    write(tmp_path, {"s.toml": "[sidecar]", "broken.toml": "[", "m.toml": text})
    [problem] = load(read(tmp_path), {}, before).problems
    assert problem.file.endswith("broken.toml")


@pytest.mark.usefixtures("_own_imports")
def test_a_plugin_beside_the_manifests_can_be_named(tmp_path: Path) -> None:
    code = "from plugin_sdk import Stats\nclass Count(Stats):\n    def record(self, outcome): ...\n"
    text = '[sidecar]\nchain = ["count"]\n[plugins.count]\nimport = "acme_count:Count"\n'
    loaded = declare(tmp_path, {"plugins/acme_count.py": code, "s.toml": text})
    assert [str(problem) for problem in loaded.problems] == []
    assert loaded.catalog.loaded["count"].kind == "stats"
    assert loaded.catalog.loaded["count"].cls.__module__.partition("@")[0] == "acme_count"


@pytest.mark.usefixtures("_own_imports")
def test_a_mode_and_a_device_can_come_from_plugins(tmp_path: Path) -> None:
    code = """
from plugin_sdk import DeviceStatus, Endpoint, Interface, device
class Speech(Interface):
    provides = "speech"
    endpoints = (Endpoint("/v1/audio/speech", "speech"),)
@device("npu")
def npu():
    return DeviceStatus(total_mb=1, free_mb=1)
"""
    text = '[plugins.s]\nimport = "acme_modes:Speech"\n[plugins.n]\nimport = "acme_modes:npu"\n'
    text += model("m").replace('"chat"', '"speech"').replace('"cpu"', '"npu:0"')
    loaded = declare(tmp_path, {"plugins/acme_modes.py": code, "s.toml": text})
    assert [str(problem) for problem in loaded.problems] == []


def test_a_mode_whose_plugin_is_broken_holds_back_its_model_alone(tmp_path: Path) -> None:
    text = '[plugins.speech]\nimport = "no.such:Speech"\n' + model("m").replace('"chat"', '"speech"') + model("good")
    loaded = declare(tmp_path, {"s.toml": text})
    assert list(loaded.declaration.models) == ["good"]


def test_the_folder_is_made_absolute_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert manifest_folder("manifests") == tmp_path / "manifests"
    assert manifest_folder("~/m") == Path("/home/me/m")


# --- [sidecar] alone, and the tables as they stand ----------------------------------------------------------------


def test_the_settings_can_be_read_before_anything_else_is_known(tmp_path: Path) -> None:
    text = '[sidecar]\nheadroom_mb = 3\nchain = ["nowhere"]\n'
    found = own_settings(read(write(tmp_path, {"s.toml": text, "broken.toml": "["})))
    assert found == OwnSettings(
        Settings(headroom_mb=3, chain=("nowhere",)), Entry("s.toml", {"headroom_mb": 3, "chain": ["nowhere"]})
    )


def test_without_a_sidecar_table_the_settings_are_the_defaults(tmp_path: Path) -> None:
    assert own_settings(read(write(tmp_path, {"a.toml": model("a")}))) == OwnSettings(Settings(), None)


@pytest.mark.parametrize(
    "files",
    [
        {"a.toml": "[sidecar]\nheadrom_mb = 1\n"},
        {"a.toml": "[sidecar]\n", "b.toml": "[sidecar]\n"},
        {"a.toml": "["},
        {"a.toml": '[sidecar]\nstate_dir = "~nobody-of-that-name/x"\n'},
    ],
    ids=["faulty", "twice", "maybe in a broken file", "no such home"],
)
def test_settings_that_are_faulty_or_cannot_be_told_are_none(tmp_path: Path, files: dict[str, str]) -> None:
    assert own_settings(read(write(tmp_path, files))) is None
    assert not declare(tmp_path, files).usable


def test_the_tables_are_there_as_they_were_written(tmp_path: Path) -> None:
    files = {"s.toml": "[sidecar]\nheadroom_mb = 3\n", "m.toml": "[models.bad]\nmode = '{env.X}'\n"}
    assert declare(tmp_path, files).tables == {
        ("sidecar",): Entry("s.toml", {"headroom_mb": 3}),
        ("models", "bad"): Entry("m.toml", {"mode": "{env.X}"}),
    }


# --- nodes --------------------------------------------------------------------------------------------------------

DOOR = """
from plugin_sdk import Auth, Config, Principal, Request, Secret

class Settings(Config):
    word: Secret

class Door(Auth[Settings]):
    async def authenticate(self, request: Request) -> Principal:
        return Principal(self.config.word.reveal())
"""
H200, A100 = Node({"gpu": "h200"}), Node({"gpu": "a100"})


def on(root: Path, files: dict[str, str], node: Node) -> Loaded:
    """The manifests as that node reads them."""
    return load(read(write(root, files)), {}, node=node)


def test_models_of_other_nodes_are_told_and_not_declared(tmp_path: Path) -> None:
    files = {"m.toml": model("big", 'nodes = { gpu = "h200" }\naliases = ["best"]') + model("any")}
    here, there = on(tmp_path, files, H200), on(tmp_path, files, A100)
    assert (here.problems, list(here.declaration.models), here.declaration.elsewhere) == ((), ["any", "big"], {})
    assert (there.problems, list(there.declaration.models)) == ((), ["any"])
    assert there.declaration.elsewhere == {"big": Elsewhere(nodes="gpu = h200", aliases=("best",), labels=("gpu",))}
    assert list(declare(tmp_path, {}).declaration.models) == ["any", "big"]


def test_variants_of_other_nodes_are_left_out_and_those_that_stay_keep_their_names(tmp_path: Path) -> None:
    second = '[[models.m.variants]]\nurl = "http://127.0.0.1:9000"\nnodes = { gpu = "a*" }\n'
    files = {"m.toml": model("m", variant='nodes = { gpu = "h*" }') + second}
    for node, name, other in ((H200, "variant-0", "variant-1"), (A100, "variant-1", "variant-0")):
        declared = on(tmp_path, files, node).declaration
        assert [one.name for one in declared.models["m"].variants] == [name]
        assert list(declared.variants_elsewhere["m"]) == [other]
    assert on(tmp_path, files, Node({})).declaration.elsewhere == {
        "m": Elsewhere(nodes="gpu = h*; or gpu = a*", labels=("gpu",))
    }


def test_faults_are_told_whatever_the_node_but_variables_need_be_set_only_where_a_model_is(tmp_path: Path) -> None:
    files = {
        "a.toml": model("a", 'nodes = { gpu = "h200" }', 'cwd = "{env.NOT_SET}"'),
        "b.toml": model("b", 'nodes = { gpu = "h200" }').replace('"chat"', '"chta"'),
        "c.toml": '[models.c]\nmode = "chat"\nnodes = { gpu = "h200" }\n'
        'variants = [{ url = "http://{env.NOT_SET}:1", api_key = { env = "NOT_SET" } }]',
    }
    unset = 'environment variable NOT_SET is not set ("{env.NOT_SET}")'
    assert [problem.subject[1] for problem in on(tmp_path, files, A100).problems] == ["b"]
    assert [(one.subject[1], one.message) for one in on(tmp_path, files, H200).problems if one.subject[1] != "b"] == [
        ("a", unset),
        ("c", "environment variable NOT_SET is not set"),
        ("c", unset),
    ]


def test_the_environment_of_another_machine_may_have_what_this_one_has_not(tmp_path: Path) -> None:
    url = '[models.m]\nmode = "chat"\nvariants = [{ url = "http://{env.NOT_SET}:1", api_key = { env = "NOT_SET" } }]\n'
    door = '[plugins.p]\nimport = "door:Door"\nconfig = { word = { file = "/no/such/file" } }\n'
    token = '[sidecar]\nadmin_token = { env = "NOT_SET" }\n'
    root = write(tmp_path, {"m.toml": url + door + token, "plugins/door.py": DOOR})
    loaded = load(read(root), ForeignEnvironment())
    assert (loaded.problems, loaded.declaration.models["m"].variants[0].url) == ((), "http://{env.NOT_SET}:1")
    secret = loaded.declaration.models["m"].variants[0].api_key
    assert secret not in (None, Secret(""))
    assert [problem.path for problem in load(read(root), {}).problems] == [
        "models.m.variants[0].api_key",
        "models.m.variants[0].url",
        "plugins.p.config.word",
        "sidecar.admin_token",
    ]


def test_what_is_wrong_with_nodes_is_told_at_its_place(tmp_path: Path) -> None:
    files = {"m.toml": model("m", 'nodes = { "a b" = "x", rack = [], gpu = "" }', "nodes = { gpu = 1 }")}
    no_pattern = 'expected a pattern such as "h200" or "h*", or a list of them, none of them empty'
    assert told(tmp_path, files) == [
        'm.toml:4: models.m.nodes."a b": "a b" is no name of a label: letters, digits and ._/- only, '
        "first a letter or digit",
        f"m.toml:4: models.m.nodes.gpu: {no_pattern}",
        f"m.toml:4: models.m.nodes.rack: {no_pattern}",
        "m.toml:9: models.m.variants[0].nodes.gpu: expected str | array, got int",
    ]


def test_models_that_never_meet_may_share_an_alias_and_each_others_names(tmp_path: Path) -> None:
    def two(one: str, other: str) -> list[str]:
        files = {
            "m.toml": model("a", f'nodes = {{ gpu = "{one}" }}\naliases = ["best", "b"]')
            + model("b", f'nodes = {{ gpu = "{other}" }}\naliases = ["best", "a"]')
        }
        return [problem.path + ": " + problem.message for problem in declare(tmp_path, files).problems]

    assert two("h200", "a100") == []
    assert two("h200", "h*") == [
        'models.a.aliases[1]: "b" means the model b already',
        'models.b.aliases[0]: "best" means the model a already',
        'models.b.aliases[1]: "a" means the model a already',
    ]
