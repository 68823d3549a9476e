"""The states of a model's server, and every way from one to another, with its cause: what is not in the table is a bug.

```
stopped   start ──> starting
starting  became_ready ──> ready    drain ──> draining    stop, failed ──> stopping
ready                               drain ──> draining    stop, exited, failed ──> stopping
draining                                                  stop, exited, failed ──> stopping
stopping  gone ──> stopped          gone_to_retry ──> backoff               gone_for_good ──> failed
backoff   start ──> starting        reset ──> stopped
failed    reset ──> stopped
```
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType

from sidecar.core.observed import ServerState


class Cause(enum.Enum):
    """Why a state changes."""

    START = "start"  # the planner has placed it, and its reservation stands
    BECAME_READY = "became_ready"  # the server that we started answers on its port
    DRAIN = "drain"  # admission closes; what is in flight finishes
    STOP = "stop"  # idle, evicted, drained, or by a person's word
    FAILED = "failed"  # it did not come up
    EXITED = "exited"  # it ended by itself
    GONE = "gone"  # its process group is confirmed gone
    GONE_TO_RETRY = "gone_to_retry"  # the same, and it is tried again after a while
    GONE_FOR_GOOD = "gone_for_good"  # the same, and it has failed too often in a row
    RESET = "reset"  # a changed manifest, or a person, gives it a fresh try


_STATES = ServerState

TRANSITIONS: Mapping[tuple[ServerState, Cause], ServerState] = MappingProxyType(
    {
        (_STATES.STOPPED, Cause.START): _STATES.STARTING,
        (_STATES.BACKOFF, Cause.START): _STATES.STARTING,
        (_STATES.STARTING, Cause.BECAME_READY): _STATES.READY,
        (_STATES.STARTING, Cause.DRAIN): _STATES.DRAINING,
        (_STATES.STARTING, Cause.STOP): _STATES.STOPPING,
        (_STATES.STARTING, Cause.FAILED): _STATES.STOPPING,
        (_STATES.READY, Cause.DRAIN): _STATES.DRAINING,
        (_STATES.READY, Cause.STOP): _STATES.STOPPING,
        (_STATES.READY, Cause.EXITED): _STATES.STOPPING,
        (_STATES.READY, Cause.FAILED): _STATES.STOPPING,  # the sidecar's own part in it broke
        (_STATES.DRAINING, Cause.STOP): _STATES.STOPPING,
        (_STATES.DRAINING, Cause.EXITED): _STATES.STOPPING,
        (_STATES.DRAINING, Cause.FAILED): _STATES.STOPPING,
        (_STATES.STOPPING, Cause.GONE): _STATES.STOPPED,
        (_STATES.STOPPING, Cause.GONE_TO_RETRY): _STATES.BACKOFF,
        (_STATES.STOPPING, Cause.GONE_FOR_GOOD): _STATES.FAILED,
        (_STATES.BACKOFF, Cause.RESET): _STATES.STOPPED,
        (_STATES.FAILED, Cause.RESET): _STATES.STOPPED,
    }
)


class TransitionError(Exception):
    """A state was to be left in a way that the table does not have."""


def follow(state: ServerState, cause: Cause) -> ServerState:
    """The state after `cause`. Raises TransitionError if there is no such way."""
    try:
        return TRANSITIONS[state, cause]
    except KeyError:
        raise TransitionError(f"{state.value} is not left by {cause.value}") from None
