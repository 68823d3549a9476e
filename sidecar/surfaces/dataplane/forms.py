"""The few fields of a form that matter (multipart/form-data, RFC 7578), found in place: files stay bytes, uncopied."""

from __future__ import annotations

from collections.abc import Iterator
from email.message import Message

import msgspec

from sidecar.surfaces.dataplane.errors import ApiError

MOST_PARTS = 1000
MOST_HEADER_BYTES = 8 * 1024
MOST_VALUE_BYTES = 4 * 1024  # of a field that matters: a model's name, a flag


class Field(msgspec.Struct, frozen=True):
    """Where the value of a field stands in the body."""

    name: str
    start: int
    end: int


def boundary_of(content_type: str) -> bytes | None:
    """The boundary of a multipart/form-data content type; None for anything else."""
    message = Message()
    message["content-type"] = content_type
    if message.get_content_type() != "multipart/form-data":
        return None
    boundary = message.get_param("boundary")
    return boundary.encode("latin-1") if isinstance(boundary, str) and 0 < len(boundary) <= 70 else None


def fields(body: bytes, boundary: bytes) -> Iterator[Field]:
    """The plain fields of the form, not its files. Raises ApiError if it is not one."""
    delimiter = b"--" + boundary
    at = 0 if body.startswith(delimiter) else body.find(b"\r\n" + delimiter) + 2
    if at < 2 and not body.startswith(delimiter):
        raise _invalid("its boundary is not in it")
    for _ in range(MOST_PARTS):
        at += len(delimiter)
        if body.startswith(b"--", at):
            return
        head_at = body.find(b"\r\n", at) + 2
        value_at = body.find(b"\r\n\r\n", head_at - 2, head_at + MOST_HEADER_BYTES) + 4
        end = body.find(b"\r\n" + delimiter, max(value_at - 2, 0))
        if head_at < 2 or value_at < 4 or end < 0:
            raise _invalid("a part is cut off")
        if name := _plain_name(body[head_at : value_at - 4]):
            yield Field(name, value_at, max(value_at, end))
        at = end + 2
    raise _invalid(f"it has more than {MOST_PARTS} parts")


def value(body: bytes, boundary: bytes, name: str) -> str | None:
    """The value of a field, None if it is not there. Raises ApiError if it stands there twice, or is no short text."""
    field = _only(body, boundary, name)
    if field is None:
        return None
    if field.end - field.start > MOST_VALUE_BYTES:
        raise ApiError(400, "invalid_type", f'the field "{name}" is too long', param=name)
    try:
        return body[field.start : field.end].decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError(400, "invalid_type", f'the field "{name}" is not UTF-8 text', param=name) from error


def with_value(body: bytes, boundary: bytes, name: str, text: str) -> bytes:
    """The form with another value in a field that it has, every other byte as it was."""
    field = _only(body, boundary, name)
    return body if field is None else body[: field.start] + text.encode() + body[field.end :]


def _only(body: bytes, boundary: bytes, name: str) -> Field | None:
    found = [field for field in fields(body, boundary) if field.name == name]
    if len(found) > 1:
        raise ApiError(400, "invalid_form", f'the form has the field "{name}" twice', param=name)
    return found[0] if found else None


def _plain_name(head: bytes) -> str:
    """The name of a field that is no file; "" for a file, or a part without a name."""
    for line in head.split(b"\r\n"):
        header, _, text = line.partition(b":")
        if header.strip().lower() == b"content-disposition":
            message = Message()
            message["content-disposition"] = text.decode("latin-1").strip()
            name = message.get_param("name", header="content-disposition")
            return name if isinstance(name, str) and message.get_filename() is None else ""
    return ""


def _invalid(why: str) -> ApiError:
    return ApiError(400, "invalid_form", f"the body is no multipart/form-data: {why}")
