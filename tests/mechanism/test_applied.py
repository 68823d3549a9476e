"""What is in force is written down as it was declared, and is checked again by who reads it."""

from __future__ import annotations

import datetime
import json
import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sidecar.core.manifest import Settings
from sidecar.mechanism import applied
from sidecar.mechanism.applied import Applied, AppliedFile, before_start
from sidecar.mechanism.loader import Entry, Loaded, OwnSettings, own_settings
from sidecar.mechanism.source import read
from tests.support import declare, model, write

KEYS = (
    '[plugins.keys]\nimport = "sidecar.builtin.keys:StaticKeys"\nconfig = { keys = { "sha256:'
    + "0" * 64
    + '" = "x" } }\n'
)
GOOD = {
    "sidecar.toml": '[sidecar]\nheadroom_mb = 7\nchain = ["keys"]\n' + KEYS,
    "models/a.toml": model('"a.b/c"', 'aliases = ["ä", "\\n"]\nidle_timeout = "3m"') + model("d"),
    "devices.toml": "[devices.big]\nmatch = { index = 0 }\n",
}


async def save(file: AppliedFile, loaded: Loaded, root: Path) -> None:
    await file.save(root, loaded.declaration, loaded.tables)


def own(root: Path) -> OwnSettings:
    """`[sidecar]` of the manifests below a folder."""
    found = own_settings(read(root))
    assert found is not None
    return found


def tables(entry: Any, file: str = "a.toml") -> dict[tuple[str, ...], Entry]:
    return {("plugins", "x"): Entry(file, entry)}


async def test_what_is_read_again_is_the_same_declaration(tmp_path: Path) -> None:
    loaded = declare(tmp_path / "manifests", GOOD)
    assert loaded.problems == ()
    await save(AppliedFile(tmp_path), loaded, tmp_path / "manifests")
    found = AppliedFile(tmp_path).read(tmp_path / "manifests")
    assert found is not None
    before = before_start(found, tmp_path / "manifests", own(tmp_path / "manifests"), {})
    assert before.problems == ()
    assert before.declaration == loaded.declaration
    assert before.catalog.loaded.keys() == loaded.catalog.loaded.keys()


async def test_what_is_faulty_and_so_not_in_force_is_left_out(tmp_path: Path) -> None:
    files = GOOD | {"bad.toml": model("bad", "priorty = 1") + "[devices.odd]\n[plugins.no]\nimport = 'no:No'\n"}
    await save(AppliedFile(tmp_path), declare(tmp_path / "manifests", files), tmp_path / "manifests")
    found = AppliedFile(tmp_path).read(tmp_path / "manifests")
    assert found is not None
    assert sorted(found.tables) == [
        ("devices", "big"), ("models", "a.b/c"), ("models", "d"), ("plugins", "keys"), ("sidecar",),
    ]  # fmt: skip


async def test_secrets_are_written_as_references_for_the_owners_eyes_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORD", "key-value")
    external = model("x").replace('required_devices = ["cpu"]\nmemory_mb = 100\ncommand = ["serve", "{port}"]', "")
    manifest = external + 'url = "http://127.0.0.1:1/{env.PART}"\napi_key = { env = "WORD" }\n'
    loaded = declare(tmp_path / "manifests", {"x.toml": manifest}, {"PART": "part-value"})
    assert loaded.problems == ()
    await save(AppliedFile(tmp_path), loaded, tmp_path / "manifests")
    file = tmp_path / "applied.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert "WORD" in file.read_text()
    assert "-value" not in file.read_text()


async def test_every_kind_of_value_and_of_file_name_comes_through(tmp_path: Path) -> None:
    values = {"when": datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC), "x": float("inf"), "quo\"ted'": ["\x07", {}]}
    name = "odd \udcff\n.toml"
    loaded = declare(tmp_path / "manifests", {})
    declaration = msgspec.structs.replace(loaded.declaration, plugins={"x": None})
    await AppliedFile(tmp_path).save(tmp_path, declaration, tables(values, name))
    found = AppliedFile(tmp_path).read(tmp_path)
    assert found is not None
    assert found.tables == tables(values, name)
    assert [file for file, _ in found.snapshot(tmp_path).files] == [name]


async def test_what_was_in_force_of_another_directory_is_not_known(tmp_path: Path) -> None:
    await save(AppliedFile(tmp_path), declare(tmp_path / "manifests", GOOD), tmp_path / "manifests")
    assert AppliedFile(tmp_path).read(tmp_path / "others") is None
    assert (tmp_path / "applied.json").exists()


async def test_without_a_folder_or_a_file_nothing_is_known(tmp_path: Path) -> None:
    await save(AppliedFile(None), declare(tmp_path / "manifests", GOOD), tmp_path)
    assert AppliedFile(None).read(tmp_path) is None
    assert AppliedFile(tmp_path).read(tmp_path) is None


async def test_what_has_not_changed_is_not_written_again(tmp_path: Path) -> None:
    file, loaded = AppliedFile(tmp_path), declare(tmp_path / "manifests", GOOD)
    await save(file, loaded, tmp_path)
    (tmp_path / "applied.json").unlink()
    await save(file, loaded, tmp_path)
    assert not (tmp_path / "applied.json").exists()
    await save(file, declare(tmp_path / "manifests", {"new.toml": model("new")}), tmp_path)
    assert (tmp_path / "applied.json").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[" * 100_000,
        b'{"version": 1}',
        b'{"version": 2, "root": "", "revision": "", "files": {}}',
        b'{"version": 1, "root": "ROOT", "revision": "", "files": {"a.toml": "= 1"}}',
        b'{"version": 1, "root": "ROOT", "revision": "", "files": {"a.toml": "models = 1"}}',
        b'{"version": 1, "root": "ROOT", "revision": "", "files": {"a.toml": "[servers.a]"}}',
    ],
    ids=["empty", "no text", "deep", "half", "later version", "no toml", "no tables", "unknown section"],
)
def test_a_file_that_makes_no_sense_is_put_aside(tmp_path: Path, content: bytes) -> None:
    content = content.replace(b"ROOT", str(tmp_path).encode())
    (tmp_path / "applied.json").write_bytes(content)
    assert AppliedFile(tmp_path).read(tmp_path) is None
    assert (tmp_path / "applied.json.unreadable").read_bytes() == content


def test_a_file_that_is_too_large_is_put_aside_and_one_that_cannot_be_read_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "applied.json").mkdir()
    assert AppliedFile(tmp_path).read(tmp_path) is None
    assert (tmp_path / "applied.json").is_dir()
    (tmp_path / "applied.json").rmdir()
    monkeypatch.setattr(applied, "MOST_BYTES", 10)
    (tmp_path / "applied.json").write_bytes(b" " * 11)
    assert AppliedFile(tmp_path).read(tmp_path) is None
    assert (tmp_path / "applied.json.unreadable").exists()


async def test_failed_saves_are_counted_and_told_once_until_one_works(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, loaded = AppliedFile(tmp_path), declare(tmp_path / "manifests", GOOD)
    (tmp_path / "applied.json.new").mkdir()
    await save(file, loaded, tmp_path)
    await save(file, loaded, tmp_path)
    assert (file.failed, len(caplog.records)) == (2, 1)
    (tmp_path / "applied.json.new").rmdir()
    await save(file, loaded, tmp_path)
    assert json.loads((tmp_path / "applied.json").read_bytes())["revision"] == loaded.declaration.revision
    monkeypatch.setattr(applied, "MOST_BYTES", 10)
    await save(file, loaded, tmp_path)
    assert (file.failed, len(caplog.records)) == (3, 2)


async def test_a_value_that_no_toml_can_hold_is_a_failed_save(tmp_path: Path) -> None:
    file, loaded = AppliedFile(tmp_path), declare(tmp_path / "manifests", {})
    declaration = msgspec.structs.replace(loaded.declaration, plugins={"x": None})
    await file.save(tmp_path, declaration, tables({"huge": 16**5000}))
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    await file.save(tmp_path, declaration, tables({"deep": deep}))
    assert file.failed == 2


# --- before_start -------------------------------------------------------------------------------------------------


def remembered(root: Path, files: dict[str, str]) -> Applied:
    loaded = declare(root, files)
    assert loaded.problems == ()
    for name in files:
        (root / name).unlink()
    return Applied(loaded.declaration.revision, loaded.tables)


def test_the_settings_of_today_count(tmp_path: Path) -> None:
    found = remembered(tmp_path, GOOD)
    write(tmp_path, {"other.toml": '[sidecar]\nheadroom_mb = 9\nlisten = "127.0.0.1:9"\nchain = ["new"]\n'})
    before = before_start(found, tmp_path, own(tmp_path), {})
    assert before.declaration.settings == Settings(headroom_mb=9, listen="127.0.0.1:9", chain=("new",))
    assert before.declaration.files["sidecar"] == "other.toml"
    assert list(before.declaration.models) == ["a.b/c", "d"]
    assert before.declaration.revision == found.revision


def test_settings_that_are_gone_stay_as_they_were(tmp_path: Path) -> None:
    before = before_start(remembered(tmp_path, GOOD), tmp_path, own(tmp_path), {})
    assert before.usable
    assert before.declaration.settings == Settings(headroom_mb=7, chain=("keys",))


def test_nothing_is_kept_that_the_settings_of_today_forbid(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    found = remembered(tmp_path, GOOD | {"open.toml": model("open", "chain = []")})
    write(tmp_path, {"sidecar.toml": '[sidecar]\nlisten = "0.0.0.0:80"\nchain = ["keys"]\n'})
    before = before_start(found, tmp_path, own(tmp_path), {})
    assert list(before.declaration.models) == ["a.b/c", "d"]
    assert "models.open.chain: no auth plugin" in caplog.text
