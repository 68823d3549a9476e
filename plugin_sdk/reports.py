"""What Stats plugins may be told and asked beyond outcomes: which servers hold memory, and what the usage was."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

import msgspec

DIMENSIONS = ("model", "principal", "key", "variant", "mode", "node", "hour", "day", "month")


class LoadedServer(msgspec.Struct, frozen=True, kw_only=True):
    """A server that the sidecar has started, from its start until all of its processes are gone. Unix seconds.

    id: of this server alone, also after a restart of the sidecar that takes it over. until_s: now; or, of one that has
    `ended`, when it was gone. reserved_mb: device id to MB.
    """

    id: str
    model: str
    variant: str
    since_s: float
    until_s: float
    ended: bool = False
    reserved_mb: Mapping[str, int] = {}


class UsageQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What `sidecar usage` and `GET /-/usage` ask for.

    by: what to tell apart, in this order, usually of DIMENSIONS; () = all in one row. since_s, until_s: unix seconds of
    requests' beginnings, from and before; None = no bound. model, principal: shell-style patterns; "" = all.
    """

    by: tuple[str, ...] = ()
    since_s: float | None = None
    until_s: float | None = None
    model: str = ""
    principal: str = ""


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    """A sum. group: a value for each name of the query's `by`; of times such as `2026-11-30` or `2026-11-30T14`, UTC.

    Of the requests, `failed` are those that their server failed or answered with an error, `refused` those that never
    came to one or were broken off, `cancelled` those whose client left, `cold` those that waited for a start. unpriced:
    those that were served, and nobody knows for how much. busy_s: of all requests together. loaded_s: of all servers.
    cost: by currency, of requests and of loaded servers.
    """

    group: tuple[str, ...] = ()
    requests: int = 0
    failed: int = 0
    refused: int = 0
    cancelled: int = 0
    cold: int = 0
    unpriced: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    busy_s: float = 0.0
    loaded_s: float = 0.0
    cost: Mapping[str, Decimal] = {}


class UsageReport(msgspec.Struct, frozen=True, kw_only=True):
    """The answer. since_s, until_s: what it covers, where that is not quite what was asked for, as of whole hours."""

    rows: tuple[UsageRow, ...] = ()
    since_s: float | None = None
    until_s: float | None = None
