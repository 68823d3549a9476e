"""What an operator says of a model on top of its manifest is respected by the planner."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.explain import explain, wanting
from sidecar.core.manifest import Declaration
from sidecar.core.observed import LEAVING, Demand, Device, ExternalServer, Observed, Server
from sidecar.core.plan import Drain, Plan, Stop
from sidecar.core.planner import plan
from tests.core.build import (
    DRAINING,
    GPU0,
    NOW,
    STARTING,
    decide,
    declare,
    external,
    gpu,
    laws,
    model,
    observe,
    ready,
    server,
    starts,
    stops,
    want,
)
from tests.core.strategies import NAMES, Scene, scenes


def said(*seen: Device | Server | Demand | ExternalServer, pinned: str = "", drained: str = "") -> Observed:
    return msgspec.structs.replace(observe(*seen), pinned=frozenset(pinned.split()), drained=frozenset(drained.split()))


def drains(decided: Plan) -> list[str]:
    return [action.model for action in decided.actions if isinstance(action, Drain)]


A, B = model(600, idle_timeout=60), model(600)
BOTH = declare(a=A, b=B)


def test_a_pinned_server_is_neither_evicted_nor_stopped_for_being_idle() -> None:
    idle = server("a", A, use=600, idle_s=500)
    seen = (gpu(GPU0, 400), idle, want("b"))
    assert stops(decide(BOTH, *seen)) == ["a"]
    decided = plan(BOTH, said(*seen, pinned="a"), NOW)
    assert decided.actions == ()
    assert decided.refusals["b"].reason == "InsufficientMemory"
    alone = (gpu(GPU0, 400), idle)
    assert stops(decide(BOTH, *alone), "Idle") == ["a"]
    assert plan(BOTH, said(*alone, pinned="a"), NOW).actions == ()


def test_explain_tells_that_a_pinned_server_is_in_the_way() -> None:
    seen = (gpu(GPU0, 400), server("a", A, use=600, idle_s=500))
    free, pinned = (explain(BOTH, said(*seen, pinned=who), "b", NOW) for who in ("", "a"))
    assert (free.refusal, [action.model for action in free.on_request]) == (None, ["a"])
    assert pinned.refusal is not None
    assert pinned.on_request == ()


def test_a_pin_on_what_is_not_declared_means_nothing() -> None:
    assert plan(BOTH, said(gpu(), want("a"), pinned="z", drained="y"), NOW) == decide(BOTH, gpu(), want("a"))


def test_a_drained_model_is_refused_and_does_not_start_by_itself() -> None:
    auto: Declaration = declare(a=model(600, auto_start=True))
    assert list(starts(plan(auto, said(gpu()), NOW))) == ["a"]
    decided = plan(auto, said(gpu(), want("a"), drained="a"), NOW)
    assert decided.actions == ()
    assert decided.refusals["a"].reason == "Drained"
    assert "sidecar undrain a" in decided.refusals["a"].message
    assert ready(decided, "a").reason == "Drained"
    story = explain(auto, wanting(said(gpu(), drained="a"), "a", NOW), "a", NOW)
    assert story.refusal is not None


def test_the_server_of_a_drained_model_drains_whatever_state_it_is_in_and_then_all_is_done() -> None:
    for state in (STARTING, server("a", A).state):
        seen = said(gpu(GPU0, 400), server("a", A, state=state, use=600, in_flight=2), drained="a")
        assert drains(plan(BOTH, seen, NOW)) == ["a"]
    leaving = said(gpu(GPU0, 400), server("a", A, state=DRAINING, use=600, in_flight=2), drained="a")
    assert plan(BOTH, leaving, NOW).actions == ()
    empty = said(gpu(GPU0, 400), server("a", A, state=DRAINING, use=600), drained="a")
    assert stops(plan(BOTH, empty, NOW), "Drained") == ["a"]


def test_the_memory_of_a_drained_server_goes_to_who_waits() -> None:
    seen = said(gpu(GPU0, 400), server("a", A, use=600, in_flight=1), want("b"), drained="a")
    decided = plan(BOTH, seen, NOW)
    assert ready(decided, "b").reason == "WaitingForMemory"
    assert "b" not in decided.refusals


def test_a_healthy_server_elsewhere_does_not_hide_that_its_model_is_drained() -> None:
    url = declare(a=model(external()))
    healthy = ExternalServer(model="a", variant="v", healthy=True)
    assert ready(decide(url, healthy), "a").reason == "Serving"
    assert ready(plan(url, said(healthy, drained="a"), NOW), "a").reason == "Drained"


@laws
@given(scene=scenes(), names=st.sets(st.sampled_from(NAMES), max_size=3))
def test_a_pin_is_the_same_as_a_pin_in_the_manifest(scene: Scene, names: set[str]) -> None:
    models = {
        name: msgspec.structs.replace(model, pinned=model.pinned or name in names)
        for name, model in scene.declared.models.items()
    }
    declared = msgspec.structs.replace(scene.declared, models=models)
    observed = msgspec.structs.replace(scene.observed, pinned=frozenset(names))
    assert plan(scene.declared, observed, NOW) == plan(declared, scene.observed, NOW)


@laws
@given(scene=scenes(), names=st.sets(st.sampled_from(NAMES), min_size=1, max_size=3))
def test_what_is_drained_is_neither_started_nor_cut_and_says_so(scene: Scene, names: set[str]) -> None:
    decided = plan(scene.declared, msgspec.structs.replace(scene.observed, drained=frozenset(names)), NOW)
    busy = {one.id for one in scene.observed.servers if one.in_flight}
    assert not names & starts(decided).keys()
    assert not [action for action in decided.actions if isinstance(action, Stop) and action.server in busy]
    for name in names & scene.declared.models.keys():
        assert ready(decided, name).reason == "Drained"
    left = {action.server for action in decided.actions if isinstance(action, Drain | Stop)}
    for one in scene.observed.servers:
        assert one.model not in names or one.state in LEAVING or one.id in left
