"""Changes `memory_mb` in manifests that people wrote, and nothing else: comments, order, quotes and line ends stay.

An edit is made on the text as it was read, checked by reading the result again, and written only if the file still is
what was read. What cannot be done so is refused with the reason, and left to a person.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import Integer, SingleKey, Trivia

from sidecar.mechanism import checkouts, durable, loader
from sidecar.mechanism.source import Snapshot


class EditError(Exception):
    """It cannot be done, and nothing was changed."""


class Edit(msgspec.Struct, frozen=True):
    """One variant's new numbers. variant: its position. memory_mb: device requirement to MB; the others stay."""

    model: str
    variant: int
    memory_mb: dict[str, int]


def prepare(
    snapshot: Snapshot, loaded: loader.Loaded, environment: Mapping[str, str], edits: Iterable[Edit]
) -> dict[str, bytes]:
    """The changed files' new content, by path relative to the root. loaded: the snapshot, checked.

    Raises EditError if one cannot be edited, or if the manifests would have other problems than before.
    """
    edits = tuple(edits)
    contents = dict(snapshot.files)
    by_file: dict[str, list[Edit]] = {}
    for edit in edits:
        by_file.setdefault(loaded.declaration.files[f"models.{edit.model}"], []).append(edit)
    changed = {}
    for file, wanted in by_file.items():
        try:
            changed[file] = edited(contents[file], wanted)
        except EditError as error:
            raise EditError(f"{snapshot.root / file}: {error}") from None
    files = tuple((name, changed.get(name, content)) for name, content in snapshot.files)
    after = loader.load(msgspec.structs.replace(snapshot, files=files), environment)
    if new := [str(problem) for problem in after.problems if problem not in loaded.problems]:
        raise EditError("; ".join(new))
    return changed


def edited(content: bytes, edits: Iterable[Edit]) -> bytes:
    """A manifest with other numbers. Raises EditError if that cannot be had without changing something else."""
    text = content.decode()
    expected = tomllib.loads(text)
    try:
        document: Any = tomlkit.parse(text)
        if tomlkit.dumps(document) != text:
            raise EditError("its layout cannot be kept; edit it by hand")
        for edit in edits:
            where = ("models", edit.model, "variants", edit.variant)
            _set_memory(_at(document, where), edit.memory_mb)
            _expect_memory(_at(expected, where), edit.memory_mb)
        after = tomlkit.dumps(document)
        same = tomllib.loads(after) == expected
    except (TOMLKitError, tomllib.TOMLDecodeError, KeyError, IndexError, TypeError) as error:
        raise EditError(f"it cannot be edited ({error!r}); do it by hand") from error
    if not same:
        raise EditError("more than the numbers would change; edit it by hand")
    return after.encode()


def write(path: Path, before: bytes, after: bytes) -> None:
    """Put an edited manifest in the place of the one that was read. Raises EditError with the reason why it stays."""
    path = path.resolve()  # a link stays one: the file that it stands for is changed
    try:
        if why := _managed(path):
            raise EditError(f"{path} {why}")
        if not path.stat().st_mode & 0o222:
            raise EditError(f"{path} is read-only")
        durable.rewrite(path, before, after)
    except durable.ChangedError as error:
        raise EditError(str(error)) from None
    except OSError as error:
        raise EditError(f"{path} cannot be written: {error.strerror or error}") from error


def _at(document: Any, where: Iterable[str | int]) -> Any:
    for part in where:
        document = document[part]
    return document


def _set_memory(variant: Any, memory_mb: Mapping[str, int]) -> None:
    declared = variant["memory_mb"]
    if not isinstance(declared, int):
        for name, amount in memory_mb.items():
            declared[name] = _number(amount, declared[name])
        return
    whole = _whole(variant, memory_mb)
    if isinstance(whole, int):
        variant["memory_mb"] = _number(whole, declared)
    else:
        entries = (f"{SingleKey(name).as_string()} = {amount}" for name, amount in whole.items())
        variant["memory_mb"] = tomlkit.value(f"{{ {', '.join(entries)} }}")


def _expect_memory(variant: dict[str, Any], memory_mb: Mapping[str, int]) -> None:
    """The same on plain data, as a check on the library that edits the text."""
    declared = variant["memory_mb"]
    variant["memory_mb"] = {**declared, **memory_mb} if isinstance(declared, dict) else _whole(variant, memory_mb)


def _whole(variant: Mapping[str, Any], memory_mb: Mapping[str, int]) -> int | dict[str, int]:
    """What one integer becomes: an integer as long as one serves all, or else a table."""
    needs = {str(name): memory_mb.get(name, int(variant["memory_mb"])) for name in variant["required_devices"]}
    amounts = set(needs.values())
    return amounts.pop() if len(amounts) == 1 else needs


def _number(amount: int, before: Any) -> Integer:
    grouped = "_" in before.as_string()
    return Integer(amount, Trivia(), f"{amount:_}" if grouped else str(amount))


def _managed(path: Path) -> str:
    """Why an edit would be undone by what puts the file there; "" if nothing is known of the kind.

    Kubernetes mounts a ConfigMap as a folder `..2026_01_31_...`, which it replaces as a whole. git-sync and the like
    check out commits, and so does the sidecar itself; people work on branches.
    """
    if commit := checkouts.commit_of(path):
        return (
            f"is in the sidecar's own checkout of commit {commit[:12]}, which it would make anew; "
            "change it in a clone of the repository (give that directory), and push"
        )
    if any(part.startswith("..") for part in path.parts):
        return "is a mounted ConfigMap or Secret; change that instead"
    for folder in path.parents:
        git = folder / ".git"
        if git.exists():
            commit = _detached(git)
            return (
                f"is a checkout of commit {commit[:12]}, not of a branch; change it in the repository" if commit else ""
            )
    return ""


def _detached(git: Path) -> str:
    """The commit that HEAD names; "" if it names a branch (gitrepository-layout(5))."""
    if git.is_file():  # a linked worktree's: `gitdir: PATH`
        git = git.parent / git.read_text(encoding="utf-8").partition(":")[2].strip()
    try:
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""  # a folder of that name, but no repository
    return "" if head.startswith("ref:") else head
