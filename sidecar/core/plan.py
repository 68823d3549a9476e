"""What the planner decides: actions, conditions, and when to look again."""

from __future__ import annotations

import msgspec

from sidecar.core.observed import Condition


class Start(msgspec.Struct, frozen=True, kw_only=True, tag=True, tag_field="action"):
    """Reserve, then start a server of `variant`. devices: ids in the order of required_devices."""

    model: str
    variant: str
    devices: tuple[str, ...]
    reserved_mb: dict[str, int]
    message: str = ""


class Drain(msgspec.Struct, frozen=True, kw_only=True, tag=True, tag_field="action"):
    """Close admission; the server is stopped once nothing is in flight."""

    model: str
    server: str
    reason: str
    message: str = ""


class Stop(msgspec.Struct, frozen=True, kw_only=True, tag=True, tag_field="action"):
    """Stop a server that has nothing in flight. Whoever applies it checks that again, in one step with closing it."""

    model: str
    server: str
    reason: str
    message: str = ""


Action = Start | Drain | Stop


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `plan`. conditions: by model. wake_at: when to plan again even if nothing happens; None = never."""

    actions: tuple[Action, ...] = ()
    conditions: dict[str, tuple[Condition, ...]] = {}
    wake_at: float | None = None
