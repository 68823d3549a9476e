"""Reads `[source]`, from a bootstrap file or from options: it tells where manifests are, so it is not among them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from sidecar.core import sourcing
from sidecar.core.manifest import Problem
from sidecar.core.names import did_you_mean
from sidecar.core.sourcing import GitDeclaration
from sidecar.mechanism import checker, toml
from sidecar.mechanism.places import Path as Place
from sidecar.mechanism.places import Places, shown
from sidecar.mechanism.toml import TomlError

MOST_BYTES = 2**20
_FILES = ("allowed_signers", "ssh_key", "known_hosts", "ca_file")
_PLACES = (*_FILES, "gpg_home", "state_dir")


class BootstrapError(Exception):
    """problems: everything that is wrong."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


def read(path: Path, instead: dict[str, Any]) -> GitDeclaration:
    """`[source]` of a bootstrap file. instead: keys that the command line gives. Raises BootstrapError."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES)
        raw = toml.parsed(content)
    except OSError as error:
        raise BootstrapError((Problem(file=str(path), message=f"cannot be read: {error.strerror}"),)) from None
    except TomlError as error:
        raise BootstrapError((Problem(file=str(path), line=error.line, message=str(error)),)) from None
    places, name = Places(content), str(path)
    problems: list[Problem] = []

    def report(path: Place, message: str, meant: Place | None = None) -> None:
        del meant
        problems.append(Problem(file=name, line=places.line(path), path=shown(path), message=message))

    for key in raw.keys() - {"source"}:
        report((key,), f'unknown key "{key}"{did_you_mean(key, ("source",))}; all else stands in manifests')
    if "source" not in raw:
        report((), "there is no [source] here: is it a manifest? Then name the folder that it is in")
        raise BootstrapError(tuple(problems))
    table = raw["source"] | instead if isinstance(raw["source"], dict) else raw["source"]
    return _read(table, path.absolute().parent, problems, report)


def from_options(given: dict[str, Any], options: dict[str, str]) -> GitDeclaration:
    """The same from the command line alone. options: by key, how the user knows it. Raises BootstrapError."""
    problems: list[Problem] = []

    def report(path: Place, message: str, meant: Place | None = None) -> None:
        del meant
        key = str(path[-1]) if len(path) > 1 else "git"
        problems.append(Problem(file=options.get(key, key), message=message))

    return _read(given, Path.cwd(), problems, report)


def _read(raw: Any, base: Path, problems: list[Problem], report: checker.Report) -> GitDeclaration:
    for key in ("token", "webhook_secret") if isinstance(raw, dict) else ():
        if key in raw and not isinstance(raw[key], dict):
            report(("source", key), 'expected { env = "NAME" } or { file = "PATH" }: a secret never stands here')
            raw = {name: value for name, value in raw.items() if name != key}
    declared = checker.read(raw, GitDeclaration, ("source",), report)
    if declared is None or problems:
        raise BootstrapError(tuple(problems))
    for key, message in sourcing.faults(declared):
        report(("source", key), message)
    try:
        declared = _completed(declared, base)
    except RuntimeError as error:  # "~nobody" has no home
        report(("source",), str(error))
    for key, message in () if problems else _missing(declared):
        report(("source", key), message)
    if problems:
        raise BootstrapError(tuple(problems))
    return declared


def _completed(declared: GitDeclaration, base: Path) -> GitDeclaration:
    """With all paths of this machine made absolute, beginning where the file is that names them."""
    paths = {key: str(base / Path(value).expanduser()) for key in _PLACES if (value := getattr(declared, key))}
    secrets = {
        key: msgspec.structs.replace(place, file=str(base / Path(place.file).expanduser()))
        for key, place in declared.secrets
        if place.file
    }
    git = declared.git
    if "://" not in git and git.startswith(("/", "~", ".")):
        paths["git"] = str(base / Path(git).expanduser())
    path = declared.path.strip("/").removeprefix("./")
    return msgspec.structs.replace(declared, path=path, **paths, **secrets)


def _missing(declared: GitDeclaration) -> Iterator[tuple[str, str]]:
    """What is named and not there; now is the time to say so, not when the first commit comes."""
    for key in _FILES:
        if path := getattr(declared, key):
            try:
                with Path(path).open("rb"):
                    pass
            except OSError as error:
                yield key, f"{path} cannot be read: {error.strerror}"
    if declared.gpg_home and not Path(declared.gpg_home).is_dir():
        yield "gpg_home", f"{declared.gpg_home} is no folder"
    for key, place in declared.secrets:
        try:
            place.read()
        except ValueError as error:
            yield key, str(error)
