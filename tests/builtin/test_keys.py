"""API keys: who is let in, who is not, and that no key is ever shown."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import logging
import os
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from plugin_sdk import Duration, Headers, Principal, Reject, Request
from plugin_sdk.kinds import is_inline
from sidecar.builtin.keys import Key, Settings, StaticKeys
from tests.support import plugin, until

TODAY = datetime.datetime.now(datetime.UTC).date()
DAY = datetime.timedelta(days=1)


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
    with pytest.raises(ValueError, match="recheck"):
        Settings(file="keys.txt", recheck=Duration(0))
    with pytest.raises(ValueError, match="must have a name"):
        Settings(keys={hashed("sk-a"): ""})


# --- what a key may do ----------------------------------------------------------------------------------------------


def bearer(token: str, model: str = "", requested: str = "") -> Request:
    asked = request(("Authorization", f"Bearer {token}"))
    return msgspec.structs.replace(asked, model=model, requested_model=requested or model)


async def opened(**config: Any) -> StaticKeys:
    """A plugin with these settings, read as those of a manifest."""
    loaded = plugin(StaticKeys, "keys", **config)
    made = loaded.make()
    assert isinstance(made, StaticKeys)
    await made.open()
    return made


async def test_a_key_may_be_for_some_models_alone() -> None:
    key = {"principal": "team-a", "models": ["llama-*", "qwen"], "attributes": {"tier": "gold"}}
    keys = await opened(keys={hashed("sk-a"): key, hashed("sk-b"): "team-b"})
    expected = Principal("team-a", {"tier": "gold", "models": ("llama-*", "qwen")})
    for model, requested in (("llama-3", ""), ("qwen", ""), ("other", "qwen"), ("", "")):
        assert keys.authenticate(bearer("sk-a", model, requested)) == expected
    with pytest.raises(Reject) as refused:
        keys.authenticate(bearer("sk-a", "mistral", "gpt-4o"))
    assert (refused.value.status, refused.value.code) == (403, "model_not_allowed")
    assert refused.value.message == '"team-a" may not use the model "gpt-4o": of the models, only llama-*, qwen'
    assert keys.authenticate(bearer("sk-b", "mistral")) == Principal("team-b")


async def test_a_key_for_no_model_may_ask_for_none() -> None:
    keys = await opened(keys={hashed("sk-a"): {"principal": "team-a", "models": []}})
    assert keys.authenticate(bearer("sk-a")) == Principal("team-a", {"models": ()})
    with pytest.raises(Reject, match='may not use the model "qwen": of the models, none'):
        keys.authenticate(bearer("sk-a", "qwen"))


async def test_a_key_is_good_until_the_end_of_its_last_day() -> None:
    keys = await opened(
        keys={
            hashed("sk-today"): {"principal": "a", "expires": TODAY},
            hashed("sk-yesterday"): {"principal": "b", "expires": TODAY - DAY},
        }
    )
    assert keys.authenticate(bearer("sk-today")).id == "a"
    with pytest.raises(Reject) as refused:
        keys.authenticate(bearer("sk-yesterday"))
    assert (refused.value.status, refused.value.code) == (401, "expired_api_key")
    assert str(TODAY - DAY) in refused.value.message


async def test_a_key_that_was_let_in_before_expires_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = await opened(keys={hashed("sk-a"): {"principal": "a", "expires": TODAY, "models": ["qwen"]}})
    assert keys.authenticate(bearer("sk-a", "qwen")).id == "a"
    with pytest.raises(Reject, match="may not use"):
        keys.authenticate(bearer("sk-a", "mistral"))
    tomorrow = time.time() + DAY.total_seconds()
    monkeypatch.setattr(time, "time", lambda: tomorrow)
    with pytest.raises(Reject, match="has expired"):
        keys.authenticate(bearer("sk-a", "qwen"))


async def test_only_keys_that_exist_are_remembered() -> None:
    keys = await opened(keys={hashed("sk-a"): "team-a"})
    for number in range(100):
        assert not admitted(keys, f"sk-guess-{number}")
    assert admitted(keys, "sk-a")
    assert list(keys._let_in) == ["sk-a"]


# --- keys in a file -------------------------------------------------------------------------------------------------

FILE = f"""\
# who may come in
{hashed("sk-a")} team-a models=llama-*,qwen expires={TODAY + DAY} tier=gold "note=two words"   # a comment
{hashed("sk-b")} team-b

{hashed("sk-old")} team-c expires={TODAY - DAY}
"""


def replaced(file: Path, text: str) -> None:
    """As `mv` replaces a file."""
    aside = file.with_suffix(".new")
    aside.write_text(text, encoding="utf-8")
    aside.replace(file)


def changed_at_once(file: Path, text: str) -> None:
    """As a second write within a tick of the file system's clock."""
    before = file.stat()
    file.write_text(text)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    found = tmp_path / "keys.txt"
    found.write_text(FILE, encoding="utf-8")
    return found


@pytest.fixture
async def filed(file: Path) -> AsyncIterator[StaticKeys]:
    made = StaticKeys(Settings(file=str(file), keys={hashed("sk-c"): Key("inline")}, recheck=Duration(0.01)), name="k")
    await made.open()
    yield made
    await made.close()


def admitted(keys: StaticKeys, token: str) -> bool:
    try:
        keys.authenticate(bearer(token))
    except Reject:
        return False
    return True


async def test_a_file_has_keys_with_their_models_last_day_and_attributes(filed: StaticKeys) -> None:
    attributes = {"tier": "gold", "note": "two words", "models": ("llama-*", "qwen")}
    assert filed.authenticate(bearer("sk-a", "qwen")) == Principal("team-a", attributes)
    assert filed.authenticate(bearer("sk-b", "any")) == Principal("team-b")
    assert filed.authenticate(bearer("sk-c", "any")) == Principal("inline")
    with pytest.raises(Reject, match="may not use"):
        filed.authenticate(bearer("sk-a", "mistral"))
    with pytest.raises(Reject, match="has expired"):
        filed.authenticate(bearer("sk-old"))


async def test_a_changed_file_is_read_again(filed: StaticKeys, file: Path) -> None:
    replaced(file, f"{hashed('sk-new')} team-n\n")
    await until(lambda: admitted(filed, "sk-new"), "the new key is let in")
    assert not admitted(filed, "sk-a")
    assert admitted(filed, "sk-c")


async def test_a_key_that_was_let_in_before_is_refused_once_it_has_left_the_file(filed: StaticKeys, file: Path) -> None:
    assert all(admitted(filed, "sk-b") for _ in range(3))
    replaced(file, f"{hashed('sk-new')} team-n\n")
    await until(lambda: not admitted(filed, "sk-b"), "the old key is refused")
    assert admitted(filed, "sk-new")


async def test_a_key_that_was_let_in_before_gets_what_the_file_says_of_it_now(filed: StaticKeys, file: Path) -> None:
    assert filed.authenticate(bearer("sk-b", "mistral")) == Principal("team-b")
    replaced(file, f"{hashed('sk-b')} team-b models=qwen tier=gold\n")
    may = Principal("team-b", {"tier": "gold", "models": ("qwen",)})
    await until(lambda: filed.authenticate(bearer("sk-b", "qwen")) == may, "the new line holds")
    with pytest.raises(Reject, match="may not use"):
        filed.authenticate(bearer("sk-b", "mistral"))


async def test_two_changes_within_one_tick_of_the_clock_are_both_seen(filed: StaticKeys, file: Path) -> None:
    for token in ("sk-x", "sk-y", "sk-z"):
        changed_at_once(file, f"{hashed(token)} team-n\n")
        await until(partial(admitted, filed, token), "the last key is let in")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it has no keys: nobody could get in"),
        ("# only comments\n", "it has no keys: nobody could get in"),
        (f"{hashed('sk-a')} a\nsk-clear team\n", 'line 2: expected "sha256:" and 64 hexadecimal digits first'),
        (hashed("sk-a")[:-1] + " team", 'line 1: expected "sha256:" and 64 hexadecimal digits first'),
        (hashed("sk-a"), "line 1: expected the name of the principal after the hash"),
        (f"{hashed('sk-a')} models=x", "line 1: expected the name of the principal after the hash"),
        (f"{hashed('sk-a')} ''", "line 1: the principal of a key must have a name"),
        (f"{hashed('sk-a')} a gold", "line 1: expected NAME=VALUE after the principal"),
        (f"{hashed('sk-a')} a models=", "line 1: expected patterns after models="),
        (f"{hashed('sk-a')} a expires=soon", "line 1: expected a date such as 2027-01-31 after expires="),
        (f"{hashed('sk-a')} a\n{hashed('sk-a')} b", "line 2: the same key stands on an earlier line"),
        (f"{hashed('sk-a')} 'a", "line 1: No closing quotation"),
    ],
)
async def test_a_file_that_is_wrong_is_told_with_its_line_and_what_it_said_before_stays(
    filed: StaticKeys, file: Path, text: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        replaced(file, text)
        await until(lambda: caplog.records, "the error is logged")
        await asyncio.sleep(0.05)
    [record] = caplog.records  # once, not at every look
    assert record.levelname == "ERROR"
    assert record.name == "sidecar.plugins.k"
    assert why in record.getMessage()
    assert "sk-clear" not in record.getMessage()
    assert admitted(filed, "sk-b")
    with pytest.raises(ValueError, match=why.replace("(", ".")):
        await opened(file=str(file))


async def test_a_file_that_vanishes_keeps_its_keys_until_it_is_back(filed: StaticKeys, file: Path) -> None:
    os.unlink(file)  # noqa: PTH108 - ruff would have Path.unlink in a thread
    watched = filed._file
    assert watched is not None
    await until(lambda: watched.failed > 2, "it is looked for")
    assert admitted(filed, "sk-b")
    replaced(file, f"{hashed('sk-new')} team-n\n")
    await until(lambda: admitted(filed, "sk-new"), "the new key is let in")


async def test_without_its_file_it_does_not_open_and_closes_all_the_same(tmp_path: Path) -> None:
    keys = StaticKeys(Settings(file=str(tmp_path / "none")))
    await keys.close()
    with pytest.raises(FileNotFoundError):
        await keys.open()
    await keys.close()
    await keys.close()


async def test_closing_leaves_no_task_behind(file: Path) -> None:
    before = asyncio.all_tasks()
    keys = await opened(file=str(file))
    assert len(asyncio.all_tasks()) == len(before) + 1
    await keys.close()
    assert asyncio.all_tasks() == before


async def test_no_token_is_ever_logged(filed: StaticKeys, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        for token in ("sk-a", "sk-unknown", "sk-old"):
            admitted(filed, token)
    assert not any("sk-" in record.getMessage() for record in caplog.records)


async def test_many_at_once_are_told_apart() -> None:
    keys = await opened(keys={hashed(f"sk-{number}"): f"team-{number}" for number in range(50)})

    async def ask(number: int) -> str:
        await asyncio.sleep(0)
        return keys.authenticate(bearer(f"sk-{number}")).id

    assert await asyncio.gather(*map(ask, range(50))) == [f"team-{number}" for number in range(50)]
