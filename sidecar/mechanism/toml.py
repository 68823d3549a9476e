"""Reads a TOML file, or tells what keeps it from being one, and in which line."""

from __future__ import annotations

import codecs
import re
import tomllib
from typing import Any

_LINE = re.compile(r"\(at line (\d+), column \d+\)|\(at end of document\)")


class TomlError(ValueError):
    """It is none; the text, such as "is not TOML: ...", comes behind its name. line: where, 0 = nowhere special."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line


def parsed(content: bytes) -> dict[str, Any]:
    """What the file says. Raises TomlError."""
    if content.startswith(codecs.BOM_UTF8):  # which cannot be seen, so that the first line looks right
        raise TomlError("is not TOML: it begins with a byte order mark; save it as UTF-8 without one", 1)
    try:
        return tomllib.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise TomlError(f"is not UTF-8 text: {error.reason}", line) from None
    except tomllib.TOMLDecodeError as error:
        match = _LINE.search(str(error))
        line = int(match.group(1)) if match and match.group(1) else content.count(b"\n") + 1
        raise TomlError(f"is not TOML: {_LINE.sub('', str(error)).strip()}", line) from None
    except ValueError as error:  # such as a number of thousands of digits
        raise TomlError(f"is not a manifest: {error}") from None
    except RecursionError:
        raise TomlError("is nested too deep") from None
