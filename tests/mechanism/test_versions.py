"""Versions of plugin code live side by side, and are forgotten when nothing of them is left."""

from __future__ import annotations

import gc
import inspect
import logging
import os
import sys
import threading
import traceback
from pathlib import Path
from types import ModuleType

import pytest

from sidecar.mechanism import versions
from sidecar.mechanism.sources import Library, signature
from sidecar.mechanism.versions import CodeFault
from tests.support import write

PACK = {
    "pack/__init__.py": "from . import words\nfrom .deep.inner import tell\nimport pack.deep\n",
    "pack/words.py": "WHO = 'ali'\n",
    "pack/deep/inner.py": """from ..words import WHO

def tell():
    from pack.words import WHO as late
    return WHO + late
""",
}


def read(folder: Path, files: dict[str, str], library: Library) -> None:
    library.read(write(folder, files))


def load(library: Library, name: str) -> ModuleType:
    return library.versions[name].load()


def private() -> list[str]:
    """The modules of all versions that there are."""
    gc.collect()
    return [name for name in sys.modules if "@" in name]


@pytest.fixture(autouse=True)
def _nothing_is_left() -> object:
    before = set(private())
    yield
    assert set(private()) <= before


def test_two_versions_of_a_file_live_side_by_side(tmp_path: Path) -> None:
    library = Library()
    read(tmp_path, {"one.py": "import time\nX = 1\ndef get(): return X\n"}, library)
    kept = library.versions["one"]
    first = kept.load()
    read(tmp_path, {"one.py": "X = 22\ndef get(): return X\n"}, library)
    second = load(library, "one")
    assert (first.get(), second.get()) == (1, 22)
    assert first.__name__ != second.__name__


def test_a_change_of_the_same_size_at_the_same_time_is_read_from_source(tmp_path: Path) -> None:
    library = Library()
    file = write(tmp_path, {"one.py": "X = 1\n"}) / "one.py"
    library.read(tmp_path)
    assert load(library, "one").X == 1
    stat = file.stat()
    file.write_text("X = 2\n")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    library.read(tmp_path)
    assert load(library, "one").X == 2
    assert [path.name for path in tmp_path.iterdir()] == ["one.py"]  # nothing is compiled into the folder


def test_helpers_of_a_package_are_found_by_relative_and_by_absolute_names(tmp_path: Path) -> None:
    library = Library()
    read(tmp_path, PACK, library)
    assert load(library, "pack").tell() == "aliali"
    assert "pack" not in sys.modules


def test_a_package_that_changed_is_whole_and_the_old_one_too_also_late(tmp_path: Path) -> None:
    library = Library()
    read(tmp_path, PACK, library)
    kept = library.versions["pack"]
    old = kept.load()
    read(tmp_path, {"pack/words.py": "WHO = 'eve'\n"}, library)
    assert load(library, "pack").tell() == "eveeve"
    assert old.tell() == "aliali"


def test_a_unit_that_imports_a_changed_one_is_new_and_others_stay(tmp_path: Path) -> None:
    library = Library()
    files = {"helper.py": "X = 1\n", "user.py": "import helper\ndef get(): return helper.X\n", "other.py": ""}
    read(tmp_path, files, library)
    before = {name: library.versions[name] for name in files_of(files)}
    assert [version.load() for version in before.values()]
    read(tmp_path, {"helper.py": "X = 2\n"}, library)
    assert load(library, "user").get() == 2
    assert before["user"].load().get() == 1
    assert library.versions["other"] is before["other"]


def files_of(files: dict[str, str]) -> list[str]:
    return [name.removesuffix(".py") for name in files]


def test_state_of_a_helper_is_shared_by_those_that_import_it(tmp_path: Path) -> None:
    library = Library()
    files = {"shared.py": "SEEN = []\n", "one.py": "from shared import SEEN\n", "two.py": "import shared\n"}
    read(tmp_path, files, library)
    assert load(library, "one").SEEN is load(library, "two").shared.SEEN


def test_what_is_installed_wins_for_whoever_imports_it(tmp_path: Path) -> None:
    library = Library()
    read(tmp_path, {"json.py": "raise SystemExit", "user.py": "import json\n"}, library)
    assert load(library, "user").json is sys.modules["json"]


def test_source_and_tracebacks_are_those_of_the_file(tmp_path: Path) -> None:
    library = Library()
    read(tmp_path, {"one.py": "\n\ndef broken():\n    return 1 / 0\n"}, library)
    module = load(library, "one")
    assert inspect.getsource(module.broken) == "def broken():\n    return 1 / 0\n"
    with pytest.raises(ZeroDivisionError) as raised:
        module.broken()
    assert f'File "{tmp_path}/one.py", line 4, in broken\n    return 1 / 0' in "".join(
        traceback.format_exception(raised.value)
    )


def test_annotations_are_read_where_they_were_written(tmp_path: Path) -> None:
    code = "from __future__ import annotations\nfrom plugin_sdk import Config, Duration\n"
    code += "class S(Config):\n    wait: Duration = Duration(1)\n"
    library = Library()
    read(tmp_path, {"one.py": code}, library)
    assert inspect.get_annotations(load(library, "one").S, eval_str=True)["wait"].__name__ == "Duration"


def test_an_import_that_does_not_end_is_told_with_its_line_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "IMPORT_S", 0.1)
    held = threading.Event()
    monkeypatch.setattr(threading, "held_by_test", held, raising=False)
    library = Library()
    read(tmp_path, {"slow.py": "import threading\n\nthreading.held_by_test.wait()\n"}, library)
    with pytest.raises(CodeFault, match=r"importing slow did not end within 0\.1 s") as raised:
        load(library, "slow")
    assert (raised.value.file, raised.value.line) == (f"{tmp_path}/slow.py", 3)
    before = library.versions["slow"]
    library.read(tmp_path)
    assert library.versions["slow"] is before
    held.set()


def test_a_broken_one_is_tried_again_each_time(tmp_path: Path) -> None:
    library = Library()
    read(tmp_path, {"user.py": "import acme_later\n"}, library)
    with pytest.raises(CodeFault, match="No module named 'acme_later'"):
        load(library, "user")
    read(tmp_path, {"acme_later.py": "X = 1\n"}, library)
    assert load(library, "user").acme_later.X == 1


def test_a_version_is_forgotten_with_its_loggers_when_nobody_holds_it(tmp_path: Path) -> None:
    library = Library()
    code = "import logging\nlog = logging.getLogger(__name__)\n"
    read(tmp_path, {"one.py": code, "pack/__init__.py": code + "from . import inner\n", "pack/inner.py": code}, library)
    names = {load(library, "one").__name__, load(library, "pack").__name__}
    assert names <= set(sys.modules) & logging.root.manager.loggerDict.keys()
    read(tmp_path, {"one.py": code + "\n", "pack/inner.py": "\n"}, library)
    gc.collect()
    left = {*sys.modules, *logging.root.manager.loggerDict}
    assert not [name for name in left if name.partition(".")[0] in names]


def test_two_hundred_versions_leave_no_more_than_one(tmp_path: Path) -> None:
    library = Library()
    for number in range(200):
        code = f"class A:\n    X = {number}\n    def me(self): return A\n"
        read(tmp_path, {"one.py": code}, library)
        assert number == load(library, "one").A.X
    assert [name for name in private() if name.startswith("one@")] == [load(library, "one").__name__]
    gc.collect()
    assert sum(type(one) is type and str(one.__module__).startswith("one@") for one in gc.get_objects()) == 1


def test_the_signature_tells_every_change_of_code_and_nothing_else(tmp_path: Path) -> None:
    assert signature(tmp_path / "nowhere") == ()
    write(tmp_path, {"one.py": "1", "pack/deep/inner.py": "2", "pack/__pycache__/x.py": "", "notes.txt": ""})
    before = signature(tmp_path)
    assert [Path(name).name for name, *_ in before] == ["one.py", "inner.py"]
    write(tmp_path, {"notes.txt": "changed"})
    assert signature(tmp_path) == before
    (tmp_path / "pack/deep/inner.py").unlink()
    assert signature(tmp_path) != before


def test_a_file_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    library = Library()
    read(tmp_path, {"one.py": "", "two.py": "import one\n"}, library)
    load(library, "two")
    (tmp_path / "one.py").unlink()
    library.read(tmp_path)
    assert list(library.versions) == ["two"]
    with pytest.raises(CodeFault, match="No module named 'one'"):
        load(library, "two")
