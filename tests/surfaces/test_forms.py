"""The model's name in a form, as audio uploads have it: found and replaced without touching anything else."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.surfaces.dataplane.body import read_head, with_model
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.forms import boundary_of, may_be_form, values, with_value


def form(files: dict[str, bytes], **fields: str) -> tuple[bytes, bytes]:
    """A body as a real client makes it, and its boundary."""
    request = httpx.Request(
        "POST", "http://x", data=fields, files={name: (f"{name}.wav", content) for name, content in files.items()}
    )
    boundary = boundary_of(request.headers["content-type"])
    assert boundary is not None
    return request.read(), boundary


def part(head: bytes, value: bytes = b"a") -> bytes:
    return b"--b\r\n" + head + b"\r\n\r\n" + value + b"\r\n"


def test_a_field_is_found_among_files() -> None:
    body, boundary = form({"file": b"\x00\r\n--not-the-boundary\r\n" * 100}, model="whisper", stream="true")
    assert values(body, boundary, "model", "stream", "language") == ["whisper", "true", None]
    head = read_head(body, f"multipart/form-data; boundary={boundary.decode()}")
    assert (head.model, head.streams, head.asks_usage) == ("whisper", True, False)


def test_a_file_called_model_is_no_model() -> None:
    body, boundary = form({"model": b"weights"}, language="en")
    assert values(body, boundary, "model") == [None]


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=200), st.text(max_size=30), st.text(max_size=30))
def test_another_name_changes_nothing_else(content: bytes, before: str, after: str) -> None:
    body, boundary = form({"file": content}, model=before, prompt="a")
    changed = with_value(body, boundary, "model", after)
    assert values(changed, boundary, "model", "prompt") == [after, "a"]
    assert with_model(changed, before, f"multipart/form-data; boundary={boundary.decode()}") == body


def test_an_empty_value_is_a_value() -> None:
    body, boundary = form({"file": b""}, model="")
    assert values(body, boundary, "model") == [""]


@pytest.mark.parametrize(
    "head",
    [
        b'content-disposition: form-data; name="model"',
        b"Content-Disposition:form-data;name=model",
        b"x: y\r\nCONTENT-DISPOSITION: form-data; charset=x; name= model",
        b"content-disposition: form-data; name*=utf-8''mod%65l",
    ],
)
def test_a_field_that_stands_there_twice_is_refused_however_it_is_written(head: bytes) -> None:
    assert values(part(head) + b"--b--\r\n", b"b", "model") == ["a"]
    with pytest.raises(ApiError, match="twice") as refused:
        values(part(head) + part(b'content-disposition: form-data; name="model"') + b"--b--\r\n", b"b", "model")
    assert refused.value.param == "model"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"--b",
        b"--b-",
        b"--b\r\n",
        b"--b\r\ncontent-disposition: form-data; name=model\r\n\r\nwhisper",
        b"--b\r\nx: " + b"y" * 10_000 + b"\r\n\r\nz\r\n--b--",
        b"--b\r\n\r\n\r\n" * 1001,
        part(b'content-disposition: form-data;\r\n name="model"') + b"--b--",
        part(b"x: y\ncontent-disposition: form-data; name=model") + b"--b--",
        part(b"content-disposition: form-data\r\ncontent-disposition: form-data; name=model") + b"--b--",
        part(b"content-disposition: form-data; name=x", b"y\r\n--bx\r\n") + b"--b--",
        part(b'content-disposition: form-data; name="mo\\del"') + b"--b--",
        b"--b" + b" " * 10_000,
    ],
)
def test_what_is_no_form_or_can_be_read_in_two_ways_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as refused:
        values(body, b"b", "model")
    assert (refused.value.status, refused.value.code) == (400, "invalid_form")


@pytest.mark.parametrize("value", [b"\xff", b"x" * 5000])
def test_a_value_that_is_no_short_text_is_refused(value: bytes) -> None:
    with pytest.raises(ApiError) as refused:
        values(part(b"content-disposition: form-data; name=model", value) + b"--b--", b"b", "model")
    assert refused.value.code == "invalid_type"


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=300))
def test_garbage_is_refused_or_has_no_model(body: bytes) -> None:
    try:
        values(b"--b\r\n" + body, b"b", "model")
    except ApiError as error:
        assert error.status == 400


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=abc", b"abc"),
        (" multipart/form-data; boundary=abc", b"abc"),
        ('Multipart/Form-Data; charset=utf-8; boundary="a b"', b"a b"),
        ("multipart/form-data", None),
        ("multipart/form-data; boundary=" + "x" * 71, None),
        ("multipart/form-data; boundary=a; boundary=b", None),
        ("multipart/mixed; boundary=a", None),
        ("model/gltf; boundary=a", None),
        ("application/json", None),
        ("", None),
    ],
)
def test_only_a_form_has_a_boundary(content_type: str, boundary: bytes | None) -> None:
    assert boundary_of(content_type) == boundary
    assert may_be_form(content_type) or boundary is None
