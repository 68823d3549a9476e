"""What an operator says at run time is told once, and forgotten with its model."""

from __future__ import annotations

import pytest

from sidecar.control.clock import Clock
from sidecar.control.events import Events
from sidecar.control.fleet import Fleet
from sidecar.control.leases import RefusedError
from sidecar.control.overrides import Overrides
from sidecar.core.manifest import Model, Variant
from sidecar.core.observed import ExternalServer


def told(events: Events) -> list[tuple[str, str]]:
    return [(event.type, event.model) for event in events.since(0)]


def test_saying_it_twice_is_saying_it_once() -> None:
    events = Events(Clock())
    overrides = Overrides(events)
    assert [overrides.pin("m"), overrides.pin("m"), overrides.unpin("m"), overrides.unpin("m")] == [
        *(True, False, True, False)
    ]
    assert [overrides.drain("m"), overrides.drain("m"), overrides.undrain("m"), overrides.undrain("m")] == [
        *(True, False, True, False)
    ]
    assert told(events) == [("Pinned", "m"), ("Unpinned", "m"), ("Drained", "m"), ("Undrained", "m")]


def test_a_new_name_keeps_what_was_said_and_the_end_of_a_declaration_ends_it() -> None:
    events = Events(Clock())
    overrides = Overrides(events)
    overrides.pin("old")
    overrides.drain("gone")
    overrides.rename("old", "new")
    overrides.keep_only({"new"})
    assert (overrides.pinned, overrides.drained) == ({"new"}, set())
    assert told(events)[-1] == ("Undrained", "gone")


async def test_nobody_can_wait_for_a_drained_model_nor_be_sent_elsewhere_with_it() -> None:
    fleet = Fleet(Clock())
    url = Variant(name="v", url="http://127.0.0.1:9")
    fleet.externals["m", "v", url.url] = ExternalServer(model="m", variant="v", healthy=True)
    model = Model(variants=(url,), mode="chat")
    assert fleet.healthy_externals("m", model) == [url]
    fleet.overrides.drain("m")
    assert fleet.healthy_externals("m", model) == []
    with pytest.raises(RefusedError) as refused:
        fleet.wait("m")
    assert refused.value.code == "drained"
