"""How an event of the sidecar's own log is written: as JSON for programs, or as text for people.

Whatever the event holds, it becomes exactly one line of JSON, or one line of text with whatever follows indented, so
that nothing that a server or a client has said can pretend to be an event. Formatting never fails and keeps no state.
"""

from __future__ import annotations

import functools
import logging
import re
import time
import traceback
from collections.abc import Mapping
from typing import Any

import msgspec
from opentelemetry import trace

MESSAGE_CHARS = 16_000
STACK_CHARS = 32_000
PLUGINS = "sidecar.plugins."

# What stands beside the message, and not among `fields`: the same in the lines of everybody.
_COMMON = ("trace_id", "span_id", "model", "server", "plugin")
_TEXT = "sidecar_text"
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "per_request", _TEXT}
_NO_FIELDS = _OWN | set(_COMMON)
_ODD = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_NEEDS_QUOTES = re.compile(r"""[\s"=]|^$""")
_MUTED = (1 << 128) - 1  # of requests whose plugins must not be traced (see `spans`)
_COLOURS = {"DEBUG": "2", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}

_encode = msgspec.json.Encoder(enc_hook=str).encode


def common(record: logging.LogRecord) -> dict[str, str]:
    """Whom the event is about, as far as it is known: the trace, from whoever logs or from the current span."""
    given = vars(record)
    found = {name: str(given[name]) for name in _COMMON if given.get(name)}
    if "plugin" not in found and record.name.startswith(PLUGINS):
        found["plugin"] = record.name[len(PLUGINS) :]
    if "trace_id" not in found:
        span = trace.get_current_span().get_span_context()
        if span.is_valid and span.trace_id != _MUTED:
            found["trace_id"], found["span_id"] = f"{span.trace_id:032x}", f"{span.span_id:016x}"
    return found


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """What else was given as `extra`."""
    return {name: value for name, value in vars(record).items() if name not in _NO_FIELDS}


def message(record: logging.LogRecord) -> str:
    """The text, with what was to be put in; if that does not fit, the bare text, and why."""
    done: str | None = vars(record).get(_TEXT)  # it is asked for twice
    if done is not None:
        return done
    try:
        text = record.getMessage()
    except Exception as error:  # noqa: BLE001 - whatever an author hands over; the event must not be lost
        text = f"{record.msg!r} with {len(record.args or ())} values, which do not fit: {type(error).__name__}"
    done = vars(record)[_TEXT] = shortened(text, MESSAGE_CHARS)
    return done


def shortened(text: str, most: int) -> str:
    """Cut in the middle, since both ends tell something."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]} [... {len(text) - most} characters ...] {text[-most // 2 :]}"


class JsonFormatter(logging.Formatter):
    """One JSON object to a line: ts (RFC 3339, UTC), level, logger, message; then what is known of `_COMMON`,
    `fields`, and `exception` with its type, message and stack.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line: dict[str, Any] = {
            "ts": f"{_utc(int(record.created))}.{int(record.created % 1 * 1e6):06d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message(record),
            **common(record),
        }
        if extra := fields(record):
            line["fields"] = extra
        if error := _error(record):
            line["exception"] = _exception(error)
        if record.stack_info:
            line["stack"] = shortened(record.stack_info, STACK_CHARS)
        return _json(line)


class TextFormatter(logging.Formatter):
    """Time (of this place), level, logger, message, and name=value pairs. coloured: for a terminal."""

    def __init__(self, *, coloured: bool = False) -> None:
        super().__init__()
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        """The line, and below it, indented, what does not fit on it."""
        when = f"{_here(int(record.created))}.{int(record.created % 1 * 1e3):03d}"
        known = common(record)
        if record.name.startswith(PLUGINS):
            known.pop("plugin", None)  # its logger's name says it
        said = [message(record), *map(_pair, {**known, **fields(record)}.items())]
        text = f"{record.name}: {'  '.join((said[0], ' '.join(said[1:]))) if said[1:] else said[0]}"
        if error := _error(record):
            text += "\n" + "".join(_stack(error)).rstrip()
        if record.stack_info:
            text += "\n" + shortened(record.stack_info, STACK_CHARS)
        if not text.isprintable():
            text = _ODD.sub(_escaped, text).replace("\n", "\n    ")
        level = f"{record.levelname:<7}"
        if self._coloured:
            return f"\x1b[2m{when}\x1b[0m {_coloured(level, record.levelname)} {text}"
        return f"{when} {level} {text}"


@functools.lru_cache(maxsize=2)  # most lines are of the same second as the one before
def _utc(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


@functools.lru_cache(maxsize=2)
def _here(second: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))


def _coloured(text: str, level: str) -> str:
    colour = _COLOURS.get(level)
    return f"\x1b[{colour}m{text}\x1b[0m" if colour else text


def _pair(pair: tuple[str, Any]) -> str:
    name, value = pair
    if isinstance(value, float):
        return f"{name}={value:.3f}"
    text = shortened(str(value), MESSAGE_CHARS)
    return f"{name}={_json(text) if _NEEDS_QUOTES.search(text) else text}"


def _error(record: logging.LogRecord) -> BaseException | None:
    return record.exc_info[1] if record.exc_info else None


def _exception(error: BaseException) -> dict[str, str]:
    kind = type(error)
    return {
        "type": kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}",
        "message": shortened(_text(error), MESSAGE_CHARS),
        "stack": "".join(_stack(error)),
    }


def _stack(error: BaseException) -> str:
    try:
        return shortened("".join(traceback.format_exception(error)), STACK_CHARS)
    except Exception as failed:  # noqa: BLE001 - an exception of an author's may not even be printable
        return f"{type(error).__name__}, whose traceback cannot be written: {type(failed).__name__}"


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception as failed:  # noqa: BLE001 - see above
        return f"{type(value).__name__}, which cannot be written: {type(failed).__name__}"


def _json(value: Any) -> str:
    try:
        return _encode(value).decode()
    except Exception:  # noqa: BLE001 - what JSON has no form for is written as text
        return _encode(_plain(value)).decode()


def _plain(value: Any, depth: int = 0) -> Any:
    if isinstance(value, Mapping) and depth < 4:
        return {_plain(_text(key)): _plain(item, depth + 1) for key, item in value.items()}
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return value
    return _text(value).encode(errors="backslashreplace").decode()


def _escaped(match: re.Match[str]) -> str:
    return match.group().encode("unicode_escape", "surrogatepass").decode("ascii")
