"""The whole story of one model: where each variant stands, why, what would help, and what a request would set off."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from sidecar.core.ledger import Ledger
from sidecar.core.manifest import Declaration, Model, Variant
from sidecar.core.observed import Condition, Demand, Failure, Observed, Server
from sidecar.core.overrides import with_pins
from sidecar.core.placement import Inventory
from sidecar.core.plan import Action, Refusal
from sidecar.core.planner import plan
from sidecar.core.reasons import Reasons, failed
from sidecar.core.room import Room


class VariantStory(msgspec.Struct, frozen=True, kw_only=True):
    """One variant. verdict: running, healthy, unhealthy, fits, backs_off, does_not_fit or elsewhere (on other nodes).

    reason: why it is so. remedy: what would help, "" where nothing need. declared_mb / peak_mb: by device requirement.
    load_s: measured; 0 = it never got ready.
    """

    name: str
    verdict: str
    reason: str
    remedy: str = ""
    declared_mb: dict[str, int] = {}
    peak_mb: dict[str, int] = {}
    load_s: float = 0.0


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """A model's story. on_request: what would be done if somebody asked for it now, victims included.

    refusal: why such a request would be refused at once; None if it would not.
    """

    model: str
    conditions: tuple[Condition, ...]
    variants: tuple[VariantStory, ...]
    on_request: tuple[Action, ...] = ()
    refusal: Refusal | None = None


def wanting(observed: Observed, model: str, now: float) -> Observed:
    """What is observed, and somebody who asks for the model now."""
    if any(demand.model == model for demand in observed.demands):
        return observed
    return msgspec.structs.replace(observed, demands=(*observed.demands, Demand(model, now)))


def explain(declared: Declaration, observed: Observed, name: str, now: float) -> Story:
    """Tell the story of a declared model."""
    decided = plan(declared, wanting(observed, name, now), now)
    teller = _Teller(declared, observed, name, now)
    return Story(
        model=name,
        conditions=plan(declared, observed, now).conditions[name],
        variants=(*map(teller.tell, declared.models[name].variants), *_elsewhere(declared, name)),
        on_request=decided.actions,
        refusal=decided.refusals.get(name),
    )


class _Teller:
    """Looks at the machine as it is, before anything that a request would set off."""

    def __init__(self, declared: Declaration, observed: Observed, name: str, now: float) -> None:
        self._inventory = Inventory(observed.devices, declared.devices)
        headroom_mb = declared.settings.headroom_mb
        ledger = Ledger(observed.devices, observed.servers, self._inventory.caps, headroom_mb)
        self._room = Room(ledger, self._inventory)
        self._why = Reasons(self._inventory, self._room, with_pins(declared.models, observed.pinned))
        self._now = now
        self._model: Model = declared.models[name]
        self._server: Server | None = next((one for one in observed.servers if one.model == name), None)
        self._failures = {one.variant: one for one in observed.failures if one.model == name}
        self._externals = {one.variant: one for one in observed.externals if one.model == name}
        self._measured = {one.variant: one for one in observed.measured if one.model == name}

    def tell(self, variant: Variant) -> VariantStory:
        """Where one variant stands."""
        if variant.external:
            return self._tell_external(variant)
        verdict, reason = self._verdict(variant)
        measured = self._measured.get(variant.name)
        return VariantStory(
            name=variant.name,
            verdict=verdict,
            reason=reason,
            remedy=self._why.remedy(variant) if verdict == "does_not_fit" else "",
            declared_mb=dict(variant.needs()),
            peak_mb=measured.peak_mb if measured else {},
            load_s=measured.load_s if measured else 0.0,
        )

    def _verdict(self, variant: Variant) -> tuple[str, str]:
        server, failure = self._server, self._failures.get(variant.name)
        if server is not None and server.variant == variant.name:
            return "running", f"{server.state.value} on {self._inventory.labels(server.reserved_mb)}"
        if failure is not None and failure.retry_at > self._now:
            return "backs_off", _told(failure, self._now)
        if placement := self._room.place_now(variant):
            return "fits", f"fits on {self._inventory.labels(placement.devices)}"
        return "does_not_fit", self._why.shortage(variant)

    def _tell_external(self, variant: Variant) -> VariantStory:
        seen = self._externals.get(variant.name)
        if seen is None:
            return VariantStory(name=variant.name, verdict="unhealthy", reason=f"{variant.url} was not probed yet")
        verdict = "healthy" if seen.healthy else "unhealthy"
        return VariantStory(name=variant.name, verdict=verdict, reason=f"{variant.url} {seen.message}".rstrip())


def _elsewhere(declared: Declaration, name: str) -> Iterator[VariantStory]:
    for variant, nodes in declared.variants_elsewhere.get(name, {}).items():
        yield VariantStory(name=variant, verdict="elsewhere", reason=f"for other nodes: {nodes}")


def _told(failure: Failure, now: float) -> str:
    return f"{failed(failure, now)}: {failure.message.partition(chr(10))[0]}"
