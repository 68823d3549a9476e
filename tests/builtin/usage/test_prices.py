"""What requests and loaded servers cost, to the last nano."""

from __future__ import annotations

import datetime
import time
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin_sdk import End
from plugin_sdk import Usage as Tokens
from sidecar.builtin.usage.prices import MOST_NANOS, MOST_TOKENS, NANO, PriceList, Prices
from sidecar.builtin.usage.settings import Price, Settings, Tier
from sidecar.builtin.usage.writer import AT_ONCE
from tests.builtin.usage.samples import DAY_S, HOUR_S, MIDNIGHT_S, outcome, price, tier

DAY = datetime.date(2026, 11, 25)


def cost(*prices: Price, **more: Any) -> int | None:
    """The nanos of one request."""
    return PriceList(prices).cost(outcome(**more))


def used(**tokens: Any) -> Tokens:
    return Tokens(**tokens)


def test_tokens_of_each_sort_have_their_price() -> None:
    one = price(input="0.15", output="0.60", cached="0.03", reasoning="1.20")
    told = used(input_tokens=1000, cached_tokens=400, output_tokens=100, reasoning_tokens=40)
    assert cost(one, usage=told) == 600 * 150 + 400 * 30 + 60 * 600 + 40 * 1200


def test_cached_tokens_cost_as_input_and_reasoning_as_output_unless_told() -> None:
    told = used(input_tokens=1000, cached_tokens=400, output_tokens=100, reasoning_tokens=40)
    assert cost(price(input="0.15", output="0.60"), usage=told) == 1000 * 150 + 100 * 600
    assert cost(price(input="0.15", output="0.60", cached="0"), usage=told) == 600 * 150 + 100 * 600


@pytest.mark.parametrize(
    ("prompt", "nanos"), [(1000, 1000), (128_000, 128_000), (128_001, 256_002), (200_000, 400_000), (200_001, 800_004)]
)
def test_a_long_prompt_is_paid_for_by_its_tier_as_a_whole(prompt: int, nanos: int) -> None:
    tiers = (tier(200_000, input="0.004"), tier(128_000, input="0.002"))
    assert cost(price(input="0.001", tiers=tiers), tokens=(prompt, 0)) == nanos


def test_what_a_tier_leaves_out_is_as_without_it() -> None:
    tiers = (tier(10, input="2"),)
    told = used(input_tokens=100, cached_tokens=40, output_tokens=10)
    assert cost(price(input="1", output="3", tiers=tiers), usage=told) == 100 * 2000 + 10 * 3000
    assert cost(price(input="1", output="3", cached="0.5", tiers=tiers), usage=told) == 60 * 2000 + 40 * 500 + 10 * 3000


def test_half_a_nano_goes_to_the_even_one() -> None:
    half = price(input="0.0005")  # half a nano for each token
    assert [cost(half, tokens=(count, 0)) for count in (0, 1, 2, 3, 4, 5)] == [0, 0, 1, 2, 2, 2]


prices = st.decimals(0, 1000, places=9)
counts = st.integers(0, 10_000_000)


@given(prices, prices, counts, counts)
def test_it_is_what_exact_fractions_give(given: Decimal, made: Decimal, prompt: int, answer: int) -> None:
    exact = Fraction(given) * prompt * NANO / 10**6 + Fraction(made) * answer * NANO / 10**6
    assert cost(price(input=given, output=made), tokens=(prompt, answer)) == round(exact)


def test_the_first_pattern_that_fits_counts() -> None:
    both = (price("qwen3-*", input="1"), price("*", input="2"))
    assert cost(*both, model="qwen3-8b", tokens=(1, 0)) == 1000
    assert cost(*both, model="llama", tokens=(1, 0)) == 2000
    assert cost(both[0], model="llama", tokens=(1, 0)) is None


def test_patterns_mind_upper_and_lower_case() -> None:
    assert cost(price("Qwen*", input="1"), model="qwen", tokens=(1, 0)) is None


@pytest.mark.parametrize(("at_s", "nanos"), [(-1.0, 1000), (0.0, 2000), (DAY_S - 1.0, 2000), (DAY_S + 0.0, 3000)])
def test_a_price_holds_from_its_day_on_wherever_it_stands_in_the_list(at_s: float, nanos: int) -> None:
    dated = [
        price("qwen", input="3", since=DAY + datetime.timedelta(1)),
        price("qwen", input="1"),
        price("qwen", input="2", since=DAY),
    ]
    assert cost(*dated, tokens=(1, 0), at_s=MIDNIGHT_S + at_s) == nanos


def test_before_its_day_the_next_pattern_counts() -> None:
    both = (price("qwen", input="1", since=DAY), price("*", input="2"))
    assert cost(*both, tokens=(1, 0), at_s=MIDNIGHT_S - 1) == 2000


def test_a_request_that_was_served_without_a_word_of_tokens_has_no_known_cost() -> None:
    assert cost(price(input="1"), tokens=None) is None
    assert cost(price(input="0", tiers=(tier(10, output="1"),)), tokens=None) is None


@pytest.mark.parametrize("how", [{"end": End.REFUSED, "status": 429}, {"status": 500}, {"end": End.UPSTREAM_FAILED}])
def test_one_that_was_not_served_and_used_nothing_costs_nothing(how: dict[str, Any]) -> None:
    assert cost(price(input="1", request="1"), tokens=None, **how) == 0


def test_tokens_that_were_used_are_paid_for_however_the_request_ended() -> None:
    assert cost(price(input="1", request="1"), tokens=(5, 0), end=End.CLIENT_GONE) == 5000


def test_a_request_that_was_served_may_have_a_price_of_its_own() -> None:
    assert cost(price(request="0.002"), tokens=None) == 2_000_000
    assert cost(price(request="0.002", input="1"), tokens=(3, 0)) == 2_003_000


def test_without_prices_nothing_has_a_cost() -> None:
    assert cost(tokens=(5, 5)) is None


def test_counts_that_cannot_be_are_not_paid_for() -> None:
    one = price(input="1", output="1", cached="2")
    assert cost(one, usage=used(input_tokens=MOST_TOKENS + 1, output_tokens=-1)) == 0
    assert cost(one, usage=used(input_tokens=10, cached_tokens=50)) == 10 * 2000  # more cached than there are


def test_no_request_costs_so_much_that_sums_would_overflow() -> None:
    dearest = price(input="10000000", request="10000000")
    assert cost(dearest, tokens=(MOST_TOKENS, 0)) == MOST_NANOS
    assert MOST_NANOS * AT_ONCE < 2**63


# --- loaded servers -------------------------------------------------------------------------------------------------


def test_loaded_time_is_cut_at_hours() -> None:
    pieces = list(Prices([(0.0, PriceList([price(hour="3.6")]))]).loaded("m", MIDNIGHT_S - 10, MIDNIGHT_S + HOUR_S + 5))
    assert [(piece.hour_s - MIDNIGHT_S, piece.loaded_ms) for piece in pieces] == [
        (-HOUR_S, 10_000),
        (0, 3_600_000),
        (HOUR_S, 5000),
    ]
    assert [piece.cost for piece in pieces] == [10 * 10**6, 3_600_000_000, 5 * 10**6]


def test_loaded_time_is_cut_where_the_price_changes_and_the_old_price_holds_until_then() -> None:
    lists = [(0.0, PriceList([price(hour="3.6")])), (MIDNIGHT_S + 60, PriceList([price(hour="7.2")]))]
    pieces = list(Prices(lists).loaded("m", MIDNIGHT_S, MIDNIGHT_S + 120))
    assert [(piece.loaded_ms, piece.cost) for piece in pieces] == [(60_000, 60 * 10**6), (60_000, 120 * 10**6)]


def test_before_the_first_list_was_known_it_holds_already() -> None:
    pieces = list(Prices([(MIDNIGHT_S, PriceList([price(hour="3.6")]))]).loaded("m", MIDNIGHT_S - 60, MIDNIGHT_S))
    assert [piece.cost for piece in pieces] == [60 * 10**6]


def test_a_time_of_no_length_has_no_pieces() -> None:
    assert list(Prices([(0.0, PriceList([]))]).loaded("m", MIDNIGHT_S, MIDNIGHT_S)) == []


def test_a_model_without_a_price_is_loaded_for_an_unknown_cost() -> None:
    [piece] = Prices([(0.0, PriceList([price("other")]))]).loaded("m", MIDNIGHT_S, MIDNIGHT_S + 1)
    assert (piece.loaded_ms, piece.cost) == (1000, None)


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: price(input="-1"), "input must be a price from 0"),
        (lambda: price(output="NaN"), "output must be a price from 0"),
        (lambda: price(hour="Infinity"), "hour must be a price from 0"),
        (lambda: price(cached="0.0000000001"), "cached may have 9 decimals"),
        (lambda: price(""), "model must be a name or a pattern"),
        (lambda: price(tiers=(tier(5), tier(5))), "two tiers begin above the same number"),
        (lambda: Tier(above=0), "above must be 1 token or more"),
        (lambda: Settings(prices=(price("m"), price("m"))), '"m" has two prices since the same time'),
        (lambda: Settings(currency="euro"), "currency in capitals"),
    ],
)
def test_what_is_no_price_is_refused(made: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        made()


def test_a_long_list_is_looked_through_once() -> None:
    prices = tuple(price(f"m{number}") for number in range(20_000))
    began = time.monotonic()
    Settings(prices=prices)
    assert time.monotonic() - began < 5  # each against each other takes four times as long
