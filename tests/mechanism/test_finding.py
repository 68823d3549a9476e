"""Plugins are found where they lie: by entry point, and in files beside the manifests, with nothing declared."""

from __future__ import annotations

import _queue
import sys
import time
from pathlib import Path

import pytest

from sidecar.core.manifest import PluginDeclaration
from sidecar.mechanism import plugins
from sidecar.mechanism.finding import place_of, snake
from sidecar.mechanism.plugins import Catalog
from sidecar.mechanism.sources import Library
from tests.support import declare, model, write

DOOR = """
from plugin_sdk import Auth, Principal

class {name}(Auth):
    def authenticate(self, request):
        return Principal("{who}")
"""
HAIKU = """
from plugin_sdk import DeviceStatus, Endpoint, Interface, device

class Haiku(Interface):
    provides = "haiku"
    endpoints = (Endpoint("/v1/haiku", "haiku"),)

@device("npu")
def my_npu():
    return DeviceStatus(total_mb=1, free_mb=1)
"""

pytestmark = pytest.mark.usefixtures("_own_imports")


def door(name: str = "Door", who: str = "x") -> str:
    """A module with one auth plugin."""
    return DOOR.format(name=name, who=who)


def found(folder: Path, files: dict[str, str], library: Library | None = None, **declared: str) -> Catalog:
    """What is found beside the manifests."""
    declarations = {name: PluginDeclaration(import_path=path) for name, path in declared.items()}
    return plugins.load(declarations, write(folder / "plugins", files), library=library)


def own(catalog: Catalog) -> set[str]:
    """The names of what is not built in."""
    stock = plugins.BUILTIN.keys() | plugins.BUILTIN_CHAIN.keys() | plugins.BALANCING.keys()
    return catalog.loaded.keys() - stock


def messages(catalog: Catalog) -> dict[str, str]:
    """What could not be had, and why."""
    return {name: "; ".join(map(str, faults)) for name, faults in catalog.faults.items()}


def distribution(site: Path, name: str, entries: dict[str, str], files: dict[str, str]) -> None:
    """A distribution as pip would have installed it."""
    lines = "\n".join(f"{entry} = {value}" for entry, value in entries.items())
    write(site, {**files, f"{name}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"})
    write(site, {f"{name}-1.0.dist-info/entry_points.txt": f"[sidecar.plugins]\n{lines}\n"})


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


# --- beside the manifests -----------------------------------------------------------------------------------------


def test_a_file_beside_the_manifests_is_usable_by_its_own_name_and_by_that_of_its_class(tmp_path: Path) -> None:
    catalog = found(tmp_path, {"my_auth.py": door("DatabaseAuth")})
    assert messages(catalog) == {}
    assert own(catalog) == {"my_auth", "database_auth"}
    assert catalog.loaded["my_auth"].cls is catalog.loaded["database_auth"].cls


def test_two_in_a_file_have_the_names_of_their_classes(tmp_path: Path) -> None:
    catalog = found(tmp_path, {"doors.py": door("Front") + door("BackDoor")})
    assert own(catalog) == {"front", "back_door"}


def test_devices_and_modes_have_the_names_that_they_provide(tmp_path: Path) -> None:
    catalog = found(tmp_path, {"extra.py": HAIKU})
    assert own(catalog) == {"haiku", "npu"}
    assert catalog.providing("device")["npu"].kind == "device"


def test_a_package_offers_what_its_init_has_wherever_it_is_written(tmp_path: Path) -> None:
    files = {
        "acme_pack/__init__.py": "from .doors import Door\nfrom acme_pack.modes.poetry import *\n",
        "acme_pack/doors.py": door(),
        "acme_pack/modes/poetry.py": HAIKU,
        "acme_pack/unused.py": "raise RuntimeError('nobody imports this')",
    }
    catalog = found(tmp_path, files)
    assert messages(catalog) == {}
    assert own(catalog) == {"acme_pack", "door", "haiku", "npu"}


def test_what_a_file_only_imports_is_not_its_own(tmp_path: Path) -> None:
    files = {
        "base_doors.py": door("BaseDoor"),
        "doors.py": "from base_doors import BaseDoor\nclass Mine(BaseDoor): ...\n",
    }
    catalog = found(tmp_path, files)
    assert own(catalog) == {"base_doors", "base_door", "doors", "mine"}
    assert issubclass(catalog.loaded["mine"].cls, catalog.loaded["base_door"].cls)


@pytest.mark.parametrize("name", ["_helper.py", "test_door.py", "conftest.py", "notes.txt", "a-b.py", ".hidden.py"])
def test_helpers_and_tests_are_not_run(tmp_path: Path, name: str) -> None:
    catalog = found(tmp_path, {name: "raise RuntimeError('not for this')"})
    assert messages(catalog) == {}


def test_a_helper_beside_can_be_imported(tmp_path: Path) -> None:
    catalog = found(tmp_path, {"_words.py": "WHO = 'ali'\n", "doors.py": "import _words\n" + door(who="{_words.WHO}")})
    assert messages(catalog) == {}


def test_a_base_that_is_not_whole_is_for_others_to_derive_from(tmp_path: Path) -> None:
    code = "from plugin_sdk import Auth\nclass Base(Auth): ...\n"
    code += "class Door(Base):\n    def authenticate(self, request): ...\n"
    catalog = found(tmp_path, {"doors.py": code})
    assert messages(catalog) == {}
    assert own(catalog) == {"doors", "door"}


def test_a_file_that_breaks_harms_only_itself_and_is_told_with_its_line(tmp_path: Path) -> None:
    files = {"plugins/broken.py": "import os\n\nos.nope\n", "plugins/doors.py": door(), "m.toml": model("m")}
    loaded = declare(tmp_path, files)
    [problem] = loaded.problems
    assert (problem.file, problem.line) == (str(tmp_path / "plugins/broken.py"), 3)
    assert problem.message.startswith("importing broken failed: AttributeError: module 'os' has no attribute 'nope'")
    assert "door" in loaded.catalog.loaded
    assert set(loaded.declaration.models) == {"m"}


def test_a_chain_may_name_what_lies_beside(tmp_path: Path) -> None:
    loaded = declare(tmp_path, {"plugins/doors.py": door(), "s.toml": '[sidecar]\nchain = ["door"]\n'})
    assert loaded.problems == ()


def test_a_chain_that_names_a_broken_file_is_no_open_door(tmp_path: Path) -> None:
    text = '[sidecar]\nlisten = "0.0.0.0:1"\nchain = ["doors"]\n'
    loaded = declare(tmp_path, {"plugins/doors.py": "def broken(:\n", "s.toml": text})
    [problem] = loaded.problems
    assert problem.subject == ("plugins", "doors")
    assert problem.line == 1


def test_one_that_needs_settings_is_told_when_a_chain_names_it(tmp_path: Path) -> None:
    code = "from plugin_sdk import Auth, Config\nclass S(Config):\n    path: str\nclass Door(Auth[S]):\n"
    code += "    def authenticate(self, request): ...\n"
    assert declare(tmp_path, {"plugins/doors.py": code}).problems == ()
    [problem] = declare(tmp_path, {"s.toml": '[sidecar]\nchain = ["door"]\n'}).problems
    assert problem.message == (
        'the plugin "door" needs settings: declare it as [plugins.door] with import = "doors:Door" and config'
    )


def test_one_with_a_table_of_its_own_has_only_that_name(tmp_path: Path) -> None:
    catalog = found(tmp_path, {"doors.py": door()}, front="doors:Door")
    assert own(catalog) == {"front"}


def test_a_hundred_plugins_are_found_in_less_than_a_second(tmp_path: Path) -> None:
    files = {f"plugin_{number}.py": door(f"Door{number}") for number in range(100)}
    write(tmp_path / "plugins", files)
    library = Library()
    found(tmp_path, {})  # what is imported only once is not what is measured
    began = time.process_time()  # other tests run at the same time
    catalog = found(tmp_path, {}, library)
    took_s = time.process_time() - began
    assert len(own(catalog)) == 200
    assert took_s < 1.0


SETTINGS = """
from plugin_sdk import Auth, Config, Principal

class Settings{base}:
    word: str = ""

class Door(Auth[{given}]):
    def authenticate(self, request):
        return Principal("x")
"""
NOT_TO_BE_LOOKED_AT = {
    "metaclass that raises": """
from plugin_sdk import Auth

class Meta(type):
    def __getattribute__(cls, name):
        if name == "authenticate":
            raise RuntimeError("hands off")
        return super().__getattribute__(name)

class Door(Auth, metaclass=Meta):
    def authenticate(self, request): ...
""",
    "no hash": """
from plugin_sdk import Auth

class Meta(type):
    def __eq__(cls, other):
        return cls is other

class Door(Auth, metaclass=Meta):
    def authenticate(self, request): ...
""",
    "global that raises": """
class Lazy:
    @property
    def __class__(self):
        raise RuntimeError("not connected")

lazy = Lazy()
""",
}


@pytest.mark.parametrize(
    ("base", "given", "told"),
    [
        ("", "Settings", "the settings of Door, Settings, are no Config: derive the class from plugin_sdk.Config"),
        ("(Config)", "int", "the settings of Door, int, are no Config"),
        ("(Config)", "Settings | None", "are no Config"),
        ("(Config)", "'Settings'", 'names its settings in quotes, "Settings": write the class Settings above it'),
    ],
)
@pytest.mark.parametrize("declared", [False, True])
def test_settings_that_are_no_config_are_the_fault_of_their_file(
    tmp_path: Path, base: str, given: str, told: str, declared: bool
) -> None:
    files = {"bad.py": SETTINGS.format(base=base, given=given), "good.py": door("Good")}
    catalog = found(tmp_path, files, None, **({"door": "bad:Door"} if declared else {}))
    assert own(catalog) == {"good"}
    assert told in messages(catalog)["door"]
    assert f"{tmp_path}/plugins/bad.py:7" in messages(catalog)["door"]


@pytest.mark.parametrize("code", NOT_TO_BE_LOOKED_AT.values(), ids=NOT_TO_BE_LOOKED_AT)
def test_code_that_cannot_even_be_looked_at_is_the_fault_of_its_file(tmp_path: Path, code: str) -> None:
    tables: tuple[dict[str, str], ...] = ({}, {"door": "bad:Door"})
    for declared in tables:
        catalog = found(tmp_path, {"bad.py": code, "good.py": door("Good")}, None, **declared)
        assert own(catalog) == {"good"}
        assert catalog.faults


def test_a_class_by_entry_point_that_cannot_be_looked_at_is_told(tmp_path: Path, site: Path) -> None:
    code = NOT_TO_BE_LOOKED_AT["metaclass that raises"]
    distribution(site, "acme-meta", {"acme": "acme_meta:Door"}, {"acme_meta.py": code})
    assert "entry point of acme-meta: it cannot be looked at: RuntimeError" in messages(found(tmp_path, {}))["acme"]


# --- installed ----------------------------------------------------------------------------------------------------


def test_an_entry_point_is_usable_by_its_name(tmp_path: Path, site: Path) -> None:
    distribution(site, "acme-doors", {"acme": "acme_inst:Door"}, {"acme_inst.py": door(who="inst")})
    catalog = found(tmp_path, {})
    assert messages(catalog) == {}
    assert own(catalog) == {"acme"}
    assert catalog.loaded["acme"].distribution == "acme-doors"
    assert found(tmp_path, {}, it="entry:acme").loaded["it"].cls is catalog.loaded["acme"].cls


def test_a_device_or_mode_by_entry_point_is_usable_by_what_it_provides(tmp_path: Path, site: Path) -> None:
    distribution(site, "acme-modes", {"x": "acme_modes:Haiku", "y": "acme_modes:my_npu"}, {"acme_modes.py": HAIKU})
    assert own(found(tmp_path, {})) == {"haiku", "npu"}


def test_an_entry_point_that_does_not_load_is_told_with_its_distribution(tmp_path: Path, site: Path) -> None:
    distribution(site, "acme-bad", {"acme": "acme_bad:Door"}, {"acme_bad.py": "raise ValueError('no')\n"})
    catalog = found(tmp_path, {"doors.py": door()})
    assert messages(catalog)["acme"].startswith("entry point of acme-bad: importing acme_bad failed: ValueError: no (")
    assert "door" in own(catalog)


def test_an_entry_point_that_is_not_there_is_told_with_the_near_one(tmp_path: Path, site: Path) -> None:
    distribution(site, "acme-doors", {"acme": "acme_near:Door"}, {"acme_near.py": door()})
    catalog = found(tmp_path, {}, it="entry:acmee")
    assert messages(catalog)["it"] == (
        'no entry point "acmee" of sidecar.plugins; did you mean "acme"?; installed: acme'
    )


# --- clashes ------------------------------------------------------------------------------------------------------


def test_two_files_with_the_same_plugin_are_a_clash_and_neither_counts(tmp_path: Path) -> None:
    catalog = found(tmp_path, {"one.py": door(), "two.py": door()})
    folder = tmp_path / "plugins"
    assert messages(catalog)["door"] == (
        f'"door" is more than one plugin: {folder}/one.py:4 (Door) and {folder}/two.py:4 (Door); rename one of them'
    )
    assert own(catalog) == {"one", "two"}


def test_a_file_and_an_entry_point_of_one_name_are_a_clash(tmp_path: Path, site: Path) -> None:
    distribution(site, "acme-doors", {"door": "acme_clash:Door"}, {"acme_clash.py": door()})
    catalog = found(tmp_path, {"doors.py": door()})
    assert "door" not in own(catalog)
    assert f"{site}/acme_clash.py:4 (Door) and {tmp_path}/plugins/doors.py:4 (Door)" in messages(catalog)["door"]


def test_a_table_and_a_file_of_one_name_are_a_clash(tmp_path: Path, site: Path) -> None:
    write(site, {"acme_table.py": door()})
    catalog = found(tmp_path, {"door.py": door("Other")}, door="acme_table:Door")
    assert "door" not in own(catalog)
    assert f"acme_table:Door and {tmp_path}/plugins/door.py:4 (Other)" in messages(catalog)["door"]


def test_a_broken_file_is_told_also_if_a_table_has_its_name(tmp_path: Path, site: Path) -> None:
    write(site, {"acme_named.py": door()})
    catalog = found(tmp_path, {"door.py": "broken("}, door="acme_named:Door")
    assert "door" in own(catalog)
    assert messages(catalog).keys() == {"plugins/door"}
    told = messages(found(tmp_path, {}, door="door:Door"))
    assert told.keys() == {"door"}  # once is enough


def test_a_file_does_not_replace_a_built_in(tmp_path: Path) -> None:
    catalog = found(tmp_path, {"modes.py": HAIKU.replace('"haiku"\n', '"chat"\n')})
    assert f"sidecar.builtin.interfaces:Chat and {tmp_path}/plugins/modes.py:4" in messages(catalog)["chat"]
    assert catalog.loaded["chat"].cls.__module__ == "sidecar.builtin.interfaces"


def test_a_table_replaces_the_built_in_that_provides_the_same(tmp_path: Path) -> None:
    catalog = found(tmp_path, {"modes.py": HAIKU.replace('"haiku"\n', '"chat"\n')}, mine="modes:Haiku")
    assert messages(catalog) == {}
    assert catalog.providing("interface")["chat"].name == "mine"
    assert "chat" not in catalog.loaded


def test_two_tables_that_provide_the_same_are_a_clash(tmp_path: Path) -> None:
    catalog = found(tmp_path, {"modes.py": HAIKU}, a="modes:Haiku", b="modes:Haiku")
    assert messages(catalog) == {
        "a": 'provides the interface "haiku", and so does [plugins.b]',
        "b": 'provides the interface "haiku", and so does [plugins.a]',
    }


def test_a_file_that_hides_an_installed_package_is_told_and_not_run(tmp_path: Path, site: Path) -> None:
    write(site, {"acme_both/__init__.py": ""})
    catalog = found(tmp_path, {"acme_both.py": "raise SystemExit"})
    assert messages(catalog)["acme_both"] == (
        f'"acme_both" is also installed ({site}/acme_both/__init__.py), which wins: '
        f"rename {tmp_path}/plugins/acme_both.py"
    )


def test_a_folder_of_the_same_name_that_is_no_package_hides_nothing(tmp_path: Path, site: Path) -> None:
    write(site, {"acme_folder/notes.txt": ""})
    catalog = found(tmp_path, {"acme_folder.py": door()}, it="acme_folder:Door")
    assert messages(catalog) == {}
    assert own(catalog) == {"it"}


def test_a_folder_whose_name_begins_like_that_of_the_plugins_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "plugins-of-others", {"acme_near_by.py": door()})
    monkeypatch.syspath_prepend(str(tmp_path / "plugins-of-others"))
    catalog = found(tmp_path, {"acme_near_by.py": door()})
    assert '"acme_near_by" is also installed' in messages(catalog)["acme_near_by"]


def test_a_folder_that_is_on_the_path_of_python_too_is_no_clash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path / "plugins"))
    catalog = found(tmp_path, {"acme_self.py": door()}, it="acme_self:Door")
    assert messages(catalog) == {}
    assert "acme_self" not in sys.modules


# --- reading again ------------------------------------------------------------------------------------------------


def test_the_place_of_a_plugin_is_that_in_its_own_version_whatever_the_file_has_become(tmp_path: Path) -> None:
    code = "def made():\n    class Door: ...\n    return Door\n" + door()
    code = code.replace("class Door(", "@(lambda cls: cls)\nclass Door(")
    package = {"pack/__init__.py": "from .deep import Deep", "pack/deep.py": door("Deep")}
    catalog = found(tmp_path, {"doors.py": code, **package})
    write(tmp_path / "plugins", {"doors.py": "def broken(:\n", "pack/deep.py": "\n" * 9 + door("Deep")})
    places = {name: place_of(catalog.loaded[name].cls, catalog.loaded[name].code) for name in own(catalog)}
    assert places["door"] == places["doors"] == (f"{tmp_path}/plugins/doors.py", 7)
    assert places["deep"] == (f"{tmp_path}/plugins/pack/deep.py", 4)


def test_what_did_not_change_stays_the_same_class(tmp_path: Path) -> None:
    library = Library()
    first = found(tmp_path, {"one.py": door("One"), "two.py": door("Two")}, library)
    second = found(tmp_path, {"two.py": door("Two", "y")}, library)
    assert second.loaded["one"].cls is first.loaded["one"].cls
    assert second.loaded["two"].cls is not first.loaded["two"].cls


def test_a_file_that_breaks_tells_so_for_all_that_it_had(tmp_path: Path) -> None:
    library = Library()
    found(tmp_path, {"doors.py": door("Front") + door("Back")}, library)
    for _ in range(2):
        catalog = found(tmp_path, {"doors.py": "broken("}, library)
        assert catalog.faults.keys() == {"doors", "front", "back"}
    assert own(found(tmp_path, {"doors.py": door("Front")}, library)) == {"doors", "front"}


def test_a_class_that_breaks_tells_so_under_the_name_that_it_had(tmp_path: Path) -> None:
    library = Library()
    found(tmp_path, {"modes.py": HAIKU}, library)
    catalog = found(tmp_path, {"modes.py": HAIKU.replace('provides = "haiku"', "")}, library)
    assert "does not say what it provides" in messages(catalog)["haiku"]
    assert "npu" in catalog.loaded


def test_an_installed_package_is_read_again_when_somebody_asks(tmp_path: Path, site: Path) -> None:
    write(site, {"acme_again/__init__.py": "from acme_again.doors import Door", "acme_again/doors.py": door(who="old")})
    library = Library()
    first = found(tmp_path, {}, library, it="acme_again:Door").loaded["it"].cls
    write(site, {"acme_again/doors.py": door(who="newer")})
    assert found(tmp_path, {}, library, it="acme_again:Door").loaded["it"].cls is first
    library.installed.reread()
    again = found(tmp_path, {}, library, it="acme_again:Door").loaded["it"]
    assert again.make().authenticate(None).id == "newer"  # type: ignore[attr-defined] # it is an Auth
    library.installed.reread()
    assert found(tmp_path, {}, library, it="acme_again:Door").loaded["it"].cls is again.cls
    assert sys.modules["acme_again"].Door is first


def test_an_extension_module_asks_for_a_restart(tmp_path: Path, site: Path) -> None:
    source = Path(_queue.__file__)  # any extension module will do, of which there is a file
    write(site, {"acme_ext/__init__.py": "import acme_ext._queue\n" + door()})
    (site / "acme_ext" / source.name).write_bytes(source.read_bytes())
    library = Library()
    assert messages(found(tmp_path, {}, library, it="acme_ext:Door")) == {}
    write(site, {"acme_ext/__init__.py": "import acme_ext._queue\n\n" + door()})
    library.installed.reread()
    told = messages(found(tmp_path, {}, library, it="acme_ext:Door"))["it"]
    assert f"{source.name} is an extension module, which cannot be loaded anew: restart the sidecar" in told


def test_an_extension_module_beside_the_manifests_asks_for_a_restart(tmp_path: Path) -> None:

    source = Path(_queue.__file__)  # any extension module will do, of which there is a file
    write(tmp_path / "plugins", {"acme_own/__init__.py": "from . import _queue\n" + door()})
    (tmp_path / "plugins" / "acme_own" / source.name).write_bytes(source.read_bytes())
    library = Library()
    assert messages(found(tmp_path, {}, library)) == {}
    for _ in range(2):
        catalog = found(tmp_path, {"acme_own/__init__.py": "from . import _queue\n\n" + door()}, library)
        assert "restart the sidecar" in messages(catalog)["door"]


def test_names_are_put_into_snake_case() -> None:
    assert [snake(name) for name in ("DatabaseAuth", "HTTPDoor", "door", "OAuth2Keys")] == [
        "database_auth",
        "http_door",
        "door",
        "o_auth2_keys",
    ]
