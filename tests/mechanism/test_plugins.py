"""Plugins are found by their import path; what is wrong with one is told, and harms no other."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from plugin_sdk import Auth, Device
from sidecar.core.manifest import PluginDeclaration
from sidecar.mechanism.plugins import BALANCING, BUILTIN, BUILTIN_CHAIN, Catalog, load
from tests.support import write

GOOD = """
from plugin_sdk import Auth, Config, DeviceStatus, Interface, Principal, Stats, device

class Settings(Config):
    path: str
    level: int = 3

class Door(Auth[Settings]):
    def authenticate(self, request):
        return Principal("x")

class Open(Auth):
    def authenticate(self, request):
        return Principal("x")

class Sink(Stats):
    def record(self, outcome):
        pass

class Unfinished(Auth):
    pass

class Speechless(Interface):
    provides = "silence"

@device("toaster")
def toaster():
    return DeviceStatus(total_mb=2, free_mb=1)

def function():
    pass

class Plain:
    pass
"""

pytestmark = pytest.mark.usefixtures("_own_imports")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    write(tmp_path, {"acme_test/__init__.py": "", "acme_test/good.py": GOOD})
    yield tmp_path


def load_one(folder: Path, import_path: str, **more: object) -> Catalog:
    declaration = PluginDeclaration(import_path=import_path, **more)  # type: ignore[arg-type]  # as a manifest has it
    return load({"it": declaration}, folder)


def fault(folder: Path, import_path: str, **more: object) -> tuple[str, str]:
    """The one fault of a plugin: key and message. Everything else is loaded."""
    catalog = load_one(folder, import_path, **more)
    assert catalog.loaded.keys() == BUILTIN.keys() | BUILTIN_CHAIN.keys() | BALANCING.keys()
    assert list(catalog.faults) == ["it"]
    [found] = catalog.faults["it"]
    return ".".join(str(part) for part in found.key), str(found)


def test_the_builtin_ones_are_always_there(tmp_path: Path) -> None:
    catalog = load({}, tmp_path / "plugins")
    assert not catalog.faults
    assert catalog.providing("device").keys() >= {"nvidia", "cpu"}
    assert catalog.providing("interface").keys() >= {"chat", "base", "embedding", "reranker"}
    assert catalog.loaded["log"].kind == "stats"


def test_one_beside_the_manifests_is_found_with_its_settings(folder: Path) -> None:
    loaded = load_one(folder, "acme_test.good:Door", config={"path": "a.db"}).loaded["it"]
    assert (loaded.kind, loaded.name) == ("auth", "it")
    made = loaded.make()
    assert isinstance(made, Auth)
    assert (made.name, made.config) == ("it", loaded.config)
    assert repr(loaded.config) == "Settings(path='a.db', level=3)"
    assert loaded.make() is not made


def test_what_is_installed_wins_over_what_lies_beside_the_manifests(folder: Path) -> None:
    write(folder, {"json.py": "raise SystemExit('this is not the json that you look for')"})
    catalog = load_one(folder, "json:JSONDecoder")
    assert "no plugin" in str(catalog.faults["it"])
    [told] = catalog.faults["json"]
    assert str(told) == f'"json" is also installed (Python\'s standard library), which wins: rename {folder}/json.py'


def test_a_function_can_be_a_device(folder: Path) -> None:
    loaded = load_one(folder, "acme_test.good:toaster").loaded["it"]
    assert issubclass(loaded.cls, Device)
    assert loaded.provides == "toaster"


@pytest.mark.parametrize("text", ["acme_test.good", "acme_test.good:", ":Door", "acme_test.good:a-b", "", "a:b:c"])
def test_a_path_of_another_form_is_a_fault(folder: Path, text: str) -> None:
    assert fault(folder, text) == ("import", f'expected "package.module:Class", got "{text}"')


@pytest.mark.parametrize("module", ["acme_missing", "acme_missing.sub", "acme_test.missing"])
def test_a_module_that_is_nowhere_is_a_fault(folder: Path, module: str) -> None:
    assert fault(folder, f"{module}:X") == (
        "import",
        f'no module "{module}" on sys.path or in plugins/ beside the manifests',
    )


def test_a_name_that_the_module_lacks_is_a_fault_with_the_near_one(folder: Path) -> None:
    key, message = fault(folder, "acme_test.good:Dor")
    assert key == "import"
    assert message == f'module acme_test.good ({folder}/acme_test/good.py) has no "Dor"; did you mean "Door"?'


@pytest.mark.parametrize("name", ["function", "Plain", "Config"])
def test_what_is_no_plugin_is_a_fault(folder: Path, name: str) -> None:
    key, message = fault(folder, f"acme_test.good:{name}")
    assert key == "import"
    assert message.endswith(
        "is no plugin: it must be a class derived from one of Device, Interface, Auth, Route, Filter, Stats"
    )


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("Unfinished", "does not define authenticate, which an auth"),
        ("Speechless", "does not define endpoints"),
        ("Stats", "does not define record"),
    ],
)
def test_a_plugin_without_its_one_method_is_a_fault(folder: Path, name: str, missing: str) -> None:
    key, message = fault(folder, f"acme_test.good:{name}")
    assert key == "import"
    assert missing.replace(" a auth", "") in message


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("x = 1\nimport acme_not_installed\n", "No module named 'acme_not_installed' ({file}:2)"),
        ("x = 1\n\nx.nope\n", "AttributeError: 'int' object has no attribute 'nope' ({file}:3)"),
        ("def f(:\n", "{file}:1: invalid syntax"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3 ({file}:2)"),
        ("raise TimeoutError\n", "TimeoutError:  ({file}:1)"),
        ("x = '\\0'\n\0", "null bytes"),
        ("# \xff".encode("latin-1").decode("latin-1") + "\nraise RecursionError('deep')", "RecursionError: deep"),
    ],
)
def test_code_that_fails_on_import_is_a_fault_with_its_own_line(folder: Path, code: str, words: str) -> None:
    file = folder / "acme_broken.py"
    file.write_text(code, encoding="utf-8")
    key, message = fault(folder, "acme_broken:X")
    assert key == "import"
    assert message.startswith("importing acme_broken failed: ")
    assert words.format(file=file) in message


def test_a_broken_module_may_be_repaired(folder: Path) -> None:
    file = write(folder, {"acme_mended.py": "raise ValueError"}) / "acme_mended.py"
    fault(folder, "acme_mended:Door")
    file.write_text(GOOD + "\n# so that its size differs", encoding="utf-8")
    assert "it" in load_one(folder, "acme_mended:Door", config={"path": "x"}).loaded


def test_every_fault_of_the_settings_is_told(folder: Path) -> None:
    catalog = load_one(folder, "acme_test.good:Door", config={"pth": "x", "level": "high"}, on_error="skip")
    told = {".".join(map(str, found.key)): str(found) for found in catalog.faults["it"]}
    assert told == {
        "config.pth": 'unknown key "pth"; did you mean "path"?',
        "config.level": "expected int, got str",
        "on_error": 'an auth plugin that is skipped would open the door: only "deny"',
    }


def test_a_plugin_without_settings_takes_none(folder: Path) -> None:
    assert fault(folder, "acme_test.good:Open", config={"a": 1}) == ("config.a", 'unknown key "a"')


def test_only_auth_denies(folder: Path) -> None:
    key, message = fault(folder, "acme_test.good:Sink", on_error="deny")
    assert (key, message) == ("on_error", 'a stats plugin does not admit requests: only "skip"')
    for path in ("sidecar.builtin.cpu:Cpu", "sidecar.builtin.interfaces:Chat"):
        assert fault(folder, path, on_error="disable")[1].endswith(
            'asked again and again, whatever it said before: only "skip"'
        )
    assert "it" in load_one(folder, "acme_test.good:Sink", on_error="skip").loaded
    assert "it" in load_one(folder, "acme_test.good:Open", on_error="deny").loaded


@pytest.mark.parametrize(
    "settings",
    [
        "class S(Config):\n    folder: Path\n",
        "class S(Config):\n    folder: 'Nowhere'\n",
        "class S(Config):\n    inner: In\n",
        "class S(Config):\n    n: int = 0\n    def __post_init__(self):\n        raise LookupError('no table')\n",
    ],
    ids=["a type that TOML lacks", "a type that is nowhere", "a table within", "a check that breaks"],
)
def test_settings_that_break_while_they_are_read_are_a_fault(folder: Path, settings: str) -> None:
    head = "from pathlib import Path\nfrom plugin_sdk import Auth, Config\nclass In(Config):\n    x: int\n"
    body = "class A(Auth[S]):\n    def authenticate(self, request): ...\n"
    write(folder, {"acme_odd.py": head + settings + body})
    catalog = load_one(folder, "acme_odd:A", config={"folder": "x"} if "folder" in settings else {})
    assert list(catalog.faults) == ["it"]
    assert "cpu" in catalog.loaded


def test_the_folder_is_not_on_the_path_of_python(folder: Path) -> None:
    before = list(sys.path)
    load_one(folder, "acme_test.good:Open")
    assert sys.path == before
    assert "acme_test" not in sys.modules
