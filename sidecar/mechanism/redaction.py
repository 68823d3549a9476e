"""Takes keys out of what servers print before it is shown to others: a crash may print all of the environment.

Which variables hold keys, only their names can tell. What a server writes to its own files stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

SHORTEST = 8  # what is shorter may stand anywhere
SHOWN = "[redacted]"
_SECRET = {"KEY", "APIKEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL", "CREDENTIALS", "ADMIN"}
_NOT_THE_VALUE = {"FILE", "PATH", "DIR", "NAME", "ID", "URL"}  # as in AWS_ACCESS_KEY_ID


class Redactor:
    """Replaces the values of an environment's secrets, and others that are known."""

    def __init__(self, environment: Mapping[str, str], others: Iterable[str] = ()) -> None:
        values = {value for name, value in environment.items() if is_secret(name)} | set(others)
        known = sorted((value for value in values if len(value) >= SHORTEST), key=len, reverse=True)
        self._values = re.compile("|".join(map(re.escape, known))) if known else None

    def __call__(self, text: str) -> str:
        """The text without them."""
        return self._values.sub(SHOWN, text) if self._values is not None else text


def is_secret(name: str) -> bool:
    """Whether a variable of this name holds a secret, as far as names tell."""
    parts = name.upper().split("_")
    return parts[-1] not in _NOT_THE_VALUE and not _SECRET.isdisjoint(parts)


NOTHING = Redactor({})
