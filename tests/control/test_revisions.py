"""A new revision is taken over part by part; nothing good is lost to something bad."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from plugin_sdk import Duration
from sidecar.control.revisions import Revisions, in_force, take_over
from sidecar.core.manifest import Declaration
from sidecar.mechanism.loader import Loaded, load
from sidecar.mechanism.source import read
from tests.support import model, write

SIDECAR = '[sidecar]\nheadroom_mb = 1\nchain = ["audit"]\n'
AUDIT = '[plugins.audit]\nimport = "sidecar.builtin.log:Log"\n'
DEVICE = '[devices.big]\nmatch = { class = "cpu" }\n'
GOOD = {
    "sidecar.toml": SIDECAR,
    "plugins.toml": AUDIT,
    "devices.toml": DEVICE,
    "a.toml": model("a"),
    "b.toml": model("b") + model("c"),
}


class Source:
    """A manifest directory that changes, and what is in force."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[str, str] = {}
        self.in_force: Declaration | None = None
        self.whole: Loaded | None = None
        self.revisions = Revisions()

    def change(self, files: dict[str, str | None]) -> Declaration:
        """Write files, remove those that are None, and take the revision over."""
        for name, text in files.items():
            if text is None:
                (self.root / name).unlink()
            else:
                write(self.root, {name: text})
        loaded = load(read(self.root), {}, self.in_force)
        self.in_force, self.revisions = take_over(self.in_force, loaded)
        self.whole = in_force(self.whole, loaded, self.in_force)
        return self.in_force

    def raw(self, *subject: str) -> Any:
        """What stood in the manifest for a subject that is in force."""
        assert self.whole is not None
        return self.whole.tables[subject].raw

    def problems(self) -> list[str]:
        """Of the last revision, with paths relative to the root."""
        return [str(problem).replace(f"{self.root}/", "") for problem in self.revisions.problems]


@pytest.fixture
def source(tmp_path: Path) -> Source:
    made = Source(tmp_path)
    made.change({**GOOD})
    assert made.problems() == []
    return made


def test_the_first_revision_is_taken_as_it_is(source: Source) -> None:
    assert source.in_force is not None
    assert list(source.in_force.models) == ["a", "b", "c"]
    assert source.revisions.attempted == source.revisions.applied == source.in_force.revision != ""
    assert source.revisions.kept == ()


def test_a_first_revision_with_faults_has_nothing_to_fall_back_on(tmp_path: Path) -> None:
    source = Source(tmp_path)
    assert list(source.change({"a.toml": model("a"), "b.toml": "[models.b]"}).models) == ["a"]
    assert source.revisions.kept == ()
    assert len(source.problems()) == 2


def test_the_same_revision_again_is_the_same_declaration(source: Source) -> None:
    before = source.in_force
    assert source.change({}) == before


def test_a_change_to_one_model_touches_that_one_alone(source: Source) -> None:
    before = source.in_force
    after = source.change({"a.toml": model("a", "priority = 3")})
    assert before is not None
    assert after.models["a"].priority == 3
    assert after.models["b"] == before.models["b"]
    assert after.revision != before.revision


def test_what_is_removed_is_gone(source: Source) -> None:
    after = source.change({"b.toml": model("b"), "devices.toml": None, "a.toml": None})
    assert list(after.models) == ["b"]
    assert (after.devices, source.revisions.kept, source.problems()) == ({}, (), [])
    assert "models.a" not in after.files


def test_a_faulty_model_keeps_its_last_good_form_and_its_neighbours_go_on(source: Source) -> None:
    after = source.change({"b.toml": model("b", "priorty = 3") + model("c", "priority = 4")})
    assert after.models["b"].priority == 0
    assert after.models["c"].priority == 4
    assert source.revisions.kept == ("b",)
    assert [line.split(": ")[1] for line in source.problems()] == ["models.b.priorty"]


def test_a_model_that_was_never_good_is_not_there(source: Source) -> None:
    after = source.change({"d.toml": model("d", "priorty = 3")})
    assert list(after.models) == ["a", "b", "c"]
    assert source.revisions.kept == ()


@pytest.mark.parametrize("text", ["[models.b", "", "<<<<<<< HEAD\n" + model("b")], ids=["syntax", "empty", "conflict"])
def test_a_broken_or_emptied_file_keeps_all_that_it_declared(source: Source, text: str) -> None:
    after = source.change({"b.toml": text})
    assert list(after.models) == ["a", "b", "c"]
    assert source.revisions.kept == ("b", "c")


def test_a_file_that_says_nothing_in_so_many_words_declares_nothing(source: Source) -> None:
    after = source.change({"b.toml": "# no models here any more\n"})
    assert list(after.models) == ["a"]
    assert source.revisions.kept == ()


@pytest.mark.parametrize(
    "text",
    [model("b").replace("models.b", "model.b") + model("c"), "models = 3\n", "[models]\nb = 3\nc = 4\n"],
    ids=["misspelt section", "no tables", "no models"],
)
def test_a_file_whose_tables_cannot_be_told_keeps_what_it_declared(source: Source, text: str) -> None:
    after = source.change({"b.toml": text})
    assert list(after.models) == ["a", "b", "c"]
    assert source.problems()


def test_a_file_named_like_the_end_of_a_broken_one_is_not_broken(source: Source) -> None:
    source.change({"xa.toml": model("x")})
    after = source.change({"xa.toml": "[", "a.toml": model("other")})
    assert list(after.models) == ["b", "c", "other", "x"]


def test_a_model_that_moved_out_of_a_broken_file_is_the_one_in_the_other(source: Source) -> None:
    after = source.change({"b.toml": "[", "new.toml": model("b", "priority = 9")})
    assert after.models["b"].priority == 9
    assert after.files["models.b"] == "new.toml"
    assert source.revisions.kept == ("c",)


def test_a_name_declared_twice_keeps_its_last_good_form(source: Source) -> None:
    after = source.change({"z.toml": model("a", "priority = 5")})
    assert after.models["a"].priority == 0
    assert source.revisions.kept == ("a",)


def test_a_kept_model_can_be_kept_again_and_then_mended(source: Source) -> None:
    for text in ("[", model("a", "nope = 1"), "["):
        assert "a" in source.change({"a.toml": text}).models
    assert source.change({"a.toml": model("a", "priority = 2")}).models["a"].priority == 2
    assert source.revisions.kept == ()


def test_a_kept_model_that_is_then_removed_is_gone(source: Source) -> None:
    source.change({"a.toml": "["})
    assert list(source.change({"a.toml": None}).models) == ["b", "c"]


def test_faulty_plugins_and_devices_keep_their_last_good_form(source: Source) -> None:
    after = source.change({"plugins.toml": AUDIT + "deadlin = 1\n", "devices.toml": DEVICE + "memory_mb = 'x'\n"})
    assert after.plugins["audit"].import_path == "sidecar.builtin.log:Log"
    assert after.devices["big"].match.device_class == "cpu"
    assert list(after.models) == ["a", "b", "c"]
    assert len(source.problems()) == 2


def test_a_broken_file_of_plugins_keeps_them_and_whoever_names_them(source: Source) -> None:
    after = source.change({"plugins.toml": "["})
    assert list(after.plugins) == ["audit"]
    assert after.settings.chain == ("audit",)
    assert [line.partition(":")[0] for line in source.problems()] == ["plugins.toml"]


@pytest.mark.parametrize("text", ["[sidecar", SIDECAR + "listn = 1\n", SIDECAR.replace("audit", "nope"), None])
def test_faulty_or_missing_settings_stay_as_they_were_while_models_change(source: Source, text: str | None) -> None:
    after = source.change({"sidecar.toml": text, "a.toml": model("a", "priority = 3")})
    assert after.settings.headroom_mb == 1
    assert after.settings.chain == ("audit",)
    assert after.models["a"].priority == 3
    assert source.problems()


def test_good_settings_are_taken_but_for_what_a_running_sidecar_cannot_change(source: Source) -> None:
    text = SIDECAR.replace("= 1", "= 2") + 'listen = "127.0.0.1:9"\nstate_dir = "/other"\n'
    before = source.in_force
    after = source.change({"sidecar.toml": text})
    assert before is not None
    assert after.settings == msgspec.structs.replace(before.settings, headroom_mb=2)


def test_an_empty_source_removes_nothing(source: Source) -> None:
    before = source.in_force
    assert before is not None
    after = source.change(dict.fromkeys(GOOD))
    assert list(after.models) == ["a", "b", "c"]
    assert source.revisions.applied == before.revision != source.revisions.attempted
    assert any("declares no model any more" in line for line in source.problems())


def test_a_source_without_models_removes_nothing(source: Source) -> None:
    after = source.change({"a.toml": None, "b.toml": None})
    assert list(after.models) == ["a", "b", "c"]
    assert source.revisions.applied != source.revisions.attempted


def test_a_source_without_models_and_with_faults_removes_nothing_either(source: Source) -> None:
    gone: dict[str, str | None] = dict.fromkeys(GOOD)
    after = source.change({**gone, "half.toml": "[mod"})
    assert list(after.models) == ["a", "b", "c"]
    assert len(source.problems()) >= 1


def test_a_source_that_comes_back_is_taken_again(source: Source) -> None:
    source.change(dict.fromkeys(GOOD))
    after = source.change({**GOOD, "a.toml": model("a", "priority = 8")})
    assert after.models["a"].priority == 8
    assert source.problems() == []


def test_a_kept_model_yields_the_alias_by_which_the_new_revision_means_another(source: Source) -> None:
    source.change({"a.toml": model("a", 'aliases = ["one", "two", "d"]')})
    bad = model("a", 'aliases = ["one"]\npriorty = 1')
    after = source.change({"a.toml": bad, "d.toml": model("d", 'aliases = ["two"]')})
    assert after.models["a"].aliases == ("one",)
    assert after.models["d"].aliases == ("two",)
    assert source.revisions.kept == ("a",)


# --- the tables and plugins of what is in force -------------------------------------------------------------------


def test_each_table_is_that_of_the_revision_that_it_comes_from(source: Source) -> None:
    bad = model("a", "priority = 4", "cwd = 1")
    source.change({"a.toml": bad, "b.toml": model("b", "priority = 5"), "devices.toml": "["})
    assert source.whole is not None
    assert sorted(source.whole.tables) == [
        ("devices", "big"), ("models", "a"), ("models", "b"), ("plugins", "audit"), ("sidecar",),
    ]  # fmt: skip
    assert "priority" not in source.raw("models", "a")
    assert source.raw("models", "b")["priority"] == 5
    source.change({"a.toml": "[", "b.toml": model("b", "priority = 6")})
    assert source.raw("models", "b")["priority"] == 6
    assert source.whole.tables["models", "a"].file == "a.toml"


def test_an_emptied_source_leaves_every_table_as_it_was(source: Source) -> None:
    before = source.whole
    source.change({**dict.fromkeys(GOOD), "sidecar.toml": "[sidecar]\nheadroom_mb = 5\n"})
    assert before is not None
    assert source.whole is not None
    assert source.whole.tables == before.tables


@pytest.mark.parametrize("text", ["[sidecar", SIDECAR + "listn = 1\n", None])
def test_the_table_of_the_settings_stays_with_them(source: Source, text: str | None) -> None:
    source.change({"sidecar.toml": text, "a.toml": model("a", "priority = 3")})
    assert source.raw("sidecar") == {"headroom_mb": 1, "chain": ["audit"]}
    source.change({"sidecar.toml": SIDECAR.replace("= 1", "= 2")})
    assert source.raw("sidecar")["headroom_mb"] == 2


def test_the_aliases_that_a_kept_model_has_yielded_are_not_in_its_table(source: Source) -> None:
    source.change({"a.toml": model("a", 'aliases = ["one", "two"]')})
    source.change({"a.toml": "[", "d.toml": model("d", 'aliases = ["two"]')})
    assert source.raw("models", "a")["aliases"] == ["one"]


def test_a_kept_plugin_is_loaded_as_it_was_and_a_good_one_as_it_is(source: Source) -> None:
    other = AUDIT.replace("audit", "other")
    source.change({"plugins.toml": AUDIT + other})
    source.change({"plugins.toml": AUDIT.replace("Log", "Gone") + other + 'deadline = "9s"\n'})
    assert source.whole is not None
    catalog = source.whole.catalog
    assert catalog.loaded["audit"].declaration.import_path == "sidecar.builtin.log:Log"
    assert catalog.loaded["other"].declaration.deadline == Duration(9)
    assert set(catalog.faults) == {"audit"}  # told beside the one that stays
    source.change({"plugins.toml": other, "sidecar.toml": "[sidecar]\n"})
    assert "audit" not in source.whole.catalog.loaded


DOOR = """
from plugin_sdk import Auth, Filter, Principal

class Door(Auth):
    def authenticate(self, request):
        return Principal("x")
"""
GATE = """
from plugin_sdk import Filter

class Door(Filter):
    def on_request(self, exchange): ...
"""


@pytest.mark.parametrize("code", ["", "class Door: ...", GATE], ids=["emptied", "no plugin", "no auth"])
def test_chains_that_stay_have_the_plugins_that_they_had(source: Source, code: str) -> None:
    own = model("a", 'chain = ["door"]')
    exposed = SIDECAR.replace('"audit"', '"audit", "door"') + 'listen = "0.0.0.0:0"\n'
    source.change({"plugins/door.py": DOOR, "sidecar.toml": exposed, "a.toml": own})
    assert (source.problems(), source.whole is not None) == ([], True)
    for _ in range(2):  # what was kept once can be kept again
        after = source.change({"plugins/door.py": code, "a.toml": own + "nope = 1\n"})
        assert after.settings.chain == ("audit", "door")
        assert source.whole is not None
        assert source.whole.catalog.loaded["door"].kind == "auth"
