"""The table of states: nothing in it is out of reach, and nothing is a dead end."""

from __future__ import annotations

import re

import pytest

from sidecar.core import lifecycle
from sidecar.core.lifecycle import TRANSITIONS, Cause, TransitionError, follow
from sidecar.core.observed import LEAVING, ServerState

WITH_A_PROCESS = (ServerState.STARTING, ServerState.READY, *LEAVING)


def reachable(state: ServerState) -> set[ServerState]:
    found, frontier = {state}, [state]
    while frontier:
        here = frontier.pop()
        after = {to for (of, _), to in TRANSITIONS.items() if of is here} - found
        found |= after
        frontier += after
    return found


def test_every_state_is_reached_from_stopped() -> None:
    assert reachable(ServerState.STOPPED) == set(ServerState)


@pytest.mark.parametrize("state", ServerState)
def test_every_state_has_a_way_back_to_stopped(state: ServerState) -> None:
    assert ServerState.STOPPED in reachable(state)


def test_every_cause_has_its_place() -> None:
    assert {cause for _, cause in TRANSITIONS} == set(Cause)


@pytest.mark.parametrize("state", [state for state in WITH_A_PROCESS if state is not ServerState.STOPPING])
@pytest.mark.parametrize("cause", [Cause.STOP, Cause.FAILED])
def test_a_server_is_stopped_on_its_way_to_the_end_whatever_state_it_is_in(state: ServerState, cause: Cause) -> None:
    assert follow(state, cause) is ServerState.STOPPING


def test_the_reservation_outlives_the_process_group() -> None:
    """No way leads from a state with a process to one without, but through the confirmed end of the group."""
    for (before, cause), after in TRANSITIONS.items():
        if before in WITH_A_PROCESS and after not in WITH_A_PROCESS:
            assert before is ServerState.STOPPING
            assert cause in (Cause.GONE, Cause.GONE_TO_RETRY, Cause.GONE_FOR_GOOD)


def test_a_server_that_leaves_never_serves_again() -> None:
    for (before, _), after in TRANSITIONS.items():
        assert before not in LEAVING or after is not ServerState.READY


@pytest.mark.parametrize("state", ServerState)
@pytest.mark.parametrize("cause", Cause)
def test_what_is_not_in_the_table_raises(state: ServerState, cause: Cause) -> None:
    if (state, cause) in TRANSITIONS:
        assert follow(state, cause) is TRANSITIONS[state, cause]
        return
    with pytest.raises(TransitionError, match=f"^{state.value} is not left by {cause.value}$"):
        follow(state, cause)


def test_the_diagram_is_the_table() -> None:
    assert lifecycle.__doc__ is not None
    drawn = {}
    for line in lifecycle.__doc__.split("```")[1].strip().splitlines():
        state, ways = line.split(maxsplit=1)
        for causes, after in re.findall(r"(\S[\w, ]*) ──> (\w+)", ways):
            drawn.update({(ServerState(state), Cause(cause)): ServerState(after) for cause in causes.split(", ")})
    assert drawn == TRANSITIONS
