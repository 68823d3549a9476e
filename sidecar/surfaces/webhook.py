"""Whether a webhook is from the forge: by a signature of its body (HMAC-SHA256), or by GitLab's token.

A caller who knows the secret may have the repository asked, and that is all; so it does not matter where he is.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping

from sidecar.surfaces.dataplane.errors import ApiError

MOST_BYTES = 8 * 2**20
SMALL_BYTES = 256 * 2**10  # what may come as often as it likes, since to refuse it costs no more than any other request
BURST = 30
PER_S = 1.0

# With or without "sha256=". Bitbucket's has the name that GitHub's had when it was SHA-1.
_SIGNATURES = (
    "x-hub-signature-256",
    "x-forgejo-signature",
    "x-gitea-signature",
    "x-gogs-signature",
    "x-hub-signature",
)
_TOKEN = "x-gitlab-token"  # noqa: S105 - the name of a header
_EVENTS = ("x-github-event", "x-gitea-event", "x-forgejo-event")


def is_webhook(headers: Mapping[str, str]) -> bool:
    """Whether it claims to be one. Header names in lower case."""
    return _TOKEN in headers or any(name in headers for name in _SIGNATURES)


def is_ping(headers: Mapping[str, str]) -> bool:
    """Whether the forge only wants to know if somebody is there."""
    return any(headers.get(name) == "ping" for name in _EVENTS)


def is_small(headers: Mapping[str, str]) -> bool:
    """Whether it says how long it is, and that is not much."""
    length = headers.get("content-length", "")
    known = length.isdecimal() and "transfer-encoding" not in headers
    return known and len(length) < 10 and int(length) <= SMALL_BYTES


def check(headers: Mapping[str, str], body: bytes, secret: str) -> None:
    """Raise ApiError(401) unless it is signed with the secret, or tells it. Takes as long for each that is not."""
    if (token := headers.get(_TOKEN)) is not None:
        known = hmac.compare_digest(token.encode("latin-1", "replace"), secret.encode())  # as it has come, in bytes
    else:
        expected = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
        given = next(headers[name] for name in _SIGNATURES if name in headers)
        known = hmac.compare_digest(given.removeprefix("sha256=").lower().encode(), expected.encode())
    if not known:
        raise ApiError(401, "invalid_signature", "the webhook is not signed with [source] webhook_secret")


class Bucket:
    """So many large ones at once, and so many in a second from then on: to take and check them costs something.

    Small ones are not counted: somebody who sends nothing but rubbish could keep the forge's from being heard.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._left = float(BURST)
        self._at = clock()

    def take(self) -> None:
        """Raise ApiError(429) if there is nothing left."""
        now = self._clock()
        self._left = min(BURST, self._left + (now - self._at) * PER_S)
        self._at = now
        if self._left < 1:
            raise ApiError(429, "too_many_webhooks", "too many webhooks at once", retry_after_s=1 / PER_S)
        self._left -= 1
