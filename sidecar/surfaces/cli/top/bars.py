"""Devices with a bar of their memory by holder: ours model by model, others, reserved but not taken yet, free."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
from rich.cells import cell_len
from rich.text import Text

from sidecar.core.holders import Holders
from sidecar.surfaces.top_api import TopDevice

LEAST_BAR, GOOD_BAR, MOST_BAR = 8, 24, 60
_GAP = 2
_STYLES = ("green", "cyan")  # of our servers in turn, so that neighbours can be told apart


class Signs(msgspec.Struct, frozen=True):
    """How the parts of a bar look, so that they can be told apart without colours. ours: in turn."""

    ours: str
    foreign: str
    reserved: str
    free: str


BLOCKS = Signs("█▆", "▒", "░", "·")
ASCII = Signs("#=", "x", "-", ".")


def signs(encoding: str | None) -> Signs:
    """Those that a terminal can show."""
    try:
        "".join((*BLOCKS.ours, BLOCKS.foreign, BLOCKS.reserved, BLOCKS.free)).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return BLOCKS


def legend(look: Signs) -> Text:
    """What the signs mean."""
    text = Text()
    for sign, style, meaning in (
        (look.ours, "green", "ours"),
        (look.foreign, "magenta", "others"),
        (look.reserved, "yellow", "reserved"),
        (look.free, "dim", "free"),
    ):
        text.append(sign, style).append(f" {meaning}  ", "dim")
    return text


def lines(devices: Iterable[TopDevice], width: int, look: Signs) -> Iterator[Text]:
    """A line for each device; all bars are as long, so that they can be compared."""
    devices = tuple(devices)
    widest = max((cell_len(device.label) for device in devices), default=0)
    room = width - widest - 2 * _GAP
    shown = [_fitting(device, room) for device in devices]
    size = min((room - cell_len(text) for text in shown), default=0)
    for device, words in zip(devices, shown, strict=True):
        text = Text(f"{device.label:<{widest}}{' ' * _GAP}", no_wrap=True, overflow="ellipsis")
        if device.holders is None:
            yield text.append(f"unknown: {device.problem}", "red")
        else:
            text.append_text(bar(device.holders, max(0, min(MOST_BAR, size)), look))
            yield text.append(f"{' ' * _GAP}{words}".rstrip())


def bar(held: Holders, width: int, look: Signs) -> Text:
    """So many characters; whoever holds anything at all has one, as far as there is room."""
    parts = [(look.ours[n % 2], _STYLES[n % 2], one.used_mb or 0) for n, one in enumerate(held.servers)]
    parts += [
        (look.foreign, "magenta", held.foreign_mb),
        (look.reserved, "yellow", held.reserved_mb),
        (look.free, "dim", held.free_mb),
    ]
    text = Text()
    for (sign, style, _), count in zip(parts, _shares([amount for *_, amount in parts], width), strict=True):
        text.append(sign * count, style)
    return text


def _fitting(device: TopDevice, room: int) -> str:
    """As many words as there is room for beside a good bar, or at least a short one."""
    told = _told(device, device.holders) if device.holders is not None else ()
    for bar_size in (GOOD_BAR, LEAST_BAR):
        for text in told:
            if room - cell_len(text) >= bar_size:
                return text
    return ""


def _told(device: TopDevice, held: Holders) -> tuple[str, ...]:
    """What else is said of a device, in ever fewer words."""
    free = f"{held.free_mb:,} of {held.total_mb:,} MB free"
    amounts = f"{free}, {held.ours_mb:,} ours, {held.foreign_mb:,} {'others' if held.told else 'others or ours'}"
    if held.reserved_mb:
        amounts += f", {held.reserved_mb:,} reserved"
    units = ((device.utilisation_pct, "%"), (device.temperature_c, "°C"), (device.power_w, " W"))
    vitals = " ".join(f"{value:.0f}{unit}" for value, unit in units if value is not None)
    whole = f"{amounts}  {vitals}".rstrip()
    return (f"{whole}  {device.name}".rstrip(), whole, amounts, free, f"{held.free_mb:,} free")


def _shares(amounts: list[int], width: int) -> list[int]:
    """`width` in proportion to the amounts (largest remainders), but at least 1 for what is not nothing."""
    total = sum(amounts)
    if not total:
        return [0] * len(amounts)
    exact = [amount * width / total for amount in amounts]
    counts = [max(int(share), 1 if amount else 0) for share, amount in zip(exact, amounts, strict=True)]
    while sum(counts) > width:
        counts[max(range(len(counts)), key=lambda n: counts[n])] -= 1
    while sum(counts) < width:
        counts[max(range(len(counts)), key=lambda n: exact[n] - counts[n])] += 1
    return counts
