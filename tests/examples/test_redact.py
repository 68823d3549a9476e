"""The example of a filter: personal data does not get through, however it is cut into pieces, and all else does."""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest

from plugin_sdk import Event
from plugin_sdk.config import convert
from plugin_sdk.testing import Answer, Harness, contract
from tests.e2e.harness import Sidecar
from tests.examples import shipped
from tests.examples.copies import problems

FOLDER = shipped.PLUGINS / "redact"
SAID = "Write to ada@example.com or call +44 20 7946 0958 and pay with 4111 1111 1111 1111 or ask EMP-123456 today."
SHOWN = "Write to [email] or call [phone] and pay with [card] or ask [badge] today."
example = shipped.module("redact")
with shipped.helpers_of("redact"):
    personal: Any = importlib.import_module("_personal")
SETTINGS = example.Settings(patterns={"badge": "EMP-[0-9]{6}"}, longest=16, requests=True)
RULES = SETTINGS.rules()
MOST_HELD = max(rule.reach for rule in RULES)

test_contract = contract(example.Redact, config={"patterns": {"badge": "EMP-[0-9]{6}"}, "requests": True})


# --- text -----------------------------------------------------------------------------------------------------------


def in_pieces(pieces: Sequence[str]) -> tuple[str, int]:
    """What comes of a text that comes in pieces, and the most that was held back of it."""
    tail = personal.Tail(RULES)
    out, given, most = "", 0, 0
    for piece in pieces:
        out += tail.feed(piece).text
        given += len(piece)
        most = max(most, len(tail._held))
    return out + tail.feed("", last=True).text, most


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (SAID, SHOWN),
        ("a.b+c@mail.example.co.uk, and b@x.org.", "[email], and [email]."),
        ("2024 4111 1111 1111 1111 123", "2024 [card] 123"),  # with a year in front and the code behind
        ("4111 1111 1111 1112", "4111 1111 1111 1112"),  # its check digit is wrong
        ("(555) 123-4567 or 555-123-4567", "[phone] or [phone]"),
        ("DE89 3704 0044 0532 0130 00 and AT61 1904 3002 3457 3201 BIC", "[iban] and [iban] BIC"),
        ("DE88 3704 0044 0532 0130 00", "DE88 3704 0044 0532 0130 00"),
        ("On 2024-01-15 at 10:30, 3 + 4 = 7, v1.2.3 @ home, user@host", None),
        ("", None),
    ],
)
def test_what_is_personal_is_found_and_nothing_else(text: str, shown: str | None) -> None:
    assert personal.redacted(text, RULES).text == (text if shown is None else shown)


@pytest.mark.parametrize("text", [SAID, "ada@example.com", "x 4111111111111111", "call +1 (212) 555-0199", "ÄÖ@ß.de\n"])
def test_no_cut_lets_anything_through_and_the_rest_stays_as_it_was(text: str) -> None:
    whole = personal.redacted(text, RULES).text
    for at in range(len(text) + 1):
        assert in_pieces([text[:at], text[at:]])[0] == whole
    assert in_pieces(list(text))[0] == whole


def test_any_text_in_any_pieces_comes_out_like_the_whole_and_little_is_held_back() -> None:
    chance = random.Random(4)  # noqa: S311 - the same texts each time
    parts = [
        *SAID.split(" "),
        " ",
        "a@",
        "@b",
        ".",
        "-",
        "+",
        "(",
        "7",
        "DE89 3704 0044 0532 0130 00",
        "a" * 70,
        "1" * 50,
    ]
    for _ in range(1500):
        text = "".join(chance.choice(parts) for _ in range(chance.randint(1, 8)))
        pieces: list[str] = []
        rest = text
        while rest:
            size = chance.choice((1, 2, 3, 9, 40))
            pieces, rest = [*pieces, rest[:size]], rest[size:]
        shown, held = in_pieces(pieces)
        assert shown == personal.redacted(text, RULES).text
        assert held <= MOST_HELD


def test_ordinary_words_wait_for_no_more_than_their_end() -> None:
    tail = personal.Tail(example.Settings().rules())
    assert [tail.feed(piece).text for piece in ("Hello", " wor", "ld, what ", "is it?")] == [
        *("", "Hello ", "world, what ", "is it?")
    ]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"patterns": {"x": "("}}, "is no regular expression"),
        ({"patterns": {"x": "a*"}}, "matches nothing at all"),
        ({"kinds": ["mail"]}, "Invalid enum value 'mail'"),
    ],
)
def test_settings_that_could_guard_nothing_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=told):
        convert(settings, example.Settings)


# --- requests and answers -------------------------------------------------------------------------------------------


def chunk(delta: dict[str, Any], finish: str | None = None, index: int = 0) -> bytes:
    """One event of a chat's stream."""
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"id": "x", "model": "m", "choices": [choice]}).encode() + b"\n\n"


async def filtered(upstream: Any, request: Any = None) -> Answer:
    """What comes of an answer."""
    async with Harness(example.Redact(SETTINGS)) as harness:
        return await harness.request(json=request or {"model": "m"}, upstream=upstream)


def deltas(events: Sequence[Event], index: int = 0) -> list[dict[str, Any]]:
    """What a client finds in one choice of a stream."""
    choices = [choice for event in events if event.is_json for choice in json.loads(event.data)["choices"]]
    return [choice["delta"] for choice in choices if choice["index"] == index]


async def test_choices_and_kinds_of_text_are_kept_apart() -> None:
    stream = [
        chunk({"content": "I am ada@"}, index=0),
        chunk({"content": "I am bob@"}, index=1),
        chunk({"reasoning_content": "who is it? eve@"}, index=1),
        chunk({"content": "example.com"}, index=0),
        chunk({"content": "home"}, "stop", index=1),
        chunk({}, "stop", index=0),
    ]
    events = (await filtered(stream)).events
    one, two = deltas(events, 0), deltas(events, 1)
    assert "".join(delta.get("content", "") for delta in one) == "I am [email]"
    assert "".join(delta.get("content", "") for delta in two) == "I am bob@home"
    assert "".join(delta.get("reasoning_content", "") for delta in two) == "who is it? eve@"


async def test_what_is_held_back_comes_before_the_end_also_of_a_stream_that_just_stops() -> None:
    for end in ([b"data: [DONE]\n\n"], []):
        events = (await filtered([chunk({"content": "so long, ada@example"}), *end])).events
        assert "".join(delta["content"] for delta in deltas(events)) == "so long, ada@example"
        assert events[-1].data == (b"[DONE]" if end else events[-1].data)
        assert json.loads(events[1].data)["id"] == "x"


async def test_calls_of_tools_and_whatever_has_nothing_in_it_stay_byte_for_byte() -> None:
    call = {"tool_calls": [{"index": 0, "function": {"name": "mail", "arguments": '{"to": "ada@example.com"}'}}]}
    stream = [b": hello\n\n", chunk({"role": "assistant", "content": None}), chunk(call), chunk({}, "tool_calls")]
    stream += [b'data: {"choices":[],"usage":{"total_tokens":  7}}\n\n', b"data: [DONE]\n\n"]
    assert (await filtered(stream)).body == b"".join(stream)
    whole = b'{"choices": [{"message": {"content":  "fine", "tool_calls": [{"x": "ada@example.com"}]}}], "n": 1e2}'
    assert (await filtered(whole)).body == whole


async def test_an_answer_that_is_no_stream_is_looked_through_too_with_its_probabilities() -> None:
    message = {"content": SAID, "refusal": None, "tool_calls": [{"to": "ada@example.com"}]}
    answer = {"id": 7, "choices": [{"message": message, "logprobs": {"content": [{"token": "ada"}]}}, {"text": SAID}]}
    parts = {"choices": [{"message": {"content": [{"type": "text", "text": SAID}]}}]}
    changed = {"message": {**message, "content": SHOWN}, "logprobs": None}
    assert (await filtered(answer)).json == {"id": 7, "choices": [changed, {"text": SHOWN}]}
    assert (await filtered(parts)).json["choices"][0]["message"]["content"][0]["text"] == SHOWN


async def test_the_model_is_not_told_either_if_so_wanted() -> None:
    picture = {"type": "image_url", "image_url": {"url": "http://x"}}
    told = [{"role": "user", "content": SAID}, {"role": "user", "content": [{"type": "text", "text": SAID}, picture]}]
    answer = await filtered({"choices": []}, {"model": "m", "messages": told, "prompt": ["hi", SAID], "seed": 2**70})
    assert answer.sent is not None
    shown = [
        {"role": "user", "content": SHOWN},
        {"role": "user", "content": [{"type": "text", "text": SHOWN}, picture]},
    ]
    expected = {"model": "m", "messages": shown, "prompt": ["hi", SHOWN], "seed": 2**70}
    assert json.loads(answer.sent.body) == expected


@pytest.mark.parametrize(
    "upstream", [b"<html>ada@example.com", [b"data: ada@example.com\n\n"], [chunk({"content": 7})]]
)
async def test_what_cannot_be_read_is_a_failure_which_denies(upstream: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        await filtered(upstream)


# --- in a sidecar, on the manifests as they are shipped -------------------------------------------------------------


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    with shipped.started("redact", tmp_path_factory.mktemp("redact")) as found:
        yield found


def test_the_manifests_are_fine_as_they_are_shipped() -> None:
    assert problems(FOLDER) == ""


def test_a_real_stream_reaches_the_official_client_without_anything_personal(sidecar: Sidecar) -> None:
    messages: Any = [{"role": "user", "content": "Tell me!"}]
    with sidecar.client() as client:
        chunks = list(client.chat.completions.create(model="gossip", messages=messages, stream=True))
    texts = [piece.choices[0].delta.content or "" for piece in chunks if piece.choices]
    assert "".join(texts).strip() == SHOWN
    assert len([text for text in texts if text]) > 5  # it is still a stream
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert sidecar.ask("gossip").strip() == SHOWN


def test_how_much_was_taken_out_is_counted(sidecar: Sidecar) -> None:
    sidecar.ask("gossip")
    with sidecar.http() as http:
        found = next(one for one in http.get("/-/plugins").json() if one["name"] == "redact")
    assert {one["labels"]["kind"] for one in found["counters"]} == {"email", "phone", "card", "badge"}
    assert (found["failed"], found["on_error"]) == (0, "deny")
