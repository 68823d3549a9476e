"""Tokens, really signed: which are let in, which are not, and how the keys that check them are kept up to date."""

from __future__ import annotations

import asyncio
import base64
import http.server
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugin_sdk import Duration, Headers, Principal, Reject, Request
from plugin_sdk.services import Standalone
from tests.support import until

pytest.importorskip("jwt", reason='needs the extra "jwt"')

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from sidecar.builtin.jwt import Jwt, KeySet, RemoteKeys, Settings

T = TypeVar("T")

ISSUER, AUDIENCE = "https://issuer.test", "sidecar"

RSA = rsa.generate_private_key(65537, 2048)
OTHER_RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())


def jwk(key: Any, kid: str | None, **more: Any) -> dict[str, Any]:
    """The public half of a key, as a JWK."""
    algorithm = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    data: dict[str, Any] = algorithm.to_jwk(key.public_key(), as_dict=True)
    return {**data, **({"kid": kid} if kid else {}), **more}


def jwks(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": list(keys)}).encode()


BOTH = jwks(jwk(RSA, "r1", alg="RS256", use="sig"), jwk(EC, "e1"))


def token(key: Any = RSA, algorithm: str = "RS256", kid: str | None = "r1", **claims: Any) -> str:
    """A token that is right in every way, but for the claims that are given; None = without it."""
    now = int(time.time())
    right = {"iss": ISSUER, "aud": AUDIENCE, "sub": "anna", "exp": now + 600, "iat": now}
    payload = {name: value for name, value in (right | claims).items() if value is not None}
    return signed(payload, key, algorithm, kid)


def signed(payload: dict[str, Any], key: Any, algorithm: str, kid: str | None = None) -> str:
    text: str = jwt.encode(payload, key, algorithm, headers={"kid": kid} if kid else None)
    return text


def bearer(text: str, model: str = "") -> Request:
    headers = Headers(((b"authorization", f"Bearer {text}".encode()),))
    return Request(method="POST", path="/v1/chat/completions", headers=headers, model=model, requested_model=model)


async def refusal(plugin: Jwt, request: Request) -> Reject:
    with pytest.raises(Reject) as refused:
        await plugin.authenticate(request)
    return refused.value


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Jwt]]]:
    """Plugins with a file of keys, closed at the end."""
    made: list[Jwt] = []

    async def build(content: bytes = BOTH, **more: Any) -> Jwt:
        file = str(tmp_path / f"keys-{len(made)}.json")
        write(file, content)
        settings = {"issuer": ISSUER, "audience": AUDIENCE, "jwks_file": file, "recheck": Duration(0.01), **more}
        plugin = Jwt(Settings(**settings), name="tokens")
        made.append(plugin)
        await plugin.open()
        return plugin

    yield build
    for plugin in made:
        await plugin.close()


def write(file: str, content: bytes) -> None:
    Path(file).write_bytes(content)


Make = Callable[..., Awaitable[Jwt]]


async def test_a_valid_token_names_the_caller(make: Make) -> None:
    plugin = await make()
    assert await plugin.authenticate(bearer(token())) == Principal("anna")
    assert await plugin.authenticate(bearer(token(EC, "ES256", "e1", sub="bert"))) == Principal("bert")
    assert await plugin.authenticate(bearer(token(kid=None))) == Principal("anna")
    assert await plugin.authenticate(bearer(token(aud=["other", AUDIENCE]))) == Principal("anna")


async def test_claims_may_name_the_caller_his_models_and_attributes(make: Make) -> None:
    plugin = await make(principal="email", models="llm", attributes=("team", "tier"))
    text = token(email="anna@x.test", llm=["llama-*", "qwen"], team="red")
    expected = Principal("anna@x.test", {"team": "red", "models": ("llama-*", "qwen")})
    assert await plugin.authenticate(bearer(text, "llama-3")) == expected
    refused = await refusal(plugin, bearer(text, "mistral"))
    assert (refused.status, refused.code) == (403, "model_not_allowed")
    assert refused.message == '"anna@x.test" may not use the model "mistral": of the models, only llama-*, qwen'
    scoped = token(email="anna@x.test", llm="llama-* qwen")
    assert (await plugin.authenticate(bearer(scoped, "qwen"))).id == "anna@x.test"


@pytest.mark.parametrize("claim", [None, [], "", 3, {"a": 1}])
async def test_a_claim_without_models_allows_none(make: Make, claim: object) -> None:
    plugin = await make(models="llm")
    refused = await refusal(plugin, bearer(token(llm=claim), "qwen"))
    assert (refused.status, refused.message) == (403, '"anna" may not use the model "qwen": of the models, none')
    assert (await plugin.authenticate(bearer(token(llm=claim)))).id == "anna"


@pytest.mark.parametrize(
    ("claims", "code", "why"),
    [
        ({"exp": int(time.time()) - 60}, "expired_token", "expired"),
        ({"exp": None}, "invalid_token", '"exp"'),
        ({"nbf": int(time.time()) + 600}, "invalid_token", "not yet valid"),
        ({"iss": "https://other.test"}, "invalid_token", "issuer"),
        ({"iss": None}, "invalid_token", '"iss"'),
        ({"aud": "other"}, "invalid_token", "Audience"),
        ({"aud": None}, "invalid_token", '"aud"'),
        ({"sub": None}, "invalid_token", '"sub"'),
        ({"sub": ""}, "invalid_token", '"sub"'),
    ],
)
async def test_a_token_that_does_not_hold_is_refused_with_the_reason(
    make: Make, claims: dict[str, Any], code: str, why: str
) -> None:
    refused = await refusal(await make(), bearer(token(**claims)))
    assert (refused.status, refused.code) == (401, code)
    assert why in refused.message


async def test_clocks_may_differ_a_little(make: Make) -> None:
    plugin = await make(leeway=Duration(120))
    assert (await plugin.authenticate(bearer(token(exp=int(time.time()) - 60)))).id == "anna"


async def test_issuer_and_audience_do_not_matter_where_the_manifest_says_so(make: Make) -> None:
    plugin = await make(issuer="", audience=())
    assert (await plugin.authenticate(bearer(token(iss="x", aud="y")))).id == "anna"
    assert (await plugin.authenticate(bearer(token(iss=None, aud=None)))).id == "anna"


def unsigned() -> str:
    return signed({"sub": "anna", "exp": int(time.time()) + 600}, None, "none")


def signed_with_the_public_key() -> str:
    """HS256 with a public key as the secret: what servers that mix the two would accept."""
    return signed({"sub": "anna", "exp": int(time.time()) + 600}, jwk(RSA, "r1")["n"], "HS256", "r1")


def tampered() -> str:
    head, body, signature = token().split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    forged = base64.urlsafe_b64encode(json.dumps({**claims, "sub": "root"}).encode()).decode().rstrip("=")
    return f"{head}.{forged}.{signature}"


@pytest.mark.parametrize(
    "forge",
    [
        unsigned,
        signed_with_the_public_key,
        tampered,
        lambda: token(OTHER_RSA),
        lambda: token(OTHER_RSA, kid=None),
        lambda: token(RSA, "RS512"),
        lambda: token(RSA, kid="e1"),
        lambda: token(EC, "ES256", "r1"),
        lambda: token(kid="unknown"),
        lambda: token()[:-4],
        lambda: token() + ".x",
        lambda: "sk-plain",
        lambda: "a.b.c",
        lambda: "..",
        lambda: "é.ü.ß",
    ],
)
async def test_a_forged_token_is_refused_and_not_repeated(
    make: Make, forge: Callable[[], str], caplog: pytest.LogCaptureFixture
) -> None:
    plugin = await make()
    text = forge()
    with caplog.at_level(logging.DEBUG):
        refused = await refusal(plugin, bearer(text))
    assert (refused.status, refused.code) == (401, "invalid_token")
    assert text not in refused.message
    assert not any(text in record.getMessage() for record in caplog.records)


def encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).decode().rstrip("=")


HEADERS = (
    b'{"alg":"RS256","kid":"r1"}',
    b'{"alg":"RS256","kid":5}',
    b'{"alg":["RS256"]}',
    b'{"alg":"RS256","crit":["x"]}',
)
PARTS = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([*HEADERS, b"[" * 20_000, b"{}", b"null", b'{"exp":1e999}', b'{"exp":"x"}', b"\xff"]),
)


@given(st.lists(PARTS, min_size=1, max_size=4), st.text(max_size=3))
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_whatever_comes_is_refused_and_nothing_else_goes_wrong(parts: list[bytes], tail: str) -> None:
    async def refused() -> Reject:
        plugin = Jwt(Settings(issuer=ISSUER, audience=AUDIENCE, jwks_file="unused"))
        plugin._file, plugin._remote = None, Fixed(KeySet(BOTH, ("RS256", "ES256")))
        return await refusal(plugin, bearer(".".join(map(encoded, parts)) + tail.strip() or "x"))

    assert asyncio.run(refused()).status == 401


class Fixed(RemoteKeys):
    """Keys that are there, and stay."""

    def __init__(self, keys: KeySet) -> None:
        self.value = keys

    async def current(self) -> KeySet:
        assert self.value is not None
        return self.value

    async def renewed(self) -> bool:
        return False


async def test_without_a_token_the_answer_says_how_to_send_one(make: Make) -> None:
    refused = await refusal(await make(), Request(method="POST", path="/"))
    assert (refused.status, refused.code) == (401, "missing_token")


async def test_a_weak_key_is_not_trusted(make: Make) -> None:
    weak = rsa.generate_private_key(65537, 1024)  # noqa: S505 - that is the point
    plugin = await make(jwks(jwk(weak, "r1")))
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        text = token(weak)
    assert "1024 bits" in (await refusal(plugin, bearer(text))).message


async def test_shared_secrets_work_where_nothing_else_does(make: Make) -> None:
    secret = b"s" * 32
    data = {"kty": "oct", "kid": "s1", "k": base64.urlsafe_b64encode(secret).decode().rstrip("=")}
    plugin = await make(jwks(data), algorithms=("HS256",))
    assert (await plugin.authenticate(bearer(token(secret, "HS256", "s1")))).id == "anna"
    assert (await refusal(plugin, bearer(token(b"t" * 32, "HS256", "s1")))).code == "invalid_token"


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({}, "either jwks_file or jwks_url"),
        ({"jwks_file": "a", "jwks_url": "https://b"}, "either jwks_file or jwks_url"),
        ({"jwks_url": "ftp://b"}, "https:// or http://"),
        ({"jwks_file": "a", "algorithms": ()}, "at least one"),
        ({"jwks_url": "https://b", "longest": Duration(60)}, "as long as refresh"),
        ({"jwks_file": "a", "algorithms": ("none",)}, '"none" is no signature that is accepted'),
        ({"jwks_file": "a", "algorithms": ("RS256", "HS256")}, "do not go together"),
    ],
)
def test_settings_that_would_let_forgers_in_are_refused_at_load(config: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Settings(issuer=ISSUER, audience=AUDIENCE, **config)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b'{"keys": []}', b'{"keys": [{"kty": "RSA"}]}', b"\xff", jwks(jwk(RSA, "r", use="enc"))),
        jwks(jwk(RSA, "r", key_ops=["encrypt"])),
        jwks(jwk(RSA, "r", key_ops="verify")),
        jwks(jwk(ec.generate_private_key(ec.SECP384R1()), "e")),
    ],
)
def test_what_is_no_set_of_keys_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        KeySet(content, ("RS256", "ES256"))


def test_keys_are_for_what_they_say() -> None:
    p384 = jwk(ec.generate_private_key(ec.SECP384R1()), "e3")
    keys = KeySet(jwks(p384, jwk(RSA, "r1", key_ops=["verify", "sign"]), jwk(EC, "e1")), ("RS256", "ES256", "ES384"))
    found = [bool(keys.find(*wanted)) for wanted in (("RS256", "r1"), ("ES256", "e1"), ("ES384", "e3"))]
    assert found == [True, True, True]
    assert not keys.find("ES256", "e3")


async def test_many_at_once_are_told_apart(make: Make) -> None:
    plugin = await make()
    texts = [token(EC, "ES256", "e1", sub=f"user-{number}") for number in range(50)]
    found = await asyncio.gather(*(plugin.authenticate(bearer(text)) for text in texts))
    assert [principal.id for principal in found] == [f"user-{number}" for number in range(50)]


async def test_a_changed_file_is_read_again_and_a_bad_one_is_not(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = await make()
    file = str(tmp_path / "keys-0.json")
    write(file, b'{"keys": [')
    await until(lambda: caplog.records, "the error is logged")
    assert (await plugin.authenticate(bearer(token()))).id == "anna"
    before = plugin._file.value if plugin._file else None
    write(file, jwks(jwk(OTHER_RSA, "r1")))
    await until(lambda: plugin._file and plugin._file.value is not before, "the keys are read again")
    assert (await plugin.authenticate(bearer(token(OTHER_RSA)))).id == "anna"
    assert (await refusal(plugin, bearer(token()))).code == "invalid_token"


# --- keys from an address -------------------------------------------------------------------------------------------


class KeyServer:
    """Serves keys over HTTP; counts how often it was asked."""

    def __init__(self) -> None:
        self.content = BOTH
        self.status = 200
        self.asked = 0
        self.go = threading.Event()
        self.go.set()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                outer.go.wait(10)
                self.send_response(outer.status)
                self.send_header("content-length", str(len(outer.content)))
                self.end_headers()
                self.wfile.write(outer.content)

            def log_message(self, *_: object) -> None:
                """Be quiet."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/jwks.json"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        self.go.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class WithHttp(Standalone):
    """Services with a client of the test's own."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    @property
    def http(self) -> httpx.AsyncClient:
        return self.client


@pytest.fixture
def server() -> Iterator[KeyServer]:
    made = KeyServer()
    yield made
    made.close()


@pytest.fixture
async def remote(server: KeyServer) -> AsyncIterator[Make]:
    """Plugins that ask the server, closed at the end."""
    made: list[Jwt] = []
    async with httpx.AsyncClient() as client:

        async def build(**more: Any) -> Jwt:
            settings = {"issuer": ISSUER, "audience": AUDIENCE, "jwks_url": server.url, **more}
            plugin = Jwt(Settings(**settings), name="tokens", services=WithHttp(client))
            made.append(plugin)
            await plugin.open()
            return plugin

        yield build
        for plugin in made:
            await plugin.close()


async def test_keys_are_asked_for_once(remote: Make, server: KeyServer) -> None:
    plugin = await remote()
    for _ in range(20):
        assert (await plugin.authenticate(bearer(token()))).id == "anna"
    assert server.asked == 1


async def test_a_key_that_is_not_known_has_them_asked_for_again(remote: Make, server: KeyServer) -> None:
    plugin = await remote(min_interval=Duration(0))
    server.content = jwks(jwk(RSA, "r1"), jwk(OTHER_RSA, "r2"))
    server.go.clear()
    rotated = [plugin.authenticate(bearer(token(OTHER_RSA, kid="r2"))) for _ in range(50)]
    asking = asyncio.gather(*rotated)
    await until(lambda: server.asked == 2, "the keys are asked for again")
    server.go.set()
    assert {principal.id for principal in await asking} == {"anna"}
    assert server.asked == 2


async def test_forgers_do_not_make_it_ask_without_end(remote: Make, server: KeyServer) -> None:
    plugin = await remote(min_interval=Duration(3600))
    for number in range(20):
        assert (await refusal(plugin, bearer(token(kid=f"made-up-{number}")))).code == "invalid_token"
    assert server.asked == 1


async def test_a_caller_who_leaves_does_not_stop_the_asking_for_the_others(remote: Make, server: KeyServer) -> None:
    plugin = await remote(min_interval=Duration(0))
    server.content = jwks(jwk(OTHER_RSA, "r2"))
    server.go.clear()
    first, second = (asyncio.create_task(plugin.authenticate(bearer(token(OTHER_RSA, kid="r2")))) for _ in range(2))
    await until(lambda: server.asked == 2, "the keys are asked for again")
    first.cancel()
    server.go.set()
    assert (await second).id == "anna"
    assert first.cancelled()


async def test_old_keys_are_renewed_aside_and_kept_if_that_fails(
    remote: Make, server: KeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = await remote(min_interval=Duration(0), refresh=Duration(0))
    server.status = 500
    for _ in range(3):
        assert (await plugin.authenticate(bearer(token()))).id == "anna"
    await until(lambda: caplog.records, "the failure is logged")
    assert "it answered 500" in caplog.records[0].getMessage()
    assert (await plugin.authenticate(bearer(token()))).id == "anna"


async def test_keys_that_are_too_old_let_nobody_in(
    remote: Make, server: KeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = await remote(min_interval=Duration(0), longest=Duration(7200))
    server.status = 500
    assert plugin._remote is not None
    plugin._remote._got_at -= 7000
    assert (await plugin.authenticate(bearer(token()))).id == "anna"
    plugin._remote._got_at -= 300
    refused = await refusal(plugin, bearer(token()))
    assert (refused.status, refused.code) == (503, "auth_unavailable")
    assert "are too old" in caplog.text
    server.status = 200
    assert (await plugin.authenticate(bearer(token()))).id == "anna"


async def test_an_answer_without_end_is_not_read_to_the_end(
    remote: Make, server: KeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.content = jwks(jwk(RSA, "r1"), *({"kty": "x", "pad": "x" * 1000} for _ in range(2000)))
    plugin = await remote(min_interval=Duration(3600))
    assert (await refusal(plugin, bearer(token()))).status == 503
    assert "more than 1048576 bytes" in caplog.text


async def test_an_address_that_does_not_answer_yet_closes_the_door_for_a_while(remote: Make, server: KeyServer) -> None:
    server.content = b"<html>starting</html>"
    plugin = await remote(min_interval=Duration(3600))
    refused = await refusal(plugin, bearer(token()))
    assert (refused.status, refused.code) == (503, "auth_unavailable")
    assert refused.retry_after_s
    assert refused.retry_after_s > 3000
    plugin = await remote(min_interval=Duration(0))
    assert (await refusal(plugin, bearer(token()))).status == 503
    server.content = BOTH
    assert (await plugin.authenticate(bearer(token()))).id == "anna"


async def test_closing_leaves_no_task_behind(remote: Make, server: KeyServer) -> None:
    before = asyncio.all_tasks()
    plugin = await remote(min_interval=Duration(0), refresh=Duration(0))
    server.go.clear()
    await plugin.authenticate(bearer(token()))
    await plugin.close()
    assert asyncio.all_tasks() == before
    await Jwt(Settings(issuer="", audience=(), jwks_file="x")).close()
