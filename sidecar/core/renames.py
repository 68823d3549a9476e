"""What a server is called under new manifests: whether it must restart is a matter of how it runs, not of its names."""

from __future__ import annotations

from collections.abc import Collection

from sidecar.core.manifest import Declaration, Model, Variant


def renamed_model(fingerprint: str, after: Declaration, taken: Collection[str]) -> str | None:
    """The model that runs exactly so, and that has no server yet; None if there is none, or more than one."""
    found = [
        name
        for name, model in after.models.items()
        if name not in taken and any(variant.fingerprint() == fingerprint for variant in managed(model))
    ]
    return found[0] if len(found) == 1 else None


def counterpart(fingerprint: str, variant: str, model: Model | None) -> Variant | None:
    """The variant that a server is of now: by name and fingerprint, or else, if it was renamed, by fingerprint."""
    same = [one for one in managed(model) if one.fingerprint() == fingerprint] if model else []
    return next((one for one in same if one.name == variant), same[0] if same else None)


def managed(model: Model) -> list[Variant]:
    """The variants that are started here."""
    return [variant for variant in model.variants if not variant.external]
