"""Which requests are traced: OTEL_TRACES_SAMPLER, decided from a number before there is anything to trace with.

The ratio is compared as the SDK does it (the last 64 bits of the trace's id), so that both say the same of one trace.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from sidecar.mechanism.tracecontext import Caller

_ALL = 1 << 64  # more than any 64 bits
_PREFIX = "parentbased_"


class SamplerError(ValueError):
    """OTEL_TRACES_SAMPLER or its argument is none that is known."""


class Sampler(msgspec.Struct, frozen=True):
    """bound: traces are recorded whose last 64 bits are below it. by_parent: the caller's choice comes first."""

    bound: int
    by_parent: bool

    def keeps(self, caller: Caller) -> bool:
        """Whether a request of a caller's trace is recorded."""
        if self.by_parent:
            return caller.sampled
        return int(caller.trace_id[16:], 16) < self.bound

    @property
    def never(self) -> bool:
        """Whether nothing can be recorded, whatever comes."""
        return self.bound == 0 and not self.by_parent


NEVER = Sampler(0, by_parent=False)
ALWAYS = Sampler(_ALL, by_parent=True)


def sampler_of(environment: Mapping[str, str]) -> Sampler:
    """What OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG ask for. Raises SamplerError."""
    name = environment.get("OTEL_TRACES_SAMPLER", "").strip() or "parentbased_always_on"
    by_parent = name.startswith(_PREFIX)
    match name.removeprefix(_PREFIX):
        case "always_on":
            return Sampler(_ALL, by_parent)
        case "always_off":
            return Sampler(0, by_parent)
        case "traceidratio":
            return Sampler(round(_ratio(environment) * _ALL), by_parent)
    kinds = ("always_on", "always_off", "traceidratio")
    known = ", ".join([*kinds, *(_PREFIX + kind for kind in kinds)])
    raise SamplerError(f"OTEL_TRACES_SAMPLER: there is no sampler {name}; known: {known}")


def _ratio(environment: Mapping[str, str]) -> float:
    told = environment.get("OTEL_TRACES_SAMPLER_ARG", "").strip() or "1.0"
    try:
        ratio = float(told)
    except ValueError:
        ratio = -1.0
    if not 0.0 <= ratio <= 1.0:
        raise SamplerError(f"OTEL_TRACES_SAMPLER_ARG: {told} is not a ratio from 0 to 1")
    return ratio
