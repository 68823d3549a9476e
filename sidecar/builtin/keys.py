"""API keys from the manifest, stored as hashes."""

from __future__ import annotations

import hashlib
import hmac
import re

from plugin_sdk import Auth, Config, Principal, Reject, Request, inline

_HASH = re.compile(r"sha256:([0-9a-f]{64})")


class Settings(Config):
    """keys: `"sha256:HEX" = "principal"`, the hash being `printf %s KEY | sha256sum`."""

    keys: dict[str, str]

    def __post_init__(self) -> None:
        for text, principal in self.keys.items():
            if not _HASH.fullmatch(text):
                # Whoever wrote a key in the clear must not find it in a log, too.
                raise ValueError(f'the key of "{principal}" must be written "sha256:" and 64 hexadecimal digits')
        if not self.keys:
            raise ValueError("no keys: nobody could get in")


class StaticKeys(Auth[Settings]):
    """Admit the bearers of the keys whose hashes stand in the manifest.

    Keys are random and long, so a plain hash is enough (there is nothing to guess); it is compared with every entry in
    constant time, so that the answer's timing tells nothing about the hashes that there are.
    """

    async def open(self) -> None:
        self._known = [(bytes.fromhex(text[7:]), Principal(who)) for text, who in self.config.keys.items()]

    @inline
    def authenticate(self, request: Request) -> Principal:
        """The principal of the request's bearer token. Raises Reject(401)."""
        token = request.bearer_token
        if not token:
            raise Reject(401, "no API key was given: send it as `Authorization: Bearer KEY`", code="missing_api_key")
        digest = hashlib.sha256(token.encode("latin-1", "replace")).digest()
        found: Principal | None = None
        for known, principal in self._known:
            if hmac.compare_digest(known, digest):
                found = principal
        if found is None:
            raise Reject(401, "the API key is not known", code="invalid_api_key")
        return found
