"""Manifests as a stream of revisions: each is read once, whole, and when it holds still."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sidecar.core.manifest import Declaration
from sidecar.mechanism import source
from sidecar.mechanism.loader import Loaded, load
from sidecar.mechanism.manifests import Manifests
from sidecar.mechanism.sources import Library
from tests.support import model, write


class Reader:
    """Asks for revisions as the controller does."""

    def __init__(self, root: Path) -> None:
        snapshot = source.read(root)
        self.before: Declaration = load(snapshot, {}).declaration
        self.look_now = asyncio.Event()
        self.manifests = Manifests(root, {}, snapshot)

    async def next(self) -> Loaded:
        """The next revision."""
        async with asyncio.timeout(10):
            while True:
                if (loaded := await self.look()) is not None:
                    self.before = loaded.declaration
                    return loaded

    async def look(self) -> Loaded | None:
        """One look, when it is worth it."""
        await self.manifests.changed(self.look_now)
        self.look_now.clear()
        return await self.manifests.read(self.before)


@pytest.fixture
async def reader(tmp_path: Path) -> AsyncIterator[Reader]:
    write(tmp_path / "m", {"a.toml": model("a"), "b.toml": model("b")})
    reader = Reader(tmp_path / "m")
    await reader.look()  # from here on the kernel tells
    yield reader
    await reader.manifests.close()


async def test_an_edit_is_a_revision_and_the_same_again_is_none(reader: Reader, tmp_path: Path) -> None:
    write(tmp_path / "m", {"a.toml": model("a", "priority = 1")})
    assert (await reader.next()).declaration.models["a"].priority == 1
    os.utime(tmp_path / "m" / "a.toml")
    reader.look_now.set()
    assert await reader.look() is None


async def test_an_edit_of_the_same_size_at_the_same_time_is_seen(reader: Reader, tmp_path: Path) -> None:
    file = tmp_path / "m" / "a.toml"
    stat = file.stat()
    file.write_text(file.read_text().replace("memory_mb = 100", "memory_mb = 200"))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (await reader.next()).declaration.models["a"].variants[0].memory_mb == 200


async def test_a_file_that_was_emptied_keeps_what_it_declared(reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "m" / "a.toml").write_text("\n")
    loaded = await reader.next()
    assert loaded.broken_files == {"a.toml"}
    (problem,) = loaded.problems
    assert problem.message.startswith("is empty: taken for half-written")
    (tmp_path / "m" / "a.toml").unlink()
    loaded = await reader.next()
    assert loaded.problems == ()
    assert set(loaded.declaration.models) == {"b"}


async def test_a_new_empty_file_is_no_problem(reader: Reader, tmp_path: Path) -> None:
    write(tmp_path / "m", {"c.toml": ""})
    assert (await reader.next()).problems == ()


async def test_nothing_is_read_while_git_is_at_work(reader: Reader, tmp_path: Path) -> None:
    lock = write(tmp_path / "m" / ".git", {"index.lock": ""}) / "index.lock"
    (tmp_path / "m" / "b.toml").unlink()
    reader.look_now.set()
    with pytest.raises(source.SourceError, match=r"git is at work there: .git/index.lock exists"):
        await reader.look()
    lock.unlink()
    reader.look_now.set()
    loaded = await reader.look()
    assert loaded is not None
    assert set(loaded.declaration.models) == {"a"}


async def test_a_folder_that_comes_back_is_a_new_revision_though_it_is_the_same(reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "m").rename(tmp_path / "away")
    with pytest.raises(source.SourceError, match="no such directory"):
        await reader.next()
    (tmp_path / "away").rename(tmp_path / "m")
    assert set((await reader.next()).declaration.models) == {"a", "b"}


# --- plugins beside the manifests -----------------------------------------------------------------------------------

DOOR = """
from plugin_sdk import Auth, Principal

class Door(Auth):
    def authenticate(self, request):
        return Principal("{who}")
"""


@pytest.mark.parametrize("name", ["doors.py", "pack/__init__.py"])
async def test_a_plugin_that_changes_is_a_revision_though_the_manifests_are_the_same(
    reader: Reader, tmp_path: Path, name: str
) -> None:
    write(tmp_path / "m" / "plugins", {name: DOOR.replace("{who}", "ali")})
    first = await reader.next()
    assert first.problems == ()
    write(tmp_path / "m" / "plugins", {name: DOOR.replace("{who}", "eve")})
    second = await reader.next()
    assert second.declaration == first.declaration
    assert second.catalog.loaded["door"].cls is not first.catalog.loaded["door"].cls
    (tmp_path / "m" / "plugins" / name).unlink()
    assert "door" not in (await reader.next()).catalog.loaded


async def test_a_change_of_which_nobody_told_is_found_by_looking_twice(tmp_path: Path) -> None:
    root = write(tmp_path / "m", {"a.toml": model("a"), "plugins/doors.py": DOOR.replace("{who}", "ali")})
    snapshot = source.read(root)
    library = Library()
    before = load(snapshot, {}, library=library)
    manifests = Manifests(root, {}, snapshot, library)
    assert await manifests.read(before.declaration) is None
    write(root, {"plugins/doors.py": DOOR.replace("{who}", "eve")})
    assert await manifests.read(before.declaration) is None  # it may still be written to
    loaded = await manifests.read(before.declaration)
    assert loaded is not None
    assert loaded.catalog.loaded["door"].cls is not before.catalog.loaded["door"].cls
    assert await manifests.read(before.declaration) is None


async def test_who_asks_gets_all_anew_though_nothing_has_changed(tmp_path: Path) -> None:
    root = write(tmp_path / "m", {"a.toml": model("a"), "plugins/doors.py": DOOR.replace("{who}", "ali")})
    snapshot = source.read(root)
    library = Library()
    before = load(snapshot, {}, library=library)
    manifests = Manifests(root, {}, snapshot, library)
    loaded = await manifests.read(before.declaration, anew=True)
    assert loaded is not None
    assert loaded.catalog.loaded["door"].cls is before.catalog.loaded["door"].cls
