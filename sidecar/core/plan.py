"""What the planner decides: actions, conditions, and when to look again."""

from __future__ import annotations

import msgspec

from sidecar.core.observed import Condition


class Start(msgspec.Struct, frozen=True, kw_only=True, tag=True, tag_field="action"):
    """Reserve, then start a server of `variant`. devices: ids in the order of required_devices.

    passed_over: why each earlier variant was not taken.
    """

    model: str
    variant: str
    devices: tuple[str, ...]
    reserved_mb: dict[str, int]
    message: str = ""
    passed_over: tuple[str, ...] = ()


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


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Waiting for the model is no use now. retry_after_s: when asking again may be; None = not before a change."""

    reason: str
    message: str
    retry_after_s: float | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `plan`. conditions: by model, Ready first. refusals: by model, of those that somebody waits for.

    wake_at: when to plan again even if nothing happens; None = never.
    """

    actions: tuple[Action, ...] = ()
    conditions: dict[str, tuple[Condition, ...]] = {}
    refusals: dict[str, Refusal] = {}
    wake_at: float | None = None
