"""Callers who bring a JSON Web Token (RFC 7519), signed by a key of a JWK set (RFC 7517): a file's or an address's.

Needs PyJWT: `pip install "llm-sidecar[jwt]"`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from typing import TYPE_CHECKING, Any

import msgspec

from plugin_sdk import Auth, Config, Duration, Principal, Reject, Request
from sidecar.builtin.access import check_model
from sidecar.builtin.watched import WatchedFile

try:
    import cryptography  # noqa: F401 - PyJWT finds it by itself, but can check few signatures without it
    import jwt
except ModuleNotFoundError as error:
    raise ImportError(f'{error}: tokens need the extra "jwt", pip install "llm-sidecar[jwt]"') from error

if TYPE_CHECKING:
    import httpx

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
SHARED_SECRET = ("HS256", "HS384", "HS512")
CURVES = {"ES256": ("P-256",), "ES384": ("P-384",), "ES512": ("P-521",)}  # RFC 7518, 3.4
MOST_BYTES = 1 << 20  # of a set of keys
MOST_TRIED = 8  # keys, for a token that names none


class JwkSet(msgspec.Struct):
    """RFC 7517, 5: further members are ignored."""

    keys: list[dict[str, Any]]


_decode_set = msgspec.json.Decoder(JwkSet).decode


class Settings(Config):
    """Whose tokens are let in.

    jwks_file or jwks_url: where the public keys are. issuer, audience: what `iss` and `aud` must be; "" and [] say that
    it does not matter. algorithms: those that are accepted. leeway: for clocks that differ. principal: the claim that
    names the caller. models: the claim with the models that he may use, a list or words in one text, as patterns; ""
    = all. attributes: claims that become attributes of the principal. refresh: how old keys from an address get before
    they are asked for anew. longest: how old they may get if that fails; then nobody is let in. min_interval: how soon
    they may be asked for again, as for a key that is not among them.
    """

    issuer: str
    audience: str | tuple[str, ...]
    jwks_file: str = ""
    jwks_url: str = ""
    algorithms: tuple[str, ...] = ("RS256", "ES256")
    leeway: Duration = Duration(30)
    principal: str = "sub"
    models: str = ""
    attributes: tuple[str, ...] = ()
    refresh: Duration = Duration(3600)
    longest: Duration = Duration(86_400)
    min_interval: Duration = Duration(30)
    timeout: Duration = Duration(5)
    recheck: Duration = Duration(1)

    def __post_init__(self) -> None:
        if bool(self.jwks_file) == bool(self.jwks_url):
            raise ValueError("expected either jwks_file or jwks_url")
        if self.jwks_url and not self.jwks_url.startswith(("https://", "http://")):
            raise ValueError("jwks_url must begin with https:// or http://")
        if self.longest < self.refresh:
            raise ValueError("longest must be as long as refresh, or longer")
        if not self.algorithms:
            raise ValueError("algorithms must name at least one")
        for name in self.algorithms:
            if name not in (*ALGORITHMS, *SHARED_SECRET):  # "none", above all
                raise ValueError(f'"{name}" is no signature that is accepted; there are {", ".join(ALGORITHMS)}')
        if set(self.algorithms) & set(SHARED_SECRET) and set(self.algorithms) & set(ALGORITHMS):
            raise ValueError("algorithms with a shared secret (HS...) and with public keys do not go together")


class KeySet:
    """The keys of a JWK set, ready for use, by the algorithms that each may be used with."""

    def __init__(self, content: bytes, algorithms: tuple[str, ...]) -> None:
        """Raises ValueError if it is no JWK set, or has no key for any of the algorithms."""
        self._keys: dict[str, list[tuple[str | None, jwt.PyJWK]]] = {}
        for data in _decode_set(content).keys:
            for algorithm in algorithms:
                if _is_for(data, algorithm):
                    self._add(data, algorithm)
        if not self._keys:
            raise ValueError(f"it has no key for {', '.join(algorithms)}")

    def find(self, algorithm: str, kid: str | None) -> list[jwt.PyJWK]:
        """Those that may have signed a token. One that names no key may be of any."""
        return [key for own, key in self._keys.get(algorithm, ()) if kid is None or own == kid]

    def _add(self, data: dict[str, Any], algorithm: str) -> None:
        try:
            key = jwt.PyJWK(data, algorithm)
        except jwt.PyJWTError:
            return  # of another algorithm, as most are
        self._keys.setdefault(algorithm, []).append((data.get("kid"), key))


def _is_for(data: dict[str, Any], algorithm: str) -> bool:
    """Whether a key says that signatures by the algorithm may be checked with it (RFC 7517, 4.2 to 4.4)."""
    operations = data.get("key_ops", ["verify"])
    return (
        data.get("use", "sig") == "sig"
        and isinstance(operations, list)
        and "verify" in operations
        and data.get("alg", algorithm) == algorithm
        and data.get("crv") in CURVES.get(algorithm, (data.get("crv"),))
    )


class RemoteKeys:
    """The keys of an address: kept, renewed in the background, and asked for anew no more often than is allowed."""

    def __init__(self, http: httpx.AsyncClient, config: Settings, log: logging.Logger) -> None:
        self.value: KeySet | None = None
        self._http = http
        self._config = config
        self._log = log
        self._asked_at = -math.inf
        self._got_at = -math.inf
        self._task: asyncio.Task[bool] | None = None

    async def current(self) -> KeySet:
        """The keys as last heard of. Raises Reject(503) while there are none."""
        age_s = time.monotonic() - self._got_at
        if self.value is not None and age_s > self._config.longest:
            self.value = None
            self._log.error("the keys from %s are too old, %.0f s: nobody is let in", self._config.jwks_url, age_s)
        if self.value is None:
            await self.renewed()
        elif age_s > self._config.refresh:
            self._renewal()
        if self.value is None:
            wait_s = self._asked_at + self._config.min_interval - time.monotonic()
            raise Reject(
                503, "the keys for tokens cannot be had", code="auth_unavailable", retry_after_s=max(1, wait_s)
            )
        return self.value

    async def renewed(self) -> bool:
        """Ask for them, together with all others who do so; False if that was too recently, or in vain."""
        task = self._renewal()
        return await asyncio.shield(task) if task is not None else False

    async def close(self) -> None:
        """Stop asking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _renewal(self) -> asyncio.Task[bool] | None:
        """The asking that is under way, or a new one unless it is too soon."""
        if self._task is not None and not self._task.done():
            return self._task
        now = time.monotonic()
        if now - self._asked_at < self._config.min_interval:
            return None
        self._asked_at = now
        self._task = asyncio.create_task(self._ask(), name="keys for tokens")
        return self._task

    async def _ask(self) -> bool:
        url = self._config.jwks_url
        try:
            async with asyncio.timeout(self._config.timeout):
                content = await self._read(url)
            self.value = KeySet(content, self._config.algorithms)
        except Exception as error:  # noqa: BLE001 - of the network, or of whatever was answered; it is asked again later
            self._log.error("no keys from %s, those before stay in force: %s %s", url, type(error).__name__, error)
            return False
        self._got_at = time.monotonic()
        return True

    async def _read(self, url: str) -> bytes:
        async with self._http.stream("GET", url, timeout=self._config.timeout) as answer:
            if answer.status_code != 200:
                raise ValueError(f"it answered {answer.status_code}")
            content = bytearray()
            async for piece in answer.aiter_bytes():
                content += piece
                if len(content) > MOST_BYTES:
                    raise ValueError(f"it answered with more than {MOST_BYTES} bytes")
            return bytes(content)


class Jwt(Auth[Settings]):
    """Admit the bearers of valid tokens. A token must expire at some time; what cannot be checked is refused."""

    reads_body = False

    async def open(self) -> None:
        """Read the keys. An address that does not answer yet is asked again later; a file must be right."""
        self._file: WatchedFile[KeySet] | None = None
        self._remote: RemoteKeys | None = None
        if self.config.jwks_url:
            self._remote = RemoteKeys(self.http, self.config, self.log)
            await self._remote.renewed()
        else:
            self._file = WatchedFile(self.config.jwks_file, self._parse, self.config.recheck, self.log)
            await self._file.open()

    async def close(self) -> None:
        held: list[WatchedFile[KeySet] | RemoteKeys | None]
        held = [getattr(self, "_file", None), getattr(self, "_remote", None)]  # `open` may never have come to them
        for one in held:
            if one is not None:
                await one.close()

    async def authenticate(self, request: Request) -> Principal:
        """The principal that a valid token names.

        Raises Reject: 401 for any other token, 403 for a model that is not allowed, 503 while there are no keys.
        """
        token = request.bearer_token
        if not token:
            raise Reject(401, "no token was given: send it as `Authorization: Bearer TOKEN`", code="missing_token")
        claims = self._verified(token, await self._candidates(token))
        who = claims.get(self.config.principal)
        if not isinstance(who, str) or not who:
            raise _refused(f'it has no "{self.config.principal}"')
        attributes = {name: claims[name] for name in self.config.attributes if name in claims}
        if self.config.models:
            attributes["models"] = models = _patterns(claims.get(self.config.models))
            check_model(request, models, who)
        return Principal(who, attributes)

    async def _candidates(self, token: str) -> list[jwt.PyJWK]:
        """The keys that may have signed it. Raises Reject if there are none."""
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise _refused("it is no JSON Web Token") from None
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in self.config.algorithms:
            raise _refused(f"it must be signed by {' or '.join(self.config.algorithms)}")
        found = (await self._keys()).find(algorithm, kid)
        if not found and self._remote is not None and await self._remote.renewed():
            found = (await self._keys()).find(algorithm, kid)
        if not found:
            raise _refused("the key that signed it is not known")
        return found

    def _verified(self, token: str, keys: list[jwt.PyJWK]) -> dict[str, Any]:
        """What it claims. Raises Reject unless a key signed it, and its times, issuer and audience are right."""
        for key in keys[:MOST_TRIED]:
            try:
                return self._claims(token, key)
            except jwt.InvalidSignatureError:
                continue  # it names no key, so another one may have signed it
            except jwt.ExpiredSignatureError:
                raise Reject(401, "the token has expired", code="expired_token") from None
            except (jwt.PyJWTError, ValueError, RecursionError) as error:
                raise _refused(str(error)[:200]) from None
        raise _refused("its signature is wrong")

    def _claims(self, token: str, key: jwt.PyJWK) -> dict[str, Any]:
        config = self.config
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=config.algorithms,
            audience=config.audience or None,
            issuer=config.issuer or None,
            leeway=config.leeway,
            options={"require": ["exp"], "verify_aud": bool(config.audience), "enforce_minimum_key_length": True},
        )
        return claims

    async def _keys(self) -> KeySet:
        if self._file is not None:
            return self._file.value
        if self._remote is None:
            raise RuntimeError("authenticate before open")
        return await self._remote.current()

    def _parse(self, content: bytes) -> KeySet:
        return KeySet(content, self.config.algorithms)


def _patterns(claim: object) -> tuple[str, ...]:
    """The patterns of a claim: a list, or words in one text. Without any, or of another kind, it allows no model."""
    if isinstance(claim, str):
        return tuple(claim.split())
    return tuple(one for one in claim if isinstance(one, str)) if isinstance(claim, list) else ()


def _refused(why: str) -> Reject:
    return Reject(401, f"the token is not accepted: {why}", code="invalid_token")
