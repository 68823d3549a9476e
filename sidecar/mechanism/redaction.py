"""Takes keys out of what servers print before it is shown to others: a crash may print all of the environment.

Which variables hold keys, only their names can tell; in addresses a password has its place (RFC 3986, 3.2.1). What a
server writes to its own files stays as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote, unquote

SHORTEST = 8  # what is shorter may stand anywhere
SHOWN = "[redacted]"
_SECRET = re.compile(
    r"(?:^|_)(?:API_?KEY|KEY|PAT|AUTH|PASS|PWD|ADMIN|CREDENTIALS?)(?:_|$)"
    r"|(?:PASSWORD|PASSWD|PASSPHRASE|SECRETS?|TOKEN|APIKEY)(?:_|$)"
)
_NOT_THE_VALUE = {"FILE", "PATH", "DIR", "NAME", "ID", "URL", "PUBLIC", "SOCK"}  # as in AWS_ACCESS_KEY_ID
_FOLDERS = {"PWD", "OLDPWD"}
_IN_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^\s/?#@:]*:([^\s/?#@]+)@")


class Redactor:
    """Replaces the values of an environment's secrets, and others that are known. longest: of them, in characters."""

    def __init__(self, environment: Mapping[str, str], others: Iterable[str] = ()) -> None:
        self._known = frozenset(_forms({*_secrets(environment), *others}))
        longest_first = sorted(self._known, key=lambda value: (-len(value), value))
        self._values = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self.longest = len(longest_first[0]) if longest_first else 0

    def also(self, *environments: Mapping[str, str], others: Iterable[str] = ()) -> Redactor:
        """One that knows more."""
        found = {secret for environment in environments for secret in _secrets(environment)}
        return Redactor({}, {*self._known, *found, *others})

    def __call__(self, text: str) -> str:
        """The text without them."""
        return self._values.sub(SHOWN, text) if self._values is not None else text


def is_secret(name: str) -> bool:
    """Whether a variable of this name holds a secret, as far as names tell."""
    upper = name.upper()
    is_other = upper.rpartition("_")[2] in _NOT_THE_VALUE or upper in _FOLDERS
    return not is_other and _SECRET.search(upper) is not None


def _secrets(environment: Mapping[str, str]) -> Iterator[str]:
    for name, value in environment.items():
        if is_secret(name):
            yield value
        if "://" in value:
            yield from _IN_ADDRESS.findall(value)


def _forms(secrets: Iterable[str]) -> Iterator[str]:
    """As they may be printed: each line of its own, as in an address, and as in a string of JSON or Python."""
    for secret in secrets:
        for line in map(str.strip, secret.splitlines()):
            forms = {line, unquote(line), quote(line, safe=""), json.dumps(line)[1:-1], repr(line)[1:-1]}
            yield from (form for form in forms if len(form) >= SHORTEST)


NOTHING = Redactor({})
