"""Usage over HTTP: `GET /-/usage`, as JSON, or as CSV with `?format=csv` or `Accept: text/csv`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import msgspec
from litestar import Response

from plugin_sdk import PluginError, Reject, UsageQuery
from sidecar.control.controller import Controller
from sidecar.core.names import listed
from sidecar.mechanism import reports
from sidecar.mechanism.instance import Instance
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.usage import Question, UsageTable, as_csv, table


async def answer(controller: Controller, parameters: Iterable[tuple[str, str]], accept: str) -> Response[bytes]:
    """The response. parameters: what stands behind the `?`, in its order. Raises ApiError."""
    asked = question(parameters)
    found = await ask(controller, asked)
    wants_csv = asked.format == "csv" or (not asked.format and accept.strip().startswith("text/csv"))
    if not wants_csv:
        return Response(await asyncio.to_thread(msgspec.json.encode, found), media_type="application/json")
    content = await asyncio.to_thread(lambda: as_csv(found).encode())
    headers = {"content-disposition": 'attachment; filename="usage.csv"'}
    return Response(content, media_type="text/csv; header=present", headers=headers)


def question(parameters: Iterable[tuple[str, str]]) -> Question:
    """Read a question. `by` may be repeated, as on the command line, and nothing else. Raises ApiError(400)."""
    told: dict[str, str] = {}
    for name, value in parameters:
        if name in told and name != "by":
            raise ApiError(400, "invalid_request", f"{name[:40]}: stands twice in what is asked for")
        told[name] = f"{told[name]},{value}" if name in told else value
    try:
        asked = msgspec.convert(told, Question, strict=False)
    except msgspec.ValidationError as error:
        raise ApiError(400, "invalid_request", f"the usage asked for: {error}") from None
    if asked.format not in ("", "csv", "json"):
        raise ApiError(400, "invalid_request", f'format: expected "csv" or "json", got {asked.format[:20]!r}')
    return asked


async def ask(controller: Controller, asked: Question) -> UsageTable:
    """What the plugin says that is meant. Raises ApiError."""
    instance = _meant(controller, asked.plugin)
    try:
        query = asked.query(controller.clock.unix())
    except ValueError as error:
        raise ApiError(400, "invalid_request", str(error)) from None
    if instance.problem and not instance.out:
        raise ApiError(503, "usage_unavailable", f'the plugin "{instance.name}" cannot be used: {instance.problem}')
    try:
        result = await reports.ask(instance, query)
        return await asyncio.to_thread(_checked, instance.name, query, result)  # there may be many rows
    except Reject as reject:
        raise ApiError.rejected(reject) from None
    except PluginError as error:
        raise ApiError(503, "usage_unavailable", str(error)) from None
    except TimeoutError as error:
        instance.went_wrong("report", error)
        message = f'the plugin "{instance.name}" did not answer within {reports.DEADLINE_S:g} s: ask for a shorter time'
        raise ApiError(503, "usage_unavailable", message) from None
    except Exception as error:  # noqa: BLE001 - a plugin may raise anything; taken note of
        instance.went_wrong("report", error)
        message = f'the plugin "{instance.name}" failed: {type(error).__name__}: {error}'
        raise ApiError(503, "usage_unavailable", message) from None


def _checked(name: str, query: UsageQuery, result: Any) -> UsageTable:
    return table(name, query, reports.report(result, query))


def _meant(controller: Controller, wanted: str) -> Instance:
    generation = controller.generation
    able = {one.name: one for one in generation.instances.values() if reports.can_report(one)}
    if wanted and wanted not in able:
        known = f"; these can: {listed(sorted(able))}" if able else ""
        raise ApiError(404, "no_usage", f'no plugin "{wanted[:100]}" in use can report usage{known}')
    if not able:
        message = 'no plugin in use can report usage: put "usage" into a chain, as in chain = ["keys", "usage"]'
        raise ApiError(404, "no_usage", message)
    return able[wanted or reports.in_order(able, generation.declaration.settings.chain)[0]]
