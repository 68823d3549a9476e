"""What a route plugin can choose from, and that its choice is held while it is used."""

from __future__ import annotations

import pytest

from plugin_sdk import Secret, Target
from sidecar.control.activator import Activator
from sidecar.control.clock import Clock
from sidecar.control.fleet import Fleet
from sidecar.control.live import LiveServer
from sidecar.control.targets import lease, targets
from sidecar.core.lifecycle import Cause
from sidecar.core.manifest import Model, Variant
from sidecar.core.observed import ExternalServer
from sidecar.core.plan import Start

KEY = Secret("k")
FAR = Variant(name="far", url="http://far:1/", model_name="org/m", api_key=KEY)
NEAR = Variant(name="near", url="http://near:1")
OWN = Variant(name="own", command=("serve", "{port}"), required_devices=("cpu",), memory_mb=1)
MODEL = Model(mode="chat", variants=(OWN, FAR, NEAR))
NONE: frozenset[str] = frozenset()


@pytest.fixture
async def fleet() -> Fleet:
    return Fleet(Clock())


def healthy(fleet: Fleet, *variants: Variant) -> None:
    for one in variants:
        seen = ExternalServer(model="m", variant=one.name, healthy=True, message="")
        fleet.externals["m", one.name, one.url] = seen


def ready(fleet: Fleet) -> LiveServer:
    start = Start(model="m", variant="own", devices=("cpu",), reserved_mb={"cpu": 1})
    server = LiveServer("m-1", start, OWN, fleet.clock)
    fleet.add(server, "it fits")
    fleet.move(server, Cause.BECAME_READY)
    return server


def names(fleet: Fleet, tried: frozenset[str] = NONE) -> list[str]:
    return [target.name for target in targets(fleet, "m", MODEL, tried)]


async def test_healthy_servers_are_targets_in_the_manifests_order(fleet: Fleet) -> None:
    healthy(fleet, NEAR, FAR)
    far, near = targets(fleet, "m", MODEL, NONE)
    assert far == Target(name="far", base_url="http://far:1", model="org/m", api_key=KEY)
    assert near == Target(name="near", base_url="http://near:1", model="m")
    assert names(fleet, frozenset({"far"})) == ["near"]


async def test_a_server_of_our_own_is_one_when_it_is_ready_and_else_where_there_is_no_other(fleet: Fleet) -> None:
    (cold,) = targets(fleet, "m", MODEL, NONE)
    assert (cold.name, cold.ready, cold.base_url) == ("own", False, "")
    healthy(fleet, FAR)
    assert names(fleet) == ["far"]
    server = ready(fleet)
    assert names(fleet) == ["own", "far"]
    assert targets(fleet, "m", MODEL, NONE)[0].base_url == server.base_url


async def test_what_is_in_flight_is_told(fleet: Fleet) -> None:
    healthy(fleet, FAR)
    server = ready(fleet)
    own, far = targets(fleet, "m", MODEL, NONE)
    held = [lease(fleet, "m", MODEL, one) for one in (own, far, far)]
    assert [one.in_flight for one in targets(fleet, "m", MODEL, NONE)] == [1, 2]
    assert not fleet.try_stop(server, "Evicted")
    for one in held:
        assert one is not None
        one.release()
        one.release()
    assert [one.in_flight for one in targets(fleet, "m", MODEL, NONE)] == [0, 0]
    assert not fleet.external_in_flight
    assert fleet.try_stop(server, "Evicted")


async def test_a_server_that_is_not_ready_has_to_be_waited_for(fleet: Fleet) -> None:
    (cold,) = targets(fleet, "m", MODEL, NONE)
    assert lease(fleet, "m", MODEL, cold) is None


async def test_a_choice_may_call_the_model_otherwise_and_have_a_key_and_a_time_limit(fleet: Fleet) -> None:
    healthy(fleet, FAR)
    chosen = Target(name="far", base_url="http://far:1", model="other", timeout_s=3.0)
    held = lease(fleet, "m", MODEL, chosen)
    assert held is not None
    assert (held.target.upstream_model, held.target.api_key, held.target.timeout_s) == ("other", None, 3.0)
    assert fleet.external_in_flight["m", "far"] == 1


async def test_a_target_of_the_plugins_own_is_taken_as_it_is(fleet: Fleet) -> None:
    held = lease(fleet, "m", MODEL, Target(name="mine", base_url="http://mine:1/", api_key=KEY))
    assert held is not None
    target = held.target
    assert (target.variant, target.base_url, target.upstream_model) == ("mine", "http://mine:1", "m")
    assert target.api_key == KEY
    assert not fleet.external_in_flight
    held.release()


async def test_a_name_of_ours_with_another_address_is_no_server_of_ours(fleet: Fleet) -> None:
    server = ready(fleet)
    held = lease(fleet, "m", MODEL, Target(name="own", base_url="http://elsewhere:1"))
    assert held is not None
    assert held.target.base_url == "http://elsewhere:1"
    assert server.in_flight == 0


async def test_without_a_route_those_that_were_tried_come_last(fleet: Fleet) -> None:
    healthy(fleet, FAR, NEAR)
    activator = Activator(fleet)
    order = []
    for tried in ((), ("far",), ("far", "near")):
        held = activator.try_acquire("m", MODEL, tried)
        assert held is not None
        order.append(held.target.variant)
        held.release()
    assert order == ["far", "near", "far"]
