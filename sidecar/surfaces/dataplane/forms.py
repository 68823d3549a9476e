"""The few fields of a form that matter (multipart/form-data, RFC 7578), found in place: files stay bytes, uncopied.

Whatever servers are known to read in different ways is refused: else one of them may see another model than we do.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from email.message import Message
from email.utils import collapse_rfc2231_value

from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.scan import Place

MOST_PARTS = 1000
MOST_HEADER_BYTES = 8 * 1024
MOST_VALUE_BYTES = 4 * 1024  # of a field that matters: a model's name, a flag

_padding = re.compile(rb"[ \t]*+").match
_plain_field = re.compile(rb'\r\ncontent-disposition: form-data; name="([^"\\%;]*+)"', re.IGNORECASE).fullmatch
_odd_line = re.compile(rb"(?<!\r)\n|\r(?!\n)|\r\n[ \t]|\0").search  # RFC 9112 forbids all of them, RFC 2046 folds


def may_be_form(content_type: str) -> bool:
    """Whether it is worth asking for its boundary: quickly told, for nearly all requests are JSON."""
    return content_type[:1] in "mM \t" and content_type.lstrip()[:9].lower() == "multipart"


def boundary_of(content_type: str) -> bytes | None:
    """The boundary of a multipart/form-data content type; None for anything else."""
    message = Message()
    message["content-type"] = content_type
    if message.get_content_type() != "multipart/form-data" or content_type.lower().count("boundary") > 1:
        return None
    boundary = message.get_param("boundary")
    return boundary.encode("latin-1") if isinstance(boundary, str) and 0 < len(boundary) <= 70 else None


class FormScan:
    """Takes the pieces of one form. places: of the values of the wanted fields, each as often as it stands there."""

    def __init__(self, boundary: bytes, wanted: frozenset[bytes]) -> None:
        self.places: dict[bytes, list[Place]] = {}
        self._mark = b"\r\n--" + boundary
        self._wanted = wanted
        self._step: Callable[[FormScan, bytes, int], int] = FormScan._content  # unbound: no cycle of references
        self._rest = b"\r\n"  # as if the first boundary, too, came after a line
        self._offset = -2  # of the rest, in the body
        self._field = b""  # wanted, and its value has begun
        self._start = 0
        self._parts = 0

    def feed(self, data: bytes) -> bytes:
        """The next bytes that are certain, now that these have come. Raises ApiError if it cannot be a form."""
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        while at < end:
            reached = self._step(self, data, at)
            if reached == at:
                break  # more has to come
            at = reached
        first = max(0, -self._offset)
        self._offset += at
        self._rest = data[at:] if at < end else b""
        return data[first:at] if first or at < end else data

    def finish(self) -> None:
        """Nothing more comes. Raises ApiError if the form is not complete."""
        if self._step is not FormScan._after_all:
            raise _invalid("a part is cut off" if self._parts else "its boundary is not in it")

    # Steps: each takes what it can from `at` on, and gives back how far it came.

    def _content(self, data: bytes, at: int) -> int:
        found = data.find(self._mark, at)
        if found < 0:
            return max(at, len(data) - len(self._mark) + 1)
        if self._field:
            end = max(self._start, self._offset + found)
            if end - self._start > MOST_VALUE_BYTES:
                name = self._field.decode()
                raise ApiError(400, "invalid_type", f'the field "{name}" is too long', param=name)
            self.places.setdefault(self._field, []).append((self._start, end))
        self._step = FormScan._after_mark
        return found + len(self._mark)

    def _after_mark(self, data: bytes, at: int) -> int:
        if data.startswith(b"--", at):
            self._step = FormScan._after_all
            return at + 2
        if data[at:] == b"-":
            return at
        found = _padding(data, at)
        line_end = found.end() if found else at
        if data.startswith(b"\r\n", line_end):
            self._step = FormScan._part_head
            return self._part_head(data, line_end)
        if len(data) - at > MOST_HEADER_BYTES or data[line_end : line_end + 2] not in (b"", b"\r"):
            raise _invalid("a boundary does not end its line")
        return at

    def _part_head(self, data: bytes, at: int) -> int:
        end = data.find(b"\r\n\r\n", at)
        if (end if end >= 0 else len(data)) - at > MOST_HEADER_BYTES:
            raise _invalid("a part's headers are too long")
        if end < 0:
            return at
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise _invalid(f"it has more than {MOST_PARTS} parts")
        name = _plain_name(data[at:end])
        self._field = name if name in self._wanted else b""
        self._start = self._offset + end + 4
        self._step = FormScan._content
        return end + 2  # the empty line's end may begin the next boundary

    def _after_all(self, data: bytes, _at: int) -> int:
        return len(data)


def values(body: bytes, boundary: bytes, *names: str) -> list[str | None]:
    """The values of fields, None if they are not there. Raises ApiError if one is there twice, or is no short text."""
    places = _places(body, boundary, names)
    return [text(body[places[name][0] : places[name][1]], name) if name in places else None for name in names]


def with_value(body: bytes, boundary: bytes, name: str, text: str) -> bytes:
    """The form with another value in a field that it has, every other byte as it was."""
    place = _places(body, boundary, (name,)).get(name)
    return body if place is None else body[: place[0]] + text.encode() + body[place[1] :]


def text(value: bytes, name: str) -> str:
    """The value of a field. Raises ApiError."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError(400, "invalid_type", f'the field "{name}" is not UTF-8 text', param=name) from error


def _places(body: bytes, boundary: bytes, names: tuple[str, ...]) -> dict[str, Place]:
    scan = FormScan(boundary, frozenset(name.encode() for name in names))
    scan.feed(body)
    scan.finish()
    for name, places in scan.places.items():
        if len(places) > 1:
            raise twice(name.decode())
    return {name.decode(): places[0] for name, places in scan.places.items()}


def twice(name: str) -> ApiError:
    """A field that matters stands in the form more than once."""
    return ApiError(400, "invalid_form", f'the form has the field "{name}" twice', param=name)


def _plain_name(head: bytes) -> bytes:
    """The name of a field that is no file; b"" for a file, or a part without a name."""
    if found := _plain_field(head):
        return found.group(1)
    if _odd_line(head):
        raise _invalid("a part's headers are folded, or their lines do not end as they must")
    lines = [line.partition(b":") for line in head.split(b"\r\n")]
    dispositions = [text for header, _, text in lines if header.strip().lower() == b"content-disposition"]
    if len(dispositions) > 1:
        raise _invalid("a part has two dispositions")
    message = Message()
    message["content-disposition"] = dispositions[0].decode("latin-1").strip() if dispositions else ""
    name = message.get_param("name", header="content-disposition")
    if name is None or message.get_filename() is not None:
        return b""
    plain = collapse_rfc2231_value(name)
    if "\\" in plain:
        raise _invalid("a field's name has a backslash")
    return plain.encode("utf-8", "replace")


def _invalid(why: str) -> ApiError:
    return ApiError(400, "invalid_form", f"the body is no multipart/form-data: {why}")
