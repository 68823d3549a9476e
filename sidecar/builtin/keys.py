"""API keys, stored as hashes: in the manifest, or in a file of their own that may change at any time."""

from __future__ import annotations

import datetime
import hashlib
import hmac
import re
import secrets
import shlex
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from plugin_sdk import Auth, Config, Duration, Principal, Reject, Request, inline
from sidecar.builtin.access import check_model
from sidecar.builtin.watched import WatchedFile

_HASH = re.compile(r"sha256:([0-9a-f]{64})")
DAY_S = 86_400


class Key(Config):
    """What a key may do.

    models: patterns such as `"llama-*"`; left out = all, [] = none. expires: its last day (UTC).
    """

    principal: str
    models: tuple[str, ...] | None = None
    expires: datetime.date | None = None
    attributes: dict[str, Any] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.principal:
            raise ValueError("the principal of a key must have a name")


class Settings(Config):
    """Keys here, in a file, or both.

    keys: `"sha256:HEX" = "principal"`, or a table as Key has it; the hash is that of `printf %s KEY | sha256sum`.
    file: a line for each key: `sha256:HEX principal models=llama-*,qwen expires=2027-01-31 team=red`. What else is
    given as NAME=VALUE becomes an attribute of the principal; `#` begins a comment. It is read again when it changes,
    so replace it by renaming: half a file is a file, too. recheck: how often to look.
    """

    keys: dict[str, str | Key] = msgspec.field(default_factory=dict)
    file: str = ""
    recheck: Duration = Duration(1)

    def __post_init__(self) -> None:
        for text, key in self.keys.items():
            if not _HASH.fullmatch(text):
                # Whoever wrote a key in the clear must not find it in a log, too.
                who = key if isinstance(key, str) else key.principal
                raise ValueError(f'the key of "{who}" must be written "sha256:" and 64 hexadecimal digits')
            if isinstance(key, str):
                Key(key)  # raises ValueError
        if not self.keys and not self.file:
            raise ValueError("no keys and no file of keys: nobody could get in")
        if self.recheck <= 0:
            raise ValueError("recheck must be longer than nothing")


class Entry(msgspec.Struct, frozen=True):
    """A key as it is looked up. expires_s: unix time."""

    principal: Principal
    models: tuple[str, ...] | None = None
    expires_s: float | None = None


class StaticKeys(Auth[Settings]):
    """Admit the bearers of the keys whose hashes are known. Models that a key may use are its attribute `models`.

    Keys are random and long, so a plain hash is enough (there is nothing to guess). What is looked up is that hash
    mixed with a secret of this process: so the answer's timing tells nothing about the hashes that there are, and does
    not grow with their number. That is done once for each key: those that were let in are remembered as they came, so
    there are never more of them than keys, and forgotten when the file changes.
    """

    reads_body = False

    async def open(self) -> None:
        self._secret = secrets.token_bytes(32)
        self._inline = {
            self._blind(bytes.fromhex(text[7:])): _entry(Key(key) if isinstance(key, str) else key)
            for text, key in self.config.keys.items()
        }
        self._let_in: dict[str, Entry] = {}
        self._filed: dict[bytes, Entry] = {}  # what the file said when they were
        self._file: WatchedFile[dict[bytes, Entry]] | None = None
        if self.config.file:
            self._file = WatchedFile(self.config.file, self._parse, self.config.recheck, self.log)
            await self._file.open()

    async def close(self) -> None:
        file: WatchedFile[dict[bytes, Entry]] | None = getattr(self, "_file", None)  # `open` may never have come to it
        if file is not None:
            await file.close()

    @inline
    def authenticate(self, request: Request) -> Principal:
        """The principal of the request's bearer token. Raises Reject: 401, or 403 for a model that is not allowed."""
        token = request.bearer_token
        if not token:
            raise Reject(401, "no API key was given: send it as `Authorization: Bearer KEY`", code="missing_api_key")
        if self._file is not None and self._file.value is not self._filed:
            self._filed, self._let_in = self._file.value, {}
        entry = self._let_in.get(token) or self._found(token)
        if entry.expires_s is not None and time.time() >= entry.expires_s:
            day = datetime.datetime.fromtimestamp(entry.expires_s - DAY_S, datetime.UTC).date()
            raise Reject(401, f"the API key has expired: its last day was {day}", code="expired_api_key")
        if entry.models is not None:
            check_model(request, entry.models, entry.principal.id)
        return entry.principal

    def _found(self, token: str) -> Entry:
        """What there is of a key that was not seen before. Raises Reject."""
        blinded = self._blind(hashlib.sha256(token.encode("latin-1", "replace")).digest())
        entry = self._inline.get(blinded) or self._filed.get(blinded)
        if entry is None:
            raise Reject(401, "the API key is not known", code="invalid_api_key")
        self._let_in[token] = entry
        return entry

    def _blind(self, digest: bytes) -> bytes:
        return hmac.digest(self._secret, digest, "sha256")

    def _parse(self, content: bytes) -> dict[bytes, Entry]:
        """The keys of a file. Raises ValueError with the line, but never with what stands there."""
        found: dict[bytes, Entry] = {}
        for number, line in enumerate(content.decode("utf-8").splitlines(), 1):
            try:
                words = shlex.split(line, comments=True)
                if words:
                    digest, entry = _read_line(words)
                    if found.setdefault(self._blind(digest), entry) is not entry:
                        raise ValueError("the same key stands on an earlier line")
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
        if not found:
            raise ValueError("it has no keys: nobody could get in")
        return found


def _read_line(words: list[str]) -> tuple[bytes, Entry]:
    match = _HASH.fullmatch(words[0])
    if match is None:
        raise ValueError('expected "sha256:" and 64 hexadecimal digits first')
    if len(words) < 2 or "=" in words[1]:
        raise ValueError("expected the name of the principal after the hash")
    if any("=" not in word for word in words[2:]):
        raise ValueError("expected NAME=VALUE after the principal")
    attributes = dict(word.split("=", 1) for word in words[2:])
    models = attributes.pop("models", None)
    expires = attributes.pop("expires", None)
    if models is not None and not all(models.split(",")):
        raise ValueError("expected patterns after models=, with commas between them")
    key = Key(words[1], tuple(models.split(",")) if models else None, _date(expires), attributes)
    return bytes.fromhex(match.group(1)), _entry(key)


def _date(text: str | None) -> datetime.date | None:
    try:
        return datetime.date.fromisoformat(text) if text is not None else None
    except ValueError:
        raise ValueError("expected a date such as 2027-01-31 after expires=") from None


def _entry(key: Key) -> Entry:
    attributes: Mapping[str, Any] = {**key.attributes, **({} if key.models is None else {"models": key.models})}
    expires_s = None
    if key.expires is not None:
        midnight = datetime.datetime.combine(key.expires, datetime.time(), datetime.UTC)
        expires_s = midnight.timestamp() + DAY_S
    return Entry(Principal(key.principal, attributes), key.models, expires_s)
