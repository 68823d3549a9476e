"""Scripts that do no more than run one command: the command, its variables, and where it runs.

Whatever could mean something else (conditions, pipes, expansions, a second command) makes the whole script opaque.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from sidecar.mechanism.importing.commands import Command, CommandError, split

_MOST_BYTES = 64 * 1024
_COMMENT = re.compile(r"(?i)^(#|::|rem(\s|$)|@?echo\b|setlocal\b|endlocal\b|title\b|chcp\b|set\s+-[a-z]+|set -o\s)")
_SET = re.compile(r"(?i)^(?:export\s+|set\s+\"?|declare -x\s+)([A-Za-z_][A-Za-z0-9_]*)=(.*?)\"?$")
_FOLDER = re.compile(r"(?i)^cd\s+(?:/d\s+)?(.+)$")
_SHELL = re.compile(r"[|&;<>`$%()]|\bif\b|\bfor\b|\bwhile\b|\bgoto\b|\bcall\b")


class Script(msgspec.Struct, frozen=True):
    """What it comes down to."""

    command: Command
    env: dict[str, str]
    cwd: str


def read(path: Path) -> Script | None:
    """The script's one command; None if it is not here, or does more than that."""
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1).decode("utf-8")
    except (OSError, UnicodeDecodeError, ValueError):  # ValueError: a NUL in the path
        return None
    return understand(text) if len(text) <= _MOST_BYTES else None


def understand(text: str) -> Script | None:
    """The same of a script's text."""
    joined = re.sub(r"[ \t]*[\\^]\r?\n", " ", text)
    lines = [line.strip() for line in joined.splitlines()]
    lines = [line.removeprefix("exec ").removeprefix("@") for line in lines if line and not _COMMENT.match(line)]
    env: dict[str, str] = {}
    cwd = ""
    found: list[str] = []
    for line in lines:
        if match := _SET.match(line):
            env[match[1]] = match[2].strip("\"'")
        elif match := _FOLDER.match(line):
            cwd = match[1].strip("\"'")
        else:
            found.append(line)
    told = [*found, *env.values(), cwd]
    if len(found) != 1 or any(_SHELL.search(part) for part in told):
        return None
    try:
        return Script(split(found[0]), env, cwd)
    except CommandError:
        return None
