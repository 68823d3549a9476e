"""The model's name in a form, as audio uploads have it: found and replaced without touching anything else."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.forms import boundary_of, fields, value, with_value


def form(files: dict[str, bytes], **values: str) -> tuple[bytes, bytes]:
    """A body as a real client makes it, and its boundary."""
    request = httpx.Request(
        "POST", "http://x", data=values, files={name: (f"{name}.wav", content) for name, content in files.items()}
    )
    boundary = boundary_of(request.headers["content-type"])
    assert boundary is not None
    return request.read(), boundary


def test_a_field_is_found_among_files() -> None:
    body, boundary = form({"file": b"\x00\r\n--not-the-boundary\r\n" * 100}, model="whisper", stream="true")
    assert value(body, boundary, "model") == "whisper"
    assert value(body, boundary, "stream") == "true"
    assert value(body, boundary, "language") is None
    assert {field.name for field in fields(body, boundary)} == {"model", "stream"}


def test_a_file_called_model_is_no_model() -> None:
    body, boundary = form({"model": b"weights"}, language="en")
    assert value(body, boundary, "model") is None


@settings(deadline=None)
@given(st.binary(max_size=200), st.text(max_size=30), st.text(max_size=30))
def test_another_name_changes_nothing_else(content: bytes, before: str, after: str) -> None:
    body, boundary = form({"file": content}, model=before, prompt="a")
    changed = with_value(body, boundary, "model", after)
    assert value(changed, boundary, "model") == after
    assert value(changed, boundary, "prompt") == "a"
    assert with_value(changed, boundary, "model", before) == body


def test_an_empty_value_is_a_value() -> None:
    body, boundary = form({"file": b""}, model="")
    assert value(body, boundary, "model") == ""


def test_a_field_that_stands_twice_is_refused() -> None:
    twice = b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\n%s\r\n'
    with pytest.raises(ApiError, match="twice"):
        value(twice % b"a" + twice % b"b" + b"--b--\r\n", b"b", "model")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"--b",
        b"--b\r\n",
        b"--b\r\ncontent-disposition: form-data; name=model\r\n\r\nwhisper",
        b"--b\r\nx: " + b"y" * 10_000 + b"\r\n\r\nz\r\n--b--",
        b"--b\r\n\r\n\r\n" * 1001,
    ],
)
def test_what_is_no_form_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as refused:
        value(body, b"b", "model")
    assert refused.value.status == 400
    assert refused.value.code == "invalid_form"


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_garbage_is_refused_or_has_no_model(body: bytes) -> None:
    try:
        value(b"--b\r\n" + body, b"b", "model")
    except ApiError as error:
        assert error.status == 400


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=abc", b"abc"),
        ('Multipart/Form-Data; charset=utf-8; boundary="a b"', b"a b"),
        ("multipart/form-data", None),
        ("multipart/form-data; boundary=" + "x" * 71, None),
        ("application/json", None),
        ("", None),
    ],
)
def test_only_a_form_has_a_boundary(content_type: str, boundary: bytes | None) -> None:
    assert boundary_of(content_type) == boundary
