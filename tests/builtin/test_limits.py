"""Limits: who is let through, what he is told, and what is remembered of him."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from plugin_sdk import Exchange, Reject
from plugin_sdk.kinds import is_inline
from sidecar.builtin.limits import EACH, Limit, Limits, ModelLimit, Settings
from tests.builtin.limited import Clock, Kept, ask, end, exchange, is_let_in, opened, refusal, told


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_requests_beyond_the_limit_are_refused_until_there_is_room(clock: Clock) -> None:
    limits = await opened(clock, requests_per_minute=3)
    for _ in range(3):
        ask(limits)
    refused = refusal(limits)
    assert (refused.status, refused.code, refused.retry_after_s) == (429, "rate_limit_exceeded", 20)
    expected = 'the limit of 3 requests per minute for "anna" on "qwen" is reached: try again in 20 s'
    assert refused.message == expected
    clock.now += 19.9
    assert refusal(limits).retry_after_s == pytest.approx(0.1)
    clock.now += 0.1
    ask(limits)
    refusal(limits)


async def test_a_refusal_costs_nothing(clock: Clock) -> None:
    limits = await opened(clock, requests_per_minute=1)
    ask(limits)
    for _ in range(10):
        end(limits, _refused(limits), 100)
    clock.now += 60
    ask(limits)


def _refused(limits: Limits) -> Exchange:
    asked = exchange()
    refusal(limits, asked)
    return asked


async def test_no_more_than_a_minutes_worth_is_saved_up(clock: Clock) -> None:
    limits = await opened(clock, requests_per_minute=2)
    clock.now += 3600
    ask(limits)
    ask(limits)
    refusal(limits)


async def test_tokens_count_when_they_are_known_and_a_debt_has_to_be_paid_off(clock: Clock) -> None:
    limits = await opened(clock, tokens_per_minute=600)
    first, second = ask(limits), ask(limits)
    end(limits, first, 500)
    ask(limits)
    end(limits, second, 400)
    refused = refusal(limits)
    assert "600 tokens per minute" in refused.message
    assert refused.retry_after_s == pytest.approx(30.1)
    clock.now += 30.2
    ask(limits)


async def test_an_answer_without_usage_costs_no_tokens(clock: Clock) -> None:
    limits = await opened(clock, tokens_per_minute=1)
    end(limits, ask(limits), None)
    end(limits, ask(limits), 1)
    refusal(limits)


async def test_every_principal_and_model_has_limits_of_its_own(clock: Clock) -> None:
    limits = await opened(clock, requests_per_minute=1)
    ask(limits, exchange("anna", "qwen"))
    ask(limits, exchange("anna", "llama"))
    ask(limits, exchange("bert", "qwen"))
    refusal(limits, exchange("anna", "llama"))


async def test_a_principals_own_limits_go_before_his_pattern_and_that_before_the_models(clock: Clock) -> None:
    limits = await opened(
        clock,
        requests_per_minute=1,
        principals={"team-*": {"requests_per_minute": 3}},
        models={"big-*": {"requests_per_minute": 2, "tokens_per_minute": 50}},
    )

    def limit(who: str, model: str, **attributes: Any) -> tuple[str, str]:
        headers = told(limits, ask(limits, exchange(who, model, **attributes)))
        return headers["x-ratelimit-limit-requests"], headers["x-ratelimit-limit-tokens"]

    assert limit("anna", "qwen") == ("1", "1000000")
    assert limit("anna", "big-1") == ("2", "50")
    assert limit("team-a", "big-1") == ("3", "50")
    assert limit("team-a", "big-2", requests_per_minute="4", tokens_per_minute=9) == ("4", "9")
    assert limit("team-b", "big-2", requests_per_minute="many", tokens_per_minute=True) == ("3", "50")


async def test_what_is_said_of_a_caller_anew_holds_at_once_for_what_he_has_used(clock: Clock) -> None:
    limits = await opened(clock, requests_per_minute=5)
    ask(limits, exchange("anna"))
    more = told(limits, ask(limits, exchange("anna", requests_per_minute=10)))
    assert (more["x-ratelimit-limit-requests"], more["x-ratelimit-remaining-requests"]) == ("10", "8")
    less = told(limits, ask(limits, exchange("anna")))
    assert (less["x-ratelimit-limit-requests"], less["x-ratelimit-remaining-requests"]) == ("5", "2")


async def test_of_names_that_share_a_bucket_each_has_the_limits_of_its_own_pattern(clock: Clock) -> None:
    limits = await opened(clock, requests_per_minute=9, models={"big-*": {"requests_per_minute": 2}})

    def made_up(model: str) -> Exchange:
        asked = exchange("anna", model)
        asked.request = msgspec.structs.replace(asked.request, listed=False)
        return asked

    shown = [told(limits, ask(limits, made_up(model))) for model in ("small-1", "big-1", "small-2")]
    assert [headers["x-ratelimit-limit-requests"] for headers in shown] == ["9", "2", "9"]
    assert [headers["x-ratelimit-remaining-requests"] for headers in shown] == ["8", "0", "6"]


async def test_an_answer_is_told_by_the_limits_that_its_request_met(clock: Clock) -> None:
    limits = await opened(clock, requests_per_minute=5)
    asked = ask(limits, exchange("anna", requests_per_minute=10))
    ask(limits, exchange("anna"))
    assert told(limits, asked)["x-ratelimit-limit-requests"] == "10"


async def test_the_answer_tells_where_the_caller_stands(clock: Clock) -> None:
    limits = await opened(clock, requests_per_minute=600, tokens_per_minute=6000)
    asked = ask(limits)
    end(limits, ask(limits), 150)
    assert told(limits, asked) == {
        "x-ratelimit-limit-requests": "600",
        "x-ratelimit-remaining-requests": "598",
        "x-ratelimit-reset-requests": "200ms",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "5850",
        "x-ratelimit-reset-tokens": "1.5s",
    }


async def test_a_refusal_tells_the_same(clock: Clock) -> None:
    limits = await opened(clock, tokens_per_minute=60, requests_per_minute=60)
    end(limits, ask(limits), 420)
    headers = refusal(limits).headers
    assert headers["x-ratelimit-remaining-tokens"] == "0"
    assert headers["x-ratelimit-reset-tokens"] == "7m0s"
    assert headers["x-ratelimit-remaining-requests"] == "59"


async def test_what_a_server_says_of_limits_gives_way_and_all_else_stays(clock: Clock) -> None:
    limits = await opened(clock, requests_per_minute=9, tokens_per_minute=0)
    upstream = ((b"X-RateLimit-Limit-Requests", b"7"), (b"Content-Type", b"x"), (b"Set-Cookie", b"a"))
    asked = ask(limits)
    headers = told(limits, asked, *upstream)
    assert headers == {
        "Content-Type": "x",
        "Set-Cookie": "a",
        "x-ratelimit-limit-requests": "9",
        "x-ratelimit-remaining-requests": "8",
        "x-ratelimit-reset-requests": "6.667s",
    }


async def test_zero_is_no_limit(clock: Clock) -> None:
    limits = await opened(clock, requests_per_minute=0, tokens_per_minute=0)
    for _ in range(1000):
        end(limits, ask(limits), 10**9)
    assert told(limits, ask(limits)) == {}


async def test_it_works_without_settings() -> None:
    limits = Limits()
    await limits.open()
    asked = ask(limits)
    assert told(limits, asked)["x-ratelimit-limit-requests"] == "600"


async def test_those_that_have_their_limits_whole_again_are_forgotten(clock: Clock) -> None:
    limits = await opened(clock, requests_per_minute=1, most=100)
    for number in range(1000):
        end(limits, ask(limits, exchange(f"guest-{number}")), None)
    clock.now += 30
    ask(limits, exchange("anna"))
    assert len(limits._buckets) == 1001
    clock.now += 31
    for _ in range(1000):
        refusal(limits, exchange("anna"))
    assert len(limits._buckets) <= 100


async def test_whoever_is_over_his_limit_is_not_forgotten_whatever_else_he_and_others_ask_for(clock: Clock) -> None:
    limits = await opened(clock, requests_per_minute=2, most=50)
    ask(limits)
    ask(limits)
    let_in = sum(is_let_in(limits, exchange("anna", f"model-{number}")) for number in range(3000))
    assert let_in == EACH - 1 + 2  # those names have a bucket each, all others share one
    for number in range(100):
        ask(limits, exchange(f"guest-{number}"))
    refusal(limits)
    assert len(limits._buckets) == EACH + 1 + 100


async def test_names_that_nobody_lists_share_a_bucket(clock: Clock) -> None:
    limits = await opened(clock, requests_per_minute=2)
    for number in range(4):
        made_up = exchange("anna", f"no-such-{number}")
        made_up.request = msgspec.structs.replace(made_up.request, listed=False)
        assert is_let_in(limits, made_up) == (number < 2)
    ask(limits)


async def test_who_has_made_up_many_names_has_buckets_for_others_later(clock: Clock) -> None:
    limits = await opened(clock, requests_per_minute=1)
    for number in range(EACH):
        end(limits, ask(limits, exchange("anna", f"no-such-{number}")), None)
    ask(limits, exchange("anna", "shared"))
    refusal(limits, exchange("anna", "shared-too"))
    clock.now += 60
    ask(limits, exchange("anna", "qwen"))
    ask(limits, exchange("anna", "llama"))


async def test_while_a_request_is_in_flight_its_bucket_is_not_forgotten(clock: Clock) -> None:
    limits = await opened(clock, tokens_per_minute=60, concurrent=2, most=1)
    long, other = ask(limits), ask(limits, exchange("bert"))
    clock.now += 600
    for _ in range(9):
        end(limits, ask(limits, exchange("carl")), None)
    assert len(limits._buckets) == 3
    ask(limits)
    assert "in flight" in refusal(limits).message
    end(limits, long, 120)
    assert "tokens" in refusal(limits).message
    end(limits, other, None)
    ask(limits, exchange("carl"))
    assert len(limits._buckets) == 2


async def test_a_reload_is_no_way_around_the_limits_and_a_new_one_holds_at_once(clock: Clock) -> None:
    services = Kept()
    before = await opened(clock, services, requests_per_minute=2)
    ask(before)
    asked = ask(before)
    after = await opened(clock, services, requests_per_minute=3)
    ask(after)
    refusal(after)
    end(before, asked, 2_000_000)
    assert "tokens" in refusal(after).message


async def test_many_at_once_get_exactly_the_limit(clock: Clock) -> None:
    limits = await opened(clock, requests_per_minute=30)

    async def one(number: int) -> bool:
        asked = exchange(f"team-{number % 2}")
        await asyncio.sleep(0)
        try:
            limits.on_request(asked)
        except Reject:
            return False
        await asyncio.sleep(0)
        return True

    assert sum(await asyncio.gather(*map(one, range(100)))) == 60


def test_it_never_blocks() -> None:
    assert all(is_inline(getattr(Limits, name)) for name in ("on_request", "on_response", "on_end"))


@pytest.mark.parametrize(
    "made",
    [
        lambda: Limit(-1),
        lambda: Limit(concurrent=-1),
        lambda: ModelLimit(concurrent_total=-1),
        lambda: Settings(tokens_per_minute=-1),
        lambda: Settings(concurrent=-1),
        lambda: Settings(concurrent_total=-1),
        lambda: Settings(most=0),
    ],
)
def test_limits_that_make_no_sense_are_refused_at_load(made: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="more"):
        made()
