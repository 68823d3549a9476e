"""What an operator says of a model on top of its manifest: pins and drains, until taken back or the sidecar ends."""

from __future__ import annotations

from collections.abc import Mapping, Set

import msgspec

from sidecar.core.manifest import Model

DRAINED = "Drained"  # the reason of the Ready condition


def with_pins(models: Mapping[str, Model], pinned: Set[str]) -> Mapping[str, Model]:
    """The models, as if the manifests of these had `pinned = true`."""
    changed = {
        name: msgspec.structs.replace(models[name], pinned=True)
        for name in pinned & models.keys()
        if not models[name].pinned
    }
    return {**models, **changed} if changed else models


def drained_message(model: str) -> str:
    """Why a drained model serves nothing, and what ends that."""
    return f"an operator has taken it out of service; sidecar undrain {model}, or start, ends that"
