"""Asks a running sidecar without holding up the screen: each call is awaited, and ends when the screen does."""

from __future__ import annotations

from typing import TypeVar
from urllib.parse import quote

import httpx
import msgspec

from sidecar.control.events import Event
from sidecar.surfaces.cli.client import AnswerError, Remote, UnreachableError, reason
from sidecar.surfaces.cli.top.frame import Film, Frame
from sidecar.surfaces.logs_api import LogReport
from sidecar.surfaces.report import EventsReport
from sidecar.surfaces.top_api import TopReport

T = TypeVar("T")

PATIENCE_S = 5.0
FIRST_EVENTS = 50
LOG_LINES = 500


class Link:
    """To be closed at the end. All methods raise UnreachableError and AnswerError."""

    def __init__(self, remote: Remote) -> None:
        self.url = remote.url
        self._http = httpx.AsyncClient(base_url=remote.url, headers=remote.headers, trust_env=False)
        self._film = Film()

    async def frame(self) -> Frame:
        """How everything stands now."""
        report = await self._get("/-/top", {}, TopReport)
        events: tuple[Event, ...] = ()
        if report.last_event != self._film.last_event:
            asked = {"after": str(self._film.last_event)} if self._film.last_event else {"limit": str(FIRST_EVENTS)}
            events = tuple((await self._get("/-/events", asked, EventsReport)).events)
        return self._film.add(report, events)

    async def act(self, model: str, verb: str) -> str:
        """Start, stop, drain, pin it; what came of that, in a line. Takes as long as it takes."""
        answer = await self._ask("POST", f"/-/models/{quote(model, safe='/')}/{verb}", {}, None)
        said = _decode(answer, dict[str, str], self.url)
        return f"{said['model']} is {said['state']}" + (f": {said['message']}" if said.get("message") else "")

    async def log(self, model: str, after: str) -> LogReport:
        """The end of what the model's server says, or what came after that."""
        asked = {"after": after} if after else {"tail": str(LOG_LINES)}
        return await self._get(f"/-/models/{quote(model, safe='/')}/logs", asked, LogReport)

    async def close(self) -> None:
        """Break off what is under way."""
        await self._http.aclose()

    async def _get(self, path: str, params: dict[str, str], kind: type[T]) -> T:
        return _decode(await self._ask("GET", path, params, PATIENCE_S), kind, self.url)

    async def _ask(self, method: str, path: str, params: dict[str, str], timeout_s: float | None) -> bytes:
        timeout = httpx.Timeout(timeout_s, connect=PATIENCE_S)
        try:
            response = await self._http.request(method, path, params=params, timeout=timeout)
        except httpx.HTTPError as error:
            raise UnreachableError(f"no sidecar answers at {self.url}: {str(error) or type(error).__name__}") from error
        if response.is_success:
            return response.content
        if response.status_code == httpx.codes.BAD_GATEWAY:  # of somebody between, as long as the sidecar is away
            raise UnreachableError(reason(response))
        raise AnswerError(reason(response))


def _decode(answer: bytes, kind: type[T], url: str) -> T:
    try:
        return msgspec.json.decode(answer, type=kind)
    except msgspec.DecodeError as error:
        raise AnswerError(f"{url} does not answer as this version would: {error}") from None
