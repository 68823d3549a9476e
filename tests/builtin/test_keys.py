"""API keys: who is let in, who is not, and that no key is ever shown."""

from __future__ import annotations

import hashlib

import pytest

from plugin_sdk import Headers, Principal, Reject, Request
from plugin_sdk.kinds import is_inline
from sidecar.builtin.keys import Settings, StaticKeys


def hashed(key: str) -> str:
    """As `printf %s KEY | sha256sum` has it."""
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture
async def keys() -> StaticKeys:
    settings = Settings(keys={hashed("sk-a"): "team-a", hashed("sk-b"): "team-b", hashed("schlüssel"): "team-ü"})
    plugin = StaticKeys(settings, name="keys")
    await plugin.open()
    return plugin


def request(*headers: tuple[str, str]) -> Request:
    raw = tuple((name.encode(), value.encode()) for name, value in headers)
    return Request(method="POST", path="/v1/chat/completions", headers=Headers(raw))


@pytest.mark.parametrize(
    ("header", "who"),
    [
        (("Authorization", "Bearer sk-a"), "team-a"),
        (("authorization", "bearer   sk-b "), "team-b"),
        (("X-Api-Key", "sk-b"), "team-b"),
        (("Authorization", "Bearer schlüssel"), "team-ü"),
    ],
)
async def test_a_known_key_is_let_in_by_name(keys: StaticKeys, header: tuple[str, str], who: str) -> None:
    assert keys.authenticate(request(header)) == Principal(who)


@pytest.mark.parametrize(
    "header",
    [
        ("Authorization", "Bearer sk-c"),
        ("Authorization", "Bearer SK-A"),
        ("Authorization", "Bearer sk-a sk-a"),
        ("Authorization", "Bearer sk"),
        ("Authorization", "Bearer \x00"),
        ("Authorization", f"Bearer {hashed('sk-a')}"),  # the hash is no secret, and no key
        ("x-api-key", "sk-c"),
        ("x-api-key", "Bearer sk-a"),
    ],
)
async def test_any_other_key_is_refused_and_not_repeated(keys: StaticKeys, header: tuple[str, str]) -> None:
    with pytest.raises(Reject) as refused:
        keys.authenticate(request(header))
    assert (refused.value.status, refused.value.code) == (401, "invalid_api_key")
    assert refused.value.message == "the API key is not known"


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (("Authorization", ""),),
        (("Authorization", "Bearer"),),
        (("Authorization", "Bearer  "),),
        (("Authorization", "Basic c2stYQ=="),),
        (("Authorization", "sk-a"),),
        (("api-key", "sk-a"),),
    ],
)
async def test_without_a_key_the_answer_says_how_to_send_one(
    keys: StaticKeys, headers: tuple[tuple[str, str], ...]
) -> None:
    with pytest.raises(Reject) as refused:
        keys.authenticate(request(*headers))
    assert (refused.value.status, refused.value.code) == (401, "missing_api_key")
    assert "Authorization: Bearer KEY" in refused.value.message


async def test_bytes_that_are_no_text_are_an_unknown_key(keys: StaticKeys) -> None:
    headers = Headers(((b"authorization", b"Bearer \xff\xfe"),))
    with pytest.raises(Reject, match="not known"):
        keys.authenticate(Request(method="POST", path="/", headers=headers))


def test_it_runs_on_the_loop() -> None:
    assert is_inline(StaticKeys.authenticate)


@pytest.mark.parametrize(
    "text", ["sk-in-the-clear", "sha256:abc", "sha256:" + "g" * 64, "sha256:" + "A" * 64, "md5:" + "0" * 64, ""]
)
def test_a_key_in_another_form_is_refused_at_load_and_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match='the key of "team" must be written "sha256:" and 64 hex') as told:
        Settings(keys={text: "team"})
    assert not text or text not in str(told.value)


def test_no_keys_at_all_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="nobody could get in"):
        Settings(keys={})
