"""What methods say of themselves is compared with what they are called with; what they do not say is no fault."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from plugin_sdk import (
    Auth,
    DeviceStatus,
    Event,
    Exchange,
    Filter,
    ModelInfo,
    Plugin,
    Principal,
    Request,
    Response,
    Route,
    Target,
    auth,
    device,
    inline,
    on_event,
    on_request,
)
from sidecar.mechanism.annotations import doubts_of

if TYPE_CHECKING:
    from nowhere import Nothing  # type: ignore[import-not-found] # that is the point


@auth  # type: ignore[arg-type] # what is told of code that no type checker sees
def word(request: int) -> str:
    return str(request)


@device("npu")  # type: ignore[arg-type] # as above
def npu() -> dict[str, int]:
    return {}


class Mixed(Filter):
    def on_request(self, exchange: Request) -> Request | bool:  # type: ignore[override] # as above
        raise NotImplementedError

    async def on_event(self, exchange: Event, event: Exchange) -> list[Event] | None:  # type: ignore[override] # as above
        return None


BAD: list[Any] = [
    (
        word,
        [
            "word.authenticate takes request: int, and is given Request",
            "word.authenticate returns str, and should return Principal",
        ],
    ),
    (npu, ["npu.probe returns dict[str, int], and should return DeviceStatus | list[DeviceStatus]"]),
    (
        Mixed,
        [
            "Mixed.on_request takes exchange: Request, and is given Exchange",
            "Mixed.on_request returns Request | bool, and should return Request | Response | None",
            "Mixed.on_event takes event: Exchange, and is given Event",
            "Mixed.on_event takes exchange: Event, and is given Exchange",
        ],
    ),
]


def told(cls: type[Plugin[Any]]) -> list[str]:
    return [str(fault) for fault in doubts_of(cls)]


@pytest.mark.parametrize(("cls", "words"), BAD)
def test_what_is_annotated_otherwise_is_told(cls: type[Plugin[Any]], words: list[str]) -> None:
    assert sorted(told(cls)) == sorted(words)


def test_the_line_is_the_methods() -> None:
    fault = next(doubts_of(word))
    assert fault.file == __file__
    assert "def word" in "".join(Path(__file__).read_text().splitlines()[fault.line - 1 : fault.line + 1])


class Silent(Auth):
    def authenticate(this, request):  # type: ignore[no-untyped-def] # noqa: N805 - odd, and in order
        return Principal("x")


class Wide(Route):
    @staticmethod
    async def resolve(request: object, targets: Sequence[Target]) -> Any:  # noqa: ARG004 - as the kind has it
        return None

    def models(self) -> Awaitable[list[ModelInfo]]:
        raise NotImplementedError


class Unreadable(Auth):
    def authenticate(self, request: Nothing) -> Principal:
        return Principal("x")


class Narrow(Filter):
    @inline
    def on_request(self, exchange: Exchange, *more: int) -> Response:
        return Response()


@on_event
async def none(exchange: Exchange, event: Event) -> None: ...


@device("npu")
def several() -> list[DeviceStatus]:
    return []


@pytest.mark.parametrize("cls", [Silent, Wide, Unreadable, Narrow, none, several])
def test_what_fits_or_says_nothing_is_in_order(cls: type[Plugin[Any]]) -> None:
    assert told(cls) == []


def test_inline_above_a_decorator_is_refused_with_what_to_do() -> None:
    @on_request
    def guard(exchange: Exchange) -> None: ...

    with pytest.raises(TypeError, match="guard is a plugin already: put @inline below the decorator"):
        inline(guard)
