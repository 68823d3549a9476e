"""The table of models: which columns there is room for, which models are meant, and in what order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType

import msgspec

from sidecar.surfaces.cli.top.frame import Frame, Rates
from sidecar.surfaces.progress import told
from sidecar.surfaces.top_api import TopModel

_LIFE = ("starting", "ready", "elsewhere", "draining", "stopping", "failed", "backoff", "unhealthy", "stopped")


class Column(msgspec.Struct, frozen=True):
    """width: the least that it needs; 0 = whatever is left. right: numbers stand on the right."""

    title: str
    width: int
    cell: Callable[[TopModel, Rates], str]
    right: bool = False


def state(model: TopModel) -> str:
    """In a word or two."""
    marks = [mark for mark, there in (("drained", model.drained), ("pinned", bool(model.pinned))) if there]
    loading = model.loading
    done = f" {loading.done:.0%}" if loading is not None and loading.done is not None else ""
    return ", ".join((model.state + done, *marks))


def _memory(model: TopModel) -> str:
    if not model.reserved_mb:
        return ""
    return f"{'?' if model.memory_mb is None else format(model.memory_mb, ',')}/{model.reserved_mb:,}"


def _where(model: TopModel) -> str:
    return f"{model.variant} {','.join(model.devices)} :{model.port}" if model.variant else ""


def because(model: TopModel) -> str:
    """How far it has come, or why it is not ready."""
    return told(model.loading) if model.loading is not None else "" if model.state == "ready" else model.because


def _number(value: float) -> str:
    return "" if not value else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _count(value: int) -> str:
    return str(value) if value else ""


# In the order in which they stand. What there is no room for goes first from `_SPARED`.
COLUMNS = (
    Column("MODEL", 12, lambda model, _: model.name),
    Column("STATE", 16, lambda model, _: state(model)),
    Column("BUSY", 4, lambda model, _: _count(model.in_flight), right=True),
    Column("QUEUE", 5, lambda model, _: _count(model.waiting), right=True),
    Column("REQ/S", 6, lambda _, rates: _number(rates.requests), right=True),
    Column("TOK/S", 6, lambda _, rates: _number(rates.tokens_out), right=True),
    Column("IN TOK/S", 8, lambda _, rates: _number(rates.tokens_in), right=True),
    Column("MB", 13, lambda model, _: _memory(model), right=True),
    Column("WHERE", 24, lambda model, _: _where(model)),
    Column("BECAUSE", 0, lambda model, _: because(model)),
)
_SPARED = ("IN TOK/S", "WHERE", "REQ/S", "MB", "BECAUSE", "QUEUE", "TOK/S", "BUSY")
GAP = 2  # between two columns
_LEAST_LEFT = 16  # for a column without a width
_MOST_NAME = 40

Key = Callable[[TopModel, Rates], tuple[float | str, ...]]
SORTS: Mapping[str, Key] = MappingProxyType(
    {
        "activity": lambda model, rates: (
            _LIFE.index(model.state) if model.state in _LIFE else len(_LIFE),
            -rates.requests,
            -model.in_flight - model.waiting,
            model.name,
        ),
        "name": lambda model, _: (model.name,),
        "queue": lambda model, _: (-model.waiting, -model.in_flight, model.name),
        "busy": lambda model, _: (-model.in_flight, -model.waiting, model.name),
        "requests": lambda model, rates: (-rates.requests, -model.requests, model.name),
        "tokens": lambda model, rates: (-rates.tokens_out, -model.tokens_out, model.name),
        "memory": lambda model, _: (-(model.memory_mb or model.reserved_mb), model.name),
    }
)


def columns(width: int, longest_name: int) -> tuple[Column, ...]:
    """Those that fit into so many characters."""
    kept = list(COLUMNS)
    spared = list(_SPARED)
    while spared and _needed(kept, longest_name) > width:
        title = spared.pop(0)
        kept = [column for column in kept if column.title != title]
    return tuple(kept)


def sizes(kept: tuple[Column, ...], width: int, longest_name: int) -> tuple[int, ...]:
    """How wide each is: what is left of so many characters is for the one that has no width of its own."""
    found = [_width(column, longest_name) for column in kept]
    left = width - sum(found) - GAP * (len(kept) - 1)
    return tuple(size or max(1, left) for size in found)


def chosen(frame: Frame, pattern: str, sort: str) -> list[TopModel]:
    """The models whose name or state has the pattern in it (or fits it, if it has wildcards), in order."""
    key = SORTS[sort]
    found = [model for model in frame.report.models if _fits(model, pattern.strip().lower())]
    return sorted(found, key=lambda model: key(model, frame.rates_of(model.name)))


def _needed(kept: list[Column], longest_name: int) -> int:
    return sum(_width(column, longest_name) or _LEAST_LEFT for column in kept) + GAP * (len(kept) - 1)


def _width(column: Column, longest_name: int) -> int:
    return max(column.width, min(longest_name, _MOST_NAME)) if column.title == "MODEL" else column.width


def _fits(model: TopModel, pattern: str) -> bool:
    words = (model.name.lower(), state(model).lower())
    if any(sign in pattern for sign in "*?["):
        return any(fnmatchcase(word, pattern) for word in words)
    return any(pattern in word for word in words)
