"""The control API under `/-/`, by Litestar: health, status, plan, devices, plugins, events, reloads, models by hand."""

# No `from __future__ import annotations` here: Litestar reads the handlers' annotations at run time.

from functools import partial
from typing import Any

import msgspec
from litestar import Litestar, Request, Response, get, post
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.handlers.base import BaseRouteHandler

from sidecar.control.controller import Controller
from sidecar.core.names import did_you_mean, near
from sidecar.core.nodes import Elsewhere
from sidecar.core.observed import Measured
from sidecar.core.plan import Plan
from sidecar.core.sourcing import HistoryReport, SourceReport
from sidecar.mechanism.source import PLUGIN_FOLDER
from sidecar.surfaces import (
    events_api,
    guard,
    logs_api,
    metrics_api,
    models_api,
    plugins_api,
    report,
    source_api,
    top_api,
    usage_api,
    webhook,
)
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.plane import Plane
from sidecar.surfaces.metrics.catalog import Metrics
from sidecar.surfaces.snapshot import Snapshot, running


class ControlState(State):
    """What handlers need."""

    controller: Controller
    plane: Plane
    webhooks: webhook.Bucket
    metrics: Metrics


Connection = ASGIConnection[Any, Any, Any, ControlState]
Caller = Request[Any, Any, ControlState]


def only_for_operators(connection: Connection, _: BaseRouteHandler) -> None:
    """A guard for everything but the health checks."""
    peer = connection.client.host if connection.client else ""
    guard.check(connection.headers, peer, connection.app.state.controller.declaration.settings)


def only_for_scrapers(connection: Connection, _: BaseRouteHandler) -> None:
    """A guard for the metrics."""
    peer = connection.client.host if connection.client else ""
    metrics_api.check(connection.headers, peer, connection.app.state.controller.declaration.settings)


@get("/-/healthy")
async def healthy() -> dict[str, str]:
    """The process runs and its loop turns."""
    return {"status": "ok"}


@get("/-/ready")
async def ready(state: ControlState) -> Response[dict[str, str]]:
    """Requests are taken. 503 once the sidecar is shutting down."""
    if state.controller.fleet.closing:
        return Response({"status": "shutting down"}, status_code=503)
    return Response({"status": "ready"})


@get("/metrics", guards=[only_for_scrapers])
async def metrics(state: ControlState, request: Caller) -> Response[bytes]:
    """Everything in numbers."""
    headers = request.headers
    return await metrics_api.answer(state.metrics, headers.get("accept", ""), headers.get("accept-encoding", ""))


@get("/-/status", guards=[only_for_operators])
async def status(state: ControlState) -> report.StatusReport:
    """Devices, models, plugins, problems."""
    found = report.status(state.controller, state.plane.requests)
    return msgspec.structs.replace(found, source=await source_api.report(state.controller))


@get("/-/devices", guards=[only_for_operators])
async def devices(state: ControlState) -> tuple[report.DeviceReport, ...]:
    """The devices, with what is reserved on them."""
    return report.live_devices(state.controller)


@get("/-/snapshot", guards=[only_for_operators])
async def node(state: ControlState) -> Snapshot:
    """The machine as the planner sees it, for `plan --against` and `diff --against` elsewhere."""
    return await running(state.controller)


@get("/-/plugins", guards=[only_for_operators])
async def plugins(state: ControlState) -> tuple[plugins_api.PluginDetails, ...]:
    """The plugins in force: where from, how they do, what went wrong last."""
    controller = state.controller
    folder = controller.root / PLUGIN_FOLDER
    host = controller.generations.host
    return await plugins_api.details(controller.generation, host, folder, controller.devices.problems)


@get("/-/plan", guards=[only_for_operators])
async def plan(state: ControlState, want: str | None = None) -> Plan:
    """What would be done now; with `?want=MODEL`, if somebody asked for that model now."""
    return await state.controller.what_if(_known(state.controller, want) if want is not None else None)


@get("/-/events", guards=[only_for_operators])
async def events(request: Caller, state: ControlState) -> Response[Any]:
    """What has happened: see events_api.Question for what can be asked. With `?follow=true`, as server-sent events."""
    asked = events_api.question(request.query_params, request.headers.get("last-event-id"))
    if asked.model:
        asked = msgspec.structs.replace(asked, model=_with_events(state.controller, asked.model))
    if asked.follow:
        return events_api.stream(state.controller.events, asked)
    return Response(events_api.answer(state.controller.events, asked))


@post("/-/reload", guards=[only_for_operators], status_code=200)
async def reload(state: ControlState) -> report.ReloadReport:
    """Read manifests and plugins anew, now; returns when what is good of them is in force."""
    if state.controller.fleet.closing:
        raise ApiError(503, "shutting_down", "the sidecar is shutting down")
    await state.controller.reload()
    return report.reload(state.controller)


@get("/-/top", guards=[only_for_operators])
async def top(state: ControlState) -> top_api.TopReport:
    """What `sidecar top` shows: who holds which memory, and how each model does, in numbers."""
    return top_api.top(state.controller, state.plane)


@get("/-/source", guards=[only_for_operators])
async def source(state: ControlState) -> SourceReport:
    """Where the manifests are from."""
    return await source_api.report(state.controller)


@get("/-/source/history", guards=[only_for_operators])
async def source_history(state: ControlState) -> HistoryReport:
    """What came of the last commits."""
    return source_api.history(state.controller)


@post("/-/source/sync", status_code=200, request_max_body_size=webhook.MOST_BYTES)
async def source_sync(request: Caller, state: ControlState) -> Response[Any]:
    """An operator has the repository asked, and waits; so does a signed webhook, from anywhere, and does not wait."""
    if not webhook.is_webhook(request.headers):
        only_for_operators(request, request.route_handler)
        return Response(await source_api.act(state.controller, "sync"))
    if not webhook.is_small(request.headers):
        state.webhooks.take()
    told = await source_api.hook(state.controller, request.headers, await request.body())
    return Response(told, status_code=202 if told.accepted else 200)


@post("/-/source/{verb:str}", guards=[only_for_operators], status_code=200)
async def source_act(state: ControlState, verb: str, commit: str = "") -> SourceReport:
    """`pin` (with `?commit=`), `unpin`, `suspend`, `resume`."""
    return await source_api.act(state.controller, verb, commit)


@get("/-/usage", guards=[only_for_operators])
async def usage(request: Caller, state: ControlState) -> Response[Any]:
    """Who has used what, and what it cost: see usage.Question for what can be asked."""
    asked = request.query_params.multi_items()
    return await usage_api.answer(state.controller, asked, request.headers.get("accept", ""))


@get("/-/measurements", guards=[only_for_operators])
async def measurements(state: ControlState) -> tuple[Measured, ...]:
    """What variants took at most, and how long they load."""
    return state.controller.measurements.all()


@get("/-/models/{target:path}", guards=[only_for_operators])
async def model(request: Caller, state: ControlState, target: str) -> Response[Any]:
    """`{name}/explain`: where each variant of the model stands, why, and what a request would set off.

    `{name}/logs`: what its server says, see logs_api.Question; with `?follow=true`, as server-sent events.
    """
    controller = state.controller
    requested, _, verb = target.strip("/").rpartition("/")
    if verb not in ("explain", "logs") or not requested:
        raise ApiError(404, "unknown_path", "expected /-/models/NAME/explain or /-/models/NAME/logs")
    known = partial(_known, controller)
    if verb == "explain":
        return Response(await report.story(controller, known(requested)))
    asked = logs_api.question(request.query_params, request.headers.get("last-event-id"))
    log = await logs_api.log_of(controller.server_logs, requested, known, asked)
    if asked.follow:
        return logs_api.stream(controller.server_logs, log, asked, controller.events)
    return Response(await logs_api.answer(controller.server_logs, log, asked))


@post("/-/models/{target:path}", guards=[only_for_operators], status_code=200)
async def act(state: ControlState, target: str, force: bool = False) -> dict[str, str]:
    """`{name}/start` and the other verbs of models_api (a name may have slashes in it, so the path is taken whole)."""
    requested, _, verb = target.strip("/").rpartition("/")
    if verb not in models_api.VERBS or not requested:
        known = ", ".join(models_api.VERBS)
        raise ApiError(404, "unknown_path", f"expected /-/models/NAME/VERB, where VERB is one of {known}")
    return await models_api.act(state.controller, _known(state.controller, requested), verb, force=force)


def _known(controller: Controller, requested: str) -> str:
    found = controller.generation.find(requested)
    if found is None:
        _tell_elsewhere(controller, requested)
        meant = near(requested, controller.generation.names())
        hint = f"; near it: {', '.join(meant)}" if meant else ""
        raise ApiError(404, "model_not_found", f'there is no model "{requested[:200]}"{hint}')
    return found[0]


def _tell_elsewhere(controller: Controller, requested: str) -> None:
    """Raises ApiError if there is such a model, though not here."""
    for name, one in controller.declaration.elsewhere.items():
        if requested == name or requested in one.aliases:
            here = f"this one has {controller.node}{_meant(controller, one)}"
            message = f'"{name}" is for other nodes: {one.nodes}; {here}'
            raise ApiError(404, "model_not_found", message)


def _meant(controller: Controller, elsewhere: Elsewhere) -> str:
    """A label that this node does not have may be misspelt."""
    labels = controller.node.labels or {}
    return "".join(did_you_mean(label, labels) for label in elsewhere.labels if label not in labels)


def _with_events(controller: Controller, requested: str) -> str:
    """Models that are no longer declared keep their history."""
    if controller.generation.find(requested) is None and controller.events.newest(1, requested):
        return requested
    return _known(controller, requested)


def _answer_api_error(_: Caller, error: ApiError) -> Response[bytes]:
    headers = {name.decode(): value.decode() for name, value in error.response_headers() if name != b"content-type"}
    return Response(error.body(), status_code=error.status, headers=headers, media_type="application/json")


def _answer_http_error(request: Caller, error: HTTPException) -> Response[bytes]:
    code = {404: "unknown_path", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    return _answer_api_error(request, ApiError(error.status_code, code, error.detail))


def control_app(controller: Controller, plane: Plane, told: Metrics) -> Litestar:
    """The Litestar application for everything that is not inference."""
    health = [healthy, ready, metrics]
    return Litestar(
        route_handlers=[
            *health,
            status,
            top,
            devices,
            node,
            plugins,
            plan,
            events,
            measurements,
            usage,
            reload,
            model,
            act,
            source,
            source_history,
            source_sync,
            source_act,
        ],
        state=ControlState(
            {
                "controller": controller,
                "plane": plane,
                "metrics": told,
                "webhooks": webhook.Bucket(controller.clock.monotonic),
            }
        ),
        exception_handlers={ApiError: _answer_api_error, HTTPException: _answer_http_error},
        openapi_config=None,
        logging_config=None,
    )
