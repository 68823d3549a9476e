"""How long a variant that fails is left alone: longer each time, with jitter, and for good after so many in a row.

Exponential, so that a crash loop costs little; with jitter, so that models that fell together do not rise together.
"""

from __future__ import annotations

import math

import msgspec

from sidecar.core.observed import Failure

STABLE_S = 60.0  # a server that has served for so long has not crashed in a loop
FIRST_S = 1.0
MOST_S = 60.0
ATTEMPTS = 10  # in a row, after which a variant is left alone: about five minutes of backoff
JITTER = 0.2  # of the delay, up and down

# Not the server's doing: such trouble passes, and a model must not be given up for it.
NOT_ITS_OWN = frozenset({"StateUnwritable", "NoPort", "PortTaken", "HostError", "InternalError"})


class Fall(msgspec.Struct, frozen=True, kw_only=True):
    """How a server failed. served_s: for how long it was ready; None = it never was."""

    model: str
    variant: str
    server: str
    reason: str
    message: str
    served_s: float | None = None


def after(before: Failure | None, fall: Fall, now: float, chance: float) -> Failure:
    """The failure to remember. before: the one so far. chance: from 0 to 1, for the jitter.

    A server that had served is forgiven once: it may be tried again at once.
    """
    stable = fall.served_s is not None and fall.served_s >= STABLE_S
    count = 1 if before is None or stable else before.count + 1
    if fall.reason in NOT_ITS_OWN:
        count = min(count, ATTEMPTS - 1)
    delay = 0.0 if fall.served_s is not None and count == 1 else min(MOST_S, FIRST_S * 2.0 ** (count - 1))
    delay *= 1 + JITTER * (2 * chance - 1)
    message = fall.message
    if count >= ATTEMPTS:
        delay = math.inf
        message = f"given up after {count} attempts, until its manifest changes or somebody starts it: {message}"
    return Failure(
        model=fall.model,
        variant=fall.variant,
        server=fall.server,
        reason=fall.reason,
        message=message,
        count=count,
        at=now,
        retry_at=now + delay,
    )
