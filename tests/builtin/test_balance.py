"""Balancing: whose turn it is, and who is left out."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugin_sdk import Duration, End, Outcome, Request, Target
from plugin_sdk.kinds import is_inline
from sidecar.builtin.balance import Balance, Policy, Settings
from tests.support import plugin

OUT_S = 10.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def opened(clock: Clock, **config: Any) -> Balance:
    loaded = plugin(Balance, "balance", **config)
    assert isinstance(loaded.config, Settings)
    made = Balance(loaded.config)
    made.clock = clock
    await made.open()
    return made


def target(name: str, **more: Any) -> Target:
    return Target(name=name, base_url=f"http://{name}", **more)


A, B, C = target("a"), target("b"), target("c")


def choose(balance: Balance, *targets: Target, model: str = "qwen") -> str:
    chosen = balance.resolve(Request(method="POST", path="/", model=model), targets)
    assert chosen is None or chosen in targets
    return chosen.name if chosen else ""


def end(balance: Balance, name: str, *, status: int = 200, how: End = End.OK, model: str = "qwen") -> None:
    balance.finished(target(name), Outcome(model=model, end=how, status=status))


def fail(balance: Balance, name: str, times: int = 3) -> None:
    for _ in range(times):
        end(balance, name, status=0, how=End.UPSTREAM_FAILED)


async def test_in_turn(clock: Clock) -> None:
    balance = await opened(clock, policy="round_robin")
    assert "".join(choose(balance, A, B, C) for _ in range(7)) == "abcabca"


async def test_each_model_has_turns_of_its_own(clock: Clock) -> None:
    balance = await opened(clock, policy="round_robin")
    turns = [choose(balance, A, B, model=model) for model in ("x", "y", "x", "y")]
    assert turns == ["a", "a", "b", "b"]


async def test_by_weight_and_evenly_mixed(clock: Clock) -> None:
    balance = await opened(clock, policy="weighted")
    targets = target("a", weight=5), target("b"), target("c")
    assert "".join(choose(balance, *targets) for _ in range(14)) == "aabacaaaabacaa"


async def test_weight_zero_is_for_when_there_is_nobody_else(clock: Clock) -> None:
    balance = await opened(clock, policy="weighted")
    spare = target("spare", weight=0)
    assert {choose(balance, spare, A) for _ in range(10)} == {"a"}
    assert choose(balance, spare, target("a", ready=False)) == "spare"


async def test_the_least_busy_and_among_equals_the_one_that_waited_longest(clock: Clock) -> None:
    balance = await opened(clock)
    assert choose(balance, target("a", in_flight=3), target("b", in_flight=2), target("c", in_flight=2)) == "b"
    assert choose(balance, target("a", in_flight=2), target("b", in_flight=2), target("c", in_flight=3)) == "a"
    assert "".join(choose(balance, A, B, C) for _ in range(6)) == "cbacba"
    assert choose(balance, target("big", in_flight=6, weight=4), target("small", in_flight=2)) == "big"


async def test_in_the_manifests_order_the_next_one_stands_in(clock: Clock) -> None:
    balance = await opened(clock, policy="failover")
    assert [choose(balance, A, B, C) for _ in range(3)] == ["a", "a", "a"]
    assert choose(balance, target("a", ready=False), B, C) == "b"
    fail(balance, "a")
    assert choose(balance, A, B, C) == "b"
    fail(balance, "b")
    assert choose(balance, A, B, C) == "c"


async def test_none_that_is_ready_is_left_to_the_manifest(clock: Clock) -> None:
    balance = await opened(clock)
    assert choose(balance) == ""
    assert choose(balance, target("a", ready=False), target("b", ready=False)) == ""


@pytest.mark.parametrize("policy", ["round_robin", "least_busy", "weighted", "failover"])
async def test_who_fails_often_is_left_out_for_a_while_then_tried_with_one_request(
    clock: Clock, policy: Policy
) -> None:
    balance = await opened(clock, policy=policy, out_for="10s")
    choose(balance, A, B)
    fail(balance, "a", 2)
    assert "a" in {choose(balance, A, B) for _ in range(4)}
    fail(balance, "a", 1)
    assert {choose(balance, A, B) for _ in range(10)} == {"b"}
    clock.now += OUT_S
    tried = [choose(balance, A, B) for _ in range(10)]
    assert tried.count("a") == 1
    fail(balance, "a", 1)
    assert {choose(balance, A, B) for _ in range(10)} == {"b"}
    clock.now += OUT_S
    assert [choose(balance, A, B) for _ in range(10)].count("a") == 1
    end(balance, "a")
    assert [choose(balance, A, B) for _ in range(10)].count("a") >= 5


async def test_a_trial_that_nobody_hears_of_again_is_repeated(clock: Clock) -> None:
    balance = await opened(clock, policy="failover")
    choose(balance, A, B)
    fail(balance, "a")
    for _ in range(3):
        clock.now += OUT_S
        assert [choose(balance, A, B) for _ in range(3)] == ["a", "b", "b"]


async def test_a_client_that_leaves_during_a_trial_leaves_it_to_the_next(clock: Clock) -> None:
    balance = await opened(clock, policy="failover")
    choose(balance, A, B)
    fail(balance, "a")
    clock.now += OUT_S
    assert [choose(balance, A, B) for _ in range(2)] == ["a", "b"]
    end(balance, "a", how=End.CLIENT_GONE)
    assert [choose(balance, A, B) for _ in range(2)] == ["a", "b"]


async def test_answers_of_500_and_more_are_failures_and_others_are_not(clock: Clock) -> None:
    balance = await opened(clock, policy="failover", max_failures=1)
    choose(balance, A, B)
    for status, how in ((200, End.OK), (404, End.OK), (429, End.OK), (503, End.REFUSED), (0, End.CLIENT_GONE)):
        end(balance, "a", status=status, how=how)
        assert choose(balance, A, B) == "a"
    end(balance, "a", status=503)
    assert choose(balance, A, B) == "b"


async def test_successes_in_between_make_up_for_failures(clock: Clock) -> None:
    balance = await opened(clock, policy="failover")
    choose(balance, A, B)
    for _ in range(5):
        fail(balance, "a", 2)
        end(balance, "a")
    assert choose(balance, A, B) == "a"


async def test_if_all_are_left_out_the_one_whose_time_is_up_first_is_better_than_none(clock: Clock) -> None:
    balance = await opened(clock)
    choose(balance, A, B)
    fail(balance, "b")
    clock.now += 1
    fail(balance, "a")
    assert {choose(balance, A, B) for _ in range(3)} == {"b"}


async def test_nobody_is_left_out_where_the_manifest_says_never(clock: Clock) -> None:
    balance = await opened(clock, policy="failover", max_failures=0)
    choose(balance, A, B)
    fail(balance, "a", 100)
    assert choose(balance, A, B) == "a"


async def test_what_is_no_target_any_more_is_forgotten(clock: Clock) -> None:
    balance = await opened(clock)
    for number in range(1000):
        choose(balance, A, target(f"t{number}"))
    assert len(balance._models["qwen"]._known) <= 3
    end(balance, "t5", status=500)
    end(balance, "never", status=500, model="unknown")


async def test_it_works_without_settings() -> None:
    balance = Balance()
    await balance.open()
    assert choose(balance, A, B) == "a"


async def test_many_at_once_are_shared_out_evenly(clock: Clock) -> None:
    balance = await opened(clock)
    in_flight = Counter[str]()

    async def one() -> str:
        await asyncio.sleep(0)
        chosen = choose(balance, *(target(name, in_flight=in_flight[name]) for name in "abcde"))
        in_flight[chosen] += 1
        await asyncio.sleep(0)
        in_flight[chosen] -= 1
        end(balance, chosen)
        return chosen

    counts = Counter(await asyncio.gather(*(one() for _ in range(50))))
    assert counts == dict.fromkeys("abcde", 10)


def test_it_never_blocks() -> None:
    assert is_inline(Balance.resolve)
    with pytest.raises(ValueError, match="max_failures"):
        Settings(max_failures=-1)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=5).filter(any))
def test_over_one_round_each_is_chosen_as_often_as_its_weight_says(weights: list[int]) -> None:
    balance = Balance(Settings(policy="weighted", out_for=Duration(1)))
    asyncio.run(balance.open())
    targets = [target(f"t{index}", weight=weight) for index, weight in enumerate(weights)]
    counts = Counter(choose(balance, *targets) for _ in range(sum(weights)))
    assert [counts[one.name] for one in targets] == weights
