"""Where the manifests are from, over HTTP; and for a git repository: ask it now, pin, suspend, history."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

import msgspec

from sidecar.control.controller import Controller
from sidecar.control.gitsource import GitSource, SuspendedError
from sidecar.core.sourcing import HistoryReport, SecretPlace, SourceReport, is_commit_name
from sidecar.mechanism.clone import NoCommitError
from sidecar.mechanism.git import GitError
from sidecar.mechanism.provenance import provenance
from sidecar.mechanism.source import RejectedError
from sidecar.surfaces import webhook
from sidecar.surfaces.dataplane.errors import ApiError

log = logging.getLogger(__name__)


class HookReport(msgspec.Struct, frozen=True):
    """What is told to a forge. accepted: whether the repository will be asked."""

    accepted: bool
    message: str


async def report(controller: Controller) -> SourceReport:
    """Where the manifests in force are from."""
    found = controller.source
    if isinstance(found, GitSource):
        return found.report()
    return await asyncio.to_thread(provenance, controller.root)


def history(controller: Controller) -> HistoryReport:
    """What came of the last commits. Raises ApiError."""
    found = _git(controller)
    return HistoryReport(commit=found.report().commit, history=found.memory.history)


async def act(controller: Controller, verb: str, commit: str = "") -> SourceReport:
    """Do it, and tell how things stand then. commit: for `pin`. Raises ApiError."""
    found = _git(controller)
    if controller.fleet.closing:
        raise ApiError(503, "shutting_down", "the sidecar is shutting down")
    if verb not in VERBS:
        raise ApiError(404, "unknown_path", f"expected /-/source/VERB, where VERB is one of {', '.join(VERBS)}")
    if commit and not is_commit_name(commit):
        raise ApiError(400, "invalid_request", "expected at least the first 7 digits of a commit's id")
    try:
        await VERBS[verb](found, commit)
    except SuspendedError as error:
        raise ApiError(409, "source_suspended", str(error)) from None
    except RejectedError as error:
        raise ApiError(409, "commit_rejected", str(error)) from None
    except NoCommitError as error:
        raise ApiError(404, "commit_not_found", str(error)) from None
    except (GitError, OSError) as error:
        raise ApiError(503, "source_failed", str(error)) from None
    return found.report()


async def hook(controller: Controller, headers: Mapping[str, str], body: bytes) -> HookReport:
    """A forge says that something was pushed: the repository is asked soon, once for all who say so meanwhile.

    Raises ApiError.
    """
    found = _git(controller)
    if found.declared.webhook_secret is None:
        raise ApiError(403, "no_webhook_secret", "webhooks are taken if [source] has a webhook_secret")
    await asyncio.to_thread(_check, found.declared.webhook_secret, headers, body)
    if webhook.is_ping(headers):
        return HookReport(False, "pong")
    if found.memory.suspended:
        return HookReport(False, "the source is suspended")
    found.nudge("webhook")
    return HookReport(True, "the repository will be asked")


def _check(place: SecretPlace, headers: Mapping[str, str], body: bytes) -> None:
    """Blocks: it reads a file, and hashes what may be megabytes."""
    try:
        secret = place.read().reveal()
    except ValueError as error:
        log.error("webhook_secret: %s", error)
        raise ApiError(503, "no_webhook_secret", "the webhook_secret cannot be had; the log says why") from None
    webhook.check(headers, body, secret)


async def _sync(found: GitSource, _: str) -> None:
    await found.sync("command")


async def _pin(found: GitSource, commit: str) -> None:
    await found.pin(commit)


async def _unpin(found: GitSource, _: str) -> None:
    await found.unpin()


async def _suspend(found: GitSource, _: str) -> None:
    await found.suspend(suspended=True)


async def _resume(found: GitSource, _: str) -> None:
    await found.suspend(suspended=False)


VERBS: Mapping[str, Callable[[GitSource, str], Awaitable[None]]] = MappingProxyType(
    {"sync": _sync, "pin": _pin, "unpin": _unpin, "suspend": _suspend, "resume": _resume}
)


def _git(controller: Controller) -> GitSource:
    if isinstance(controller.source, GitSource):
        return controller.source
    message = "the manifests are from a directory that somebody else keeps; this is for sidecar run --git"
    raise ApiError(409, "no_git_source", message)
