"""The request log: a line for each request, in the sidecar's own log or in a file of its own."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec

from plugin_sdk import ByteSize, Config, Duration, Outcome, Stats
from sidecar.builtin.rotating import RotatingFile, Rotation

_PLAIN = re.compile(r"""[^\s"'=\\]*""")
_PATH_CHARS = 1000
_encode = msgspec.json.Encoder().encode


class Settings(Config):
    """Where to, and how.

    path: a file, relative to the sidecar's state directory; without it lines go to the sidecar's own log, in the format
    of that. format: of the file, JSON or pairs for people. rotate_size, rotate_age: the file is put aside as `PATH.1`
    when it would grow beyond, or is older; 0 = never. A file that logrotate has moved is begun anew. keep: how many
    are kept besides. client: also the address of the client, which may be personal data.
    """

    path: str = ""
    format: Literal["json", "text"] = "json"
    rotate_size: ByteSize = ByteSize(100 * 10**6)
    rotate_age: Duration = Duration(0)
    keep: int = 5
    client: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.keep <= 1000:
            raise ValueError("keep: expected 0 to 1000 files")
        if self.rotate_size < 0 or self.rotate_age < 0:
            raise ValueError("rotate_size and rotate_age cannot be less than 0")


class Log(Stats[Settings]):
    """Write a line for each request: when, what, by whom, how it ended, how long it took, tokens and bytes.

    Neither bodies nor keys or queries are in it, nor headers but X-Request-Id. key: the name of the caller's key.
    """

    _file: RotatingFile | None = None

    async def open(self) -> None:
        """Open the file, so that one that cannot be written is told at once."""
        if self.config.path:
            self._file = RotatingFile(self._place(), self._rotation())
            await asyncio.to_thread(self._file.open)

    async def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            await asyncio.to_thread(self._file.close)

    def record(self, outcome: Outcome) -> None:
        """One line."""
        self.record_many((outcome,))

    def record_many(self, outcomes: Sequence[Outcome]) -> None:
        """In a thread of the plugin's. What cannot be written is counted as `lost`, and told by what is raised."""
        if self._file is None:
            self._log(outcomes)
            return
        line = _json if self.config.format == "json" else _text
        lines = b"".join(line(fields(outcome, client=self.config.client)) for outcome in outcomes)
        try:
            self._file.append(lines)
        except OSError:
            self.metrics.count("lost", len(outcomes))
            raise

    def _place(self) -> Path:
        path = Path(self.config.path).expanduser()
        return path if path.is_absolute() else self.state_dir / path

    def _rotation(self) -> Rotation:
        return Rotation(self.config.rotate_size, self.config.rotate_age, self.config.keep)

    def _log(self, outcomes: Sequence[Outcome]) -> None:
        if not self.log.isEnabledFor(logging.INFO):
            return
        for outcome in outcomes:
            told = fields(outcome, client=self.config.client)
            extra = {name: value for name, value in told.items() if value not in (None, "")}
            del extra["time"]
            self.log.info("%s %s %d", outcome.method or "-", told["path"], outcome.status, extra=extra)


def fields(outcome: Outcome, *, client: bool) -> dict[str, Any]:
    """What is told of a request. Times in seconds; None = did not happen, or is not known."""
    usage = outcome.usage
    return {
        "time": datetime.fromtimestamp(outcome.started_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "trace_id": outcome.trace_id,
        "request_id": outcome.request_id,
        "principal": outcome.principal,
        "key": outcome.key,
        "model": outcome.model,
        "variant": outcome.variant,
        "mode": outcome.mode,
        "method": outcome.method,
        "path": outcome.path[:_PATH_CHARS],
        "status": outcome.status,
        "end": outcome.end.value,
        "code": outcome.code,
        "streamed": outcome.streamed,
        "cold": outcome.cold,
        "queue_s": _ms(outcome.queue_s),
        "first_byte_s": _ms(outcome.first_byte_s),
        "duration_s": _ms(outcome.duration_s),
        "bytes_in": outcome.bytes_in,
        "bytes_out": outcome.bytes_out,
        "input_tokens": usage.input_tokens if usage else None,
        "output_tokens": usage.output_tokens if usage else None,
        "cached_tokens": usage.cached_tokens if usage else None,
        "reasoning_tokens": usage.reasoning_tokens if usage else None,
        **({"client": outcome.client} if client else {}),
    }


def _json(told: dict[str, Any]) -> bytes:
    try:
        return _encode(told) + b"\n"
    except (UnicodeEncodeError, OverflowError):  # a name may hold what is no character, a server may count anything
        return _encode({name: _sound(value) for name, value in told.items()}) + b"\n"


def _text(told: dict[str, Any]) -> bytes:
    pairs = [f"{name}={_word(_sound(str(value)))}" for name, value in told.items() if value not in (None, "")]
    return " ".join([told["time"], *pairs[1:]]).encode() + b"\n"


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def _sound(value: Any) -> Any:
    if isinstance(value, int) and abs(value) >= 2**63:
        return None
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def _word(text: str) -> str:
    """The text as it is; quoted where it could be taken for several words, pairs or lines."""
    return text if _PLAIN.fullmatch(text) and text.isprintable() else ascii(text)
