"""Numbers change in manifests that people wrote, and not a byte else."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.manifest import Variant
from sidecar.mechanism.edits import Edit, EditError, edited, prepare, write
from sidecar.mechanism.loader import load
from sidecar.mechanism.source import read
from tests.support import model
from tests.support import write as write_files

# Each layout declares a.variants[1] on cpu and nvidia:0 with the MB that stand for <one> and <two>, or on cpu alone.
LAYOUTS = {
    "arrays of tables": """\
# Who changes this tells the others.

[models.a]   # the big one
mode = 'chat'

[[models.a.variants]]
command = ["serve", "{port}"]   # not this
required_devices = ["cpu"]
memory_mb = 700

[[models.a.variants]]
required_devices = [
    "cpu",      # slow
    "nvidia:0",
]
memory_mb   =   { cpu = <one>,"nvidia:0"=<two> }   # measured in May
command = ["serve", "{port}"]
""",
    "one number": """\
[models.a]
mode = "chat"
[[models.a.variants]]
memory_mb = 1
[[models.a.variants]]
memory_mb = <one> # MB
required_devices = ["cpu"]
# the end
""",
    "no line end at the end": "[[models.a.variants]]\n[[models.a.variants]]\n"
    "required_devices = ['cpu']\n\tmemory_mb\t=\t<one>",
    "a table of its own": """\
[[models.a.variants]]
[[models.a.variants]]
required_devices = ["cpu", "nvidia:0"]
  [models.a.variants.memory_mb] # by device
  "nvidia:0" = <two> # the first GPU
  cpu = <one>
  [models.a.variants.env]
  cpu = "1"
[models.b]
mode = "chat"
""",
    "dotted keys": """\
[models.a]
[[models.a.variants]]
[[models.a.variants]]
memory_mb."nvidia:0" = <two>
name = "x"
memory_mb . cpu = <one>
required_devices = ["cpu", "nvidia:0"]
""",
    "inline tables": """\
[models.a]
mode = "chat"
variants = [{ memory_mb=3, command=["serve"] },  # first
    # second
    {memory_mb = {cpu = <one>, 'nvidia:0' = <two>}, required_devices = ["cpu", "nvidia:0",]}, ]
aliases = []
""",
    "inline tables with dotted keys": """\
models.a.mode = "chat"
models.a.variants = [{ url = "x" }, { required_devices = ["cpu", "nvidia:0"], memory_mb."nvidia:0" = <two>, \
memory_mb.cpu = <one> }]
""",
    "all in one": """\
models = { b = { memory_mb = 1 }, "a" = { variants = [ {}, { required_devices = ["cpu"], memory_mb = <one> } ] } }
[sidecar]
headroom_mb = 256
""",
    "a table of models": """\
[models]
"b" = { mode = "chat" }
a.mode = "chat"
a.variants = [{}, { memory_mb = <one>, required_devices = ["cpu"] }]
""",
    "scattered": """\
[models.a]
mode = "chat"

[[models.a.variants]]
memory_mb = 1

[models.b]
mode = "chat"

[[models.b.variants]]
memory_mb = 2

[sidecar]
headroom_mb = 0

[[models.a.variants]]   # further down
memory_mb = <one>
required_devices = ["cpu"]

[[models.b.variants]]
memory_mb = 4
""",
    "text that is not ASCII": """\
# Größe über alles — 大
[models.a]
description = \"\"\"
memory_mb = 1
\"\"\"
[[models.a.variants]]
[[models.a.variants]]
env = { "ключ" = "\\u00e9" }
required_devices = ["cpu"]
memory_mb = <one>
""",
}
NUMBERS = st.integers(1, 10**6)


def filled(layout: str, one: object, two: object) -> bytes:
    """The layout with numbers in it."""
    return layout.replace("<one>", str(one)).replace("<two>", str(two)).encode()


def wanted(layout: str, one: int, two: int) -> list[Edit]:
    """The edit that puts these numbers there."""
    return [Edit("a", 1, {"cpu": one, "nvidia:0": two} if "<two>" in layout else {"cpu": one})]


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@given(before=st.tuples(NUMBERS, NUMBERS), after=st.tuples(NUMBERS, NUMBERS))
def test_nothing_but_the_number_changes(
    layout: str, ends: str, before: tuple[int, int], after: tuple[int, int]
) -> None:
    text = layout.replace("\n", ends)
    assert edited(filled(text, *before), wanted(layout, *after)) == filled(text, *after)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_the_same_number_changes_nothing(layout: str) -> None:
    assert edited(filled(layout, 5, 6), wanted(layout, 5, 6)) == filled(layout, 5, 6)


def test_digits_stay_grouped() -> None:
    layout = LAYOUTS["arrays of tables"]
    assert edited(filled(layout, "9_000", "0x10"), wanted(layout, 12345, 17)) == filled(layout, "12_345", "17")


def test_entries_that_are_not_to_change_stay() -> None:
    layout = LAYOUTS["dotted keys"]
    assert edited(filled(layout, 5, 6), [Edit("a", 1, {"cpu": 7})]) == filled(layout, 7, 6)


def test_several_edits_of_a_file_are_one() -> None:
    text = LAYOUTS["scattered"].replace("memory_mb = 4", 'memory_mb = <two>\nrequired_devices = ["cpu"]')
    edits = [Edit("a", 1, {"cpu": 70}), Edit("b", 1, {"cpu": 80})]
    assert edited(filled(text, 1, 2), edits) == filled(text, 70, 80)


@pytest.mark.parametrize(
    ("memory_mb", "becomes"),
    [
        ({"cpu": 9, "nvidia:0": 9}, "9"),
        ({"cpu": 9}, '{ cpu = 9, "nvidia:0" = 5 }'),
        ({"cpu": 9, "nvidia:0": 8}, '{ cpu = 9, "nvidia:0" = 8 }'),
    ],
)
@pytest.mark.parametrize(
    "layout",
    [
        '[[models.a.variants]]\nmemory_mb =  # # why\nrequired_devices = ["cpu", "nvidia:0", "cpu"]\n',
        'models.a.variants = [{memory_mb=#, required_devices = ["cpu", "nvidia:0"]}]\n',
    ],
)
def test_one_number_for_several_devices_becomes_a_table_only_if_they_differ(
    layout: str, memory_mb: Mapping[str, int], becomes: str
) -> None:
    before, after = (layout.replace("#", number, 1).encode() for number in ("5", becomes))
    assert edited(before, [Edit("a", 0, dict(memory_mb))]) == after


@pytest.mark.parametrize("edit", [Edit("b", 0, {"cpu": 1}), Edit("a", 9, {"cpu": 1}), Edit("a", 0, {"tpu": 1})])
def test_what_is_not_there_is_not_edited(edit: Edit) -> None:
    text = b'[[models.a.variants]]\nmemory_mb = { cpu = 1 }\nrequired_devices = ["cpu"]\n'
    with pytest.raises(EditError, match="by hand"):
        edited(text, [edit])


# --- checked as a whole -------------------------------------------------------------------------------------------


def manifests(root: Path) -> Path:
    """Two good models in two files, and a bad one."""
    return write_files(root, {"a.toml": model("a"), "sub/b.toml": model("b"), "c.toml": model("c", "priority = ''")})


def test_edits_of_several_files_are_prepared_together(tmp_path: Path) -> None:
    snapshot = read(manifests(tmp_path))
    loaded = load(snapshot, {})
    changed = prepare(snapshot, loaded, {}, [Edit("a", 0, {"cpu": 150}), Edit("b", 0, {"cpu": 250})])
    assert changed == {
        "a.toml": model("a").replace("= 100", "= 150").encode(),
        "sub/b.toml": model("b").replace("= 100", "= 250").encode(),
    }
    for name, content in changed.items():
        write(tmp_path / name, dict(snapshot.files)[name], content)
    after = load(read(tmp_path), {})
    assert after.problems == loaded.problems
    assert [variants_of(after.declaration.models[name].variants) for name in "ab"] == [[150], [250]]


def variants_of(variants: tuple[Variant, ...]) -> list[int | dict[str, int]]:
    """What each declares."""
    return [variant.memory_mb for variant in variants]


def test_an_edit_that_would_not_validate_is_refused(tmp_path: Path) -> None:
    snapshot = read(manifests(tmp_path))
    with pytest.raises(EditError, match=r"a\.toml:7: models\.a\.variants\[0\]\.memory_mb: expected the memory"):
        prepare(snapshot, load(snapshot, {}), {}, [Edit("a", 0, {"cpu": 0})])


def test_the_file_is_named_when_it_cannot_be_edited(tmp_path: Path) -> None:
    snapshot = read(manifests(tmp_path))
    with pytest.raises(EditError, match=rf"^{tmp_path}/a\.toml: it cannot be edited"):
        prepare(snapshot, load(snapshot, {}), {}, [Edit("a", 5, {"cpu": 1})])


# --- written ------------------------------------------------------------------------------------------------------


def test_a_file_that_somebody_else_has_changed_stays(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_bytes(b"theirs")
    with pytest.raises(EditError, match="has changed since it was read"):
        write(file, b"before", b"after")
    assert file.read_bytes() == b"theirs"


def test_a_file_that_is_gone_stays_gone(tmp_path: Path) -> None:
    with pytest.raises(EditError, match="cannot be written: No such file"):
        write(tmp_path / "a.toml", b"before", b"after")
    assert not (tmp_path / "a.toml").exists()


def test_a_read_only_file_stays(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_bytes(b"before")
    file.chmod(0o444)
    with pytest.raises(EditError, match=r"a\.toml is read-only"):
        write(file, b"before", b"after")
    assert file.read_bytes() == b"before"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_file_in_a_folder_that_cannot_be_written_stays(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_bytes(b"before")
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(EditError, match="cannot be written: Permission denied"):
            write(file, b"before", b"after")
    finally:
        tmp_path.chmod(0o755)
    assert file.read_bytes() == b"before"


def test_a_link_stays_one_and_what_it_stands_for_is_changed(tmp_path: Path) -> None:
    real = tmp_path / "real.toml"
    real.write_bytes(b"before")
    link = tmp_path / "a.toml"
    link.symlink_to(real)
    write(link, b"before", b"after")
    assert link.is_symlink()
    assert real.read_bytes() == b"after"


def test_a_mounted_config_map_is_not_edited(tmp_path: Path) -> None:
    """As kubelet lays it out: a.toml -> ..data/a.toml, ..data -> ..2026_01_31_10_00_00.123."""
    mounted = tmp_path / "..2026_01_31_10_00_00.123"
    mounted.mkdir()
    (mounted / "a.toml").write_bytes(b"before")
    (tmp_path / "..data").symlink_to(mounted.name)
    (tmp_path / "a.toml").symlink_to("..data/a.toml")
    with pytest.raises(EditError, match="is a mounted ConfigMap or Secret"):
        write(tmp_path / "a.toml", b"before", b"after")
    assert (tmp_path / "a.toml").read_bytes() == b"before"


def git(folder: Path, *arguments: str) -> str:
    """Run git as somebody, without this machine's settings."""
    env = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    result = subprocess.run(["git", *who, *arguments], cwd=folder, env=env, capture_output=True, text=True, check=True)
    return result.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one manifest."""
    folder = write_files(tmp_path / "repository", {"a.toml": "before"})
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "first")
    return folder


def test_a_file_on_a_branch_is_edited(repository: Path) -> None:
    write(repository / "a.toml", b"before", b"after")
    assert git(repository, "status", "--short") == "M a.toml"


@pytest.mark.parametrize("linked", [True, False])
def test_a_checkout_without_a_branch_is_not_edited(repository: Path, linked: bool) -> None:
    """As git-sync makes them, which would lose the edit with the next commit."""
    commit = git(repository, "rev-parse", "HEAD")
    folder = repository
    if linked:
        folder = repository.parent / "checkout"
        git(repository, "worktree", "add", "--quiet", "--detach", str(folder))
    else:
        git(repository, "checkout", "--quiet", "--detach")
    with pytest.raises(EditError, match=f"is a checkout of commit {commit[:12]}, not of a branch"):
        write(folder / "a.toml", b"before", b"after")
    assert (folder / "a.toml").read_bytes() == b"before"


def test_a_folder_called_git_is_no_repository(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "a.toml").write_bytes(b"before")
    write(tmp_path / "a.toml", b"before", b"after")
    assert (tmp_path / "a.toml").read_bytes() == b"after"
