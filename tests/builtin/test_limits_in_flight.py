"""Limits of requests in flight: who is let through, and what is given back."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from plugin_sdk import Outcome
from sidecar.builtin.limits import Settings
from tests.builtin.limited import Clock, Kept, ask, end, exchange, is_let_in, opened, refusal


async def test_requests_in_flight_beyond_the_limit_are_refused_until_one_has_ended() -> None:
    limits = await opened(Clock(), concurrent=2)
    first, _ = ask(limits), ask(limits)
    refused = refusal(limits)
    assert (refused.status, refused.code, refused.retry_after_s) == (429, "concurrency_limit_exceeded", 1)
    expected = 'the limit of 2 requests in flight for "anna" on "qwen" is reached: try again when one of them has ended'
    assert refused.message == expected
    assert refused.headers["x-ratelimit-remaining-requests"] == "598"  # a refusal costs none
    ask(limits, exchange("anna", "llama"))
    ask(limits, exchange("bert", "qwen"))
    end(limits, first, None)
    ask(limits)
    refusal(limits)


async def test_an_end_gives_back_what_its_own_request_took_and_that_once() -> None:
    limits = await opened(Clock(), concurrent=1, concurrent_total=1, requests_per_minute=0)
    never_begun, refused, asked = exchange(), exchange(), ask(limits)
    refusal(limits, refused)
    for other in (never_begun, refused):
        limits.on_end(other, Outcome(model="qwen", status=499))
    refusal(limits)
    for _ in range(3):
        limits.on_end(asked, Outcome(model="qwen", status=502))
    ask(limits)
    refusal(limits)


async def test_all_callers_of_a_model_share_its_total() -> None:
    limits = await opened(Clock(), models={"big": {"concurrent_total": 2}, "huge-*": {"concurrent_total": 1}})
    first, _ = ask(limits, exchange("anna", "big")), ask(limits, exchange("bert", "big"))
    refused = refusal(limits, exchange("carl", "big"))
    assert (refused.status, refused.code, refused.retry_after_s) == (429, "concurrency_limit_exceeded", 1)
    assert 'the limit of 2 requests in flight for all callers together on "big"' in refused.message
    for model in ("huge-1", "huge-2"):
        ask(limits, exchange("anna", model))
        refusal(limits, exchange("bert", model))
    for _ in range(9):
        ask(limits)
    end(limits, first, 10)
    ask(limits, exchange("carl", "big"))
    refusal(limits, exchange("anna", "big"))


async def test_of_a_callers_and_all_callers_limit_the_lower_one_holds() -> None:
    limits = await opened(Clock(), concurrent=2, concurrent_total=3)
    ask(limits)
    ask(limits)
    assert '"anna"' in refusal(limits).message
    ask(limits, exchange("bert"))
    assert "all callers" in refusal(limits, exchange("bert")).message


async def test_requests_in_flight_are_limited_by_attribute_pattern_and_model_as_all_else() -> None:
    limits = await opened(
        Clock(), concurrent=1, principals={"team-*": {"concurrent": 3}}, models={"big-*": {"concurrent": 2}}
    )

    def let_in(who: str, model: str, **attributes: Any) -> int:
        return sum(is_let_in(limits, exchange(who, model, **attributes)) for _ in range(9))

    assert let_in("anna", "qwen") == 1
    assert let_in("anna", "big-1") == 2
    assert let_in("team-a", "big-1") == 3
    assert let_in("team-a", "big-2", concurrent="4") == 4
    assert let_in("team-b", "big-2", concurrent=0) == 9
    assert let_in("team-c", "big-2", concurrent="many") == 3


async def test_what_is_in_flight_over_reloads_counts_and_is_given_back() -> None:
    services = Kept()
    without = await opened(Clock(), services)
    first, second = ask(without), ask(without, exchange("bert"))
    limited = await opened(Clock(), services, concurrent=1, concurrent_total=3)
    refusal(limited)
    third = ask(limited, exchange("carl"))
    assert "all callers" in refusal(limited, exchange("dora")).message
    without_again = await opened(Clock(), services)
    for generation, asked in ((without, first), (without, second), (limited, third)):
        end(generation, asked, None)
    end(without_again, ask(without_again), None)
    limited_again = await opened(Clock(), services, concurrent=1, concurrent_total=3)
    assert [is_let_in(limited_again, exchange(who)) for who in "ab" * 2 + "cd"] == [
        True,
        True,
        False,
        False,
        True,
        False,
    ]


async def test_nothing_is_remembered_of_models_that_nobody_asks_for_any_more() -> None:
    limits = await opened(Clock(), concurrent_total=1)
    for number in range(300):
        made_up = exchange("anna", f"no-such-{number}")
        made_up.request = msgspec.structs.replace(made_up.request, listed=False)
        end(limits, ask(limits, made_up), None)
    assert len(limits._buckets._traffic) <= 2


def test_a_total_is_no_limit_of_a_principal() -> None:
    with pytest.raises(msgspec.ValidationError, match="concurrent_total"):
        msgspec.convert({"principals": {"*": {"concurrent_total": 1}}}, Settings)
