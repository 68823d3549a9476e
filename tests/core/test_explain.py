"""The whole story of a model."""

from __future__ import annotations

import math

import msgspec

from sidecar.core.explain import Story, explain, wanting
from sidecar.core.manifest import Declaration
from sidecar.core.observed import Demand, Device, ExternalServer, Failure, Measured, Server
from sidecar.core.plan import Start, Stop
from sidecar.core.planner import plan
from tests.core.build import NOW, cpu, declare, external, failure, gpu, model, observe, ready, server, variant, want

TWO = model(variant(500, name="gpu"), variant(500, "cpu", name="cpu"))


def story(declared: Declaration, *seen: Device | Server | Demand | Failure | ExternalServer, name: str = "a") -> Story:
    return explain(declared, observe(*seen), name, NOW)


def verdicts(told: Story) -> dict[str, str]:
    return {one.name: one.verdict for one in told.variants}


def test_a_cold_model_tells_where_it_would_start() -> None:
    told = story(declare(a=TWO), gpu(), cpu())
    assert [one.reason for one in told.conditions] == ["Stopped"]
    assert verdicts(told) == {"gpu": "fits", "cpu": "fits"}
    assert told.variants[0].reason == "fits on gpu:0"
    assert told.variants[0].remedy == ""
    (start,) = told.on_request
    assert isinstance(start, Start)
    assert start.variant == "gpu"
    assert told.refusal is None


def test_a_running_variant_is_told_with_its_state_and_what_was_measured_of_it() -> None:
    seen = observe(gpu(free=500), cpu(), server("a", TWO))
    measured = Measured(model="a", variant="gpu", fingerprint="", peak_mb={"gpu": 450}, load_s=7.5)
    told = explain(declare(a=TWO), msgspec.structs.replace(seen, measured=(measured,)), "a", NOW)
    running = told.variants[0]
    assert (running.verdict, running.reason) == ("running", "ready on gpu:0")
    assert (running.declared_mb, running.peak_mb, running.load_s) == ({"gpu": 500}, {"gpu": 450}, 7.5)
    assert verdicts(told)["cpu"] == "fits"


def test_a_variant_that_does_not_fit_tells_why_and_what_would_help() -> None:
    lacking = story(declare(a=TWO), gpu(free=100), cpu()).variants[0]
    assert lacking.verdict == "does_not_fit"
    assert "400 MB too little" in lacking.reason
    assert lacking.remedy == "free 400 MB on gpu:0; held by 900 MB used by others"


def test_a_variant_that_backs_off_tells_the_first_line_of_its_failure() -> None:
    failed = msgspec.structs.replace(failure("a", math.inf, variant="gpu"), message="exit code 1\nno such file")
    told = story(declare(a=TWO), gpu(), cpu(), failed)
    assert verdicts(told)["gpu"] == "backs_off"
    assert told.variants[0].reason == "variant gpu failed (Exited), given up: exit code 1"
    past = failure("a", NOW, variant="gpu")
    assert verdicts(story(declare(a=TWO), gpu(), cpu(), past))["gpu"] == "fits"


def test_external_variants_tell_their_health() -> None:
    declared = declare(a=model(external("url")))
    assert story(declared).variants[0].reason == "http://127.0.0.1:9000 was not probed yet"
    probe = ExternalServer(model="a", variant="url", healthy=False, message="connection refused")
    sick = story(declared, probe).variants[0]
    assert (sick.verdict, sick.reason) == ("unhealthy", "http://127.0.0.1:9000 connection refused")
    well = story(declared, msgspec.structs.replace(probe, healthy=True, message="")).variants[0]
    assert (well.verdict, well.reason) == ("healthy", "http://127.0.0.1:9000")


def test_a_request_is_told_with_its_victims() -> None:
    declared = declare(a=model(800), idle=model(500))
    (stop,) = story(declared, gpu(free=500), server("idle", declared.models["idle"])).on_request
    assert isinstance(stop, Stop)
    assert stop.message == "makes room for a (variant v)"


def test_a_request_that_would_be_refused_tells_why_though_nobody_asks() -> None:
    told = story(declare(a=model(1500)), gpu())
    assert told.refusal is not None
    assert told.refusal.reason == "Unplaceable"


def test_nothing_is_changed_for_a_model_that_somebody_waits_for() -> None:
    seen = observe(gpu(), want("a", NOW - 5))
    assert wanting(seen, "a", NOW) is seen
    assert wanting(observe(gpu()), "a", NOW).demands == (Demand("a", NOW),)


def test_the_conditions_are_those_of_the_plan() -> None:
    declared, seen = declare(a=TWO), observe(gpu(), cpu(), want("a"))
    assert explain(declared, seen, "a", NOW).conditions == (ready(plan(declared, seen, NOW), "a"),)
