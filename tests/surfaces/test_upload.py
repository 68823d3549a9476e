"""Bodies that are passed on while they come: the same as `with_model` makes of the whole, wherever they are cut."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.surfaces.dataplane.body import read_head, with_model
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.scan import MOST_DEPTH, MOST_KEYS, MOST_TOKEN_BYTES
from sidecar.surfaces.dataplane.upload import Upload
from tests.surfaces.bodies import fault, objects, spelled, uploaded

FORM = "multipart/form-data; boundary=b"


def form(*fields: tuple[str, bytes]) -> bytes:
    parts = [b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (n.encode(), v) for n, v in fields]
    return b"".join(parts) + b"--b--\r\n"


@settings(deadline=None)
@given(objects(), st.randoms(use_true_random=False), st.lists(st.integers(0, 5000), max_size=8), st.text(max_size=9))
def test_any_cut_of_an_object_gives_what_the_whole_gives(
    value: dict[str, Any], random: Any, cuts: list[int], name: str
) -> None:
    body = spelled(value, random)
    assert uploaded(body, cuts, name) == with_model(body, name)
    assert uploaded(body, cuts, None) == body


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=100), st.text(max_size=9), st.text(max_size=9), st.lists(st.integers(0, 999), max_size=8))
def test_any_cut_of_a_form_gives_what_the_whole_gives(file: bytes, old: str, new: str, cuts: list[int]) -> None:
    request = httpx.Request("POST", "http://x", data={"model": old, "a": "b"}, files={"file": ("f", file)})
    body, content_type = request.read(), request.headers["content-type"]
    assert read_head(body, content_type).model == old
    assert uploaded(body, cuts, new, content_type) == with_model(body, new, content_type)


BODIES = [
    b' {"a":[{"b":["\\\\\\"]}"]},[],{}],"n":-1.5e+3,"t":true , "mod\\u0065l" : "x\\"y" ,"e":{},"z":"\\\\"}\r\n',
    form(("a", b"\r\n--a\r\n-"), ("model", b"x\r\n"), ("b", b"")) + b"epilogue --b",
]


@pytest.mark.parametrize(("body", "content_type"), [(BODIES[0], ""), (BODIES[1], FORM)])
def test_every_single_cut_gives_the_same(body: bytes, content_type: str) -> None:
    expected = with_model(body, "new", content_type)
    assert expected.count(b"new") == 1
    assert uploaded(body, list(range(len(body))), "new", content_type) == expected
    for cut in range(len(body)):
        assert uploaded(body, [cut], "new", content_type) == expected


def test_nothing_is_given_before_the_model_is_known_and_everything_certain_after() -> None:
    upload = Upload("application/json", 1000)
    upload.feed(b'{"stream":true,"messages":["hi"],"model":"a')
    assert (upload.known, upload.model, upload.take()) == (False, None, b"")
    upload.feed(b'b","x":"')
    assert (upload.known, upload.model, upload.streams) == (True, "ab", True)
    upload.rename("longer")
    assert upload.length_change == 4
    assert upload.take() == b'{"stream":true,"messages":["hi"],"model":"longer","x":"'
    upload.feed(b"y" * 5000)
    assert upload.take() == b"y" * 5000
    upload.feed(b'"}')
    upload.finish()
    assert upload.take() == b'"}'


def test_a_form_is_known_when_its_field_is_complete_and_its_file_is_not_kept() -> None:
    upload = Upload(FORM, 1000)
    head = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n'
    upload.feed(head % b"model" + b"whisper\r\n--")
    assert upload.take() == b""
    upload.feed(b"b\r\n" + head % b"file")
    assert (upload.known, upload.model) == (True, "whisper")
    upload.take()
    for _ in range(100):
        upload.feed(b"\0" * 10_000)
        assert len(upload.take()) >= 9990
    upload.feed(b"\r\n--b--\r\n")
    upload.finish()


def test_a_body_without_a_model_is_known_at_its_end() -> None:
    for body, content_type in ((b'{"a":{"model":"x"},"b":"model"}', ""), (form(("a", b"b")), FORM)):
        upload = Upload(content_type, 1000)
        upload.feed(body)
        assert not upload.known
        upload.finish()
        assert (upload.known, upload.model, upload.take()) == (True, None, body)


@pytest.mark.parametrize("body", [b'{"a":"' + b"x" * 2000, b'{"a":[' + b"1," * 2000, form(("a", b"x" * 2000))])
def test_a_body_that_names_no_model_within_the_limit_is_too_large(body: bytes) -> None:
    upload = Upload(FORM if body.startswith(b"--") else "", 1000)
    upload.feed(body[:1000])
    with pytest.raises(ApiError) as refused:
        upload.feed(body[1000:])
    assert (refused.value.status, refused.value.code) == (413, "body_too_large")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"model":"a","x":["' + b"y" * 100 + b'"],"model":"b"}', "invalid_json"),
        (b'{"model":"a","mod\\u0065l":"b"}', "invalid_json"),
        (b'{"model":"a","Model":"b"}', "invalid_json"),
        (b'{"mod\\u0045l":null,"model":"b"}', "invalid_json"),
        (b'{"model":"a"} {"model":"b"}', "invalid_json"),
        (b'{"model":5}', "invalid_type"),
        (b'{"model":["a"]}', "invalid_type"),
        (b'{"model":"\xff"}', "invalid_json"),
        (b'{"model":"\\q"}', "invalid_json"),
        (b'{"\\q":1}', "invalid_json"),
        (b'{"\\ud800":1}', "invalid_json"),
        (b"[]", "invalid_json"),
        (b'\xef\xbb\xbf{"model":"a"}', "invalid_json"),
        (b"", "invalid_json"),
        (b'{"model":"a"', "invalid_json"),
        (b'{"model":"a","x":"\\"}', "invalid_json"),
        (b'{"model":"a","x":[}}', "invalid_json"),
        (b'{"model":"a",}', "invalid_json"),
        (b'{"model" "a"}', "invalid_json"),
        (b'{model:"a"}', "invalid_json"),
        (b'{"model":"a";"b":1}', "invalid_json"),
        (b'{"model":"a","x":01}', "invalid_json"),
        (b'{"model":"a","x":}', "invalid_json"),
        (b'{"model":"a","x":NaN}', "invalid_json"),
        (b'{"model":"a","x":1' + b"0" * MOST_TOKEN_BYTES, "invalid_json"),
        (b'{"model":"a","x":' + b"[" * (MOST_DEPTH + 5), "invalid_json"),
        (b'{"model":"a"' + b',"x":1' * MOST_KEYS + b"}", "invalid_json"),
    ],
)
def test_what_is_no_object_with_one_model_is_refused_wherever_it_is_cut(body: bytes, code: str) -> None:
    assert fault(body, []) == code
    assert fault(body, list(range(0, len(body), 1 + len(body) // 500))) == code


@pytest.mark.parametrize(
    "body",
    [
        form(("model", b"a"), ("model", b"b")),
        form(("model", b"a"))[:-6],
        form(("model", b"a")).replace(b"; ", b";\r\n "),
        b"",
    ],
)
def test_what_is_no_form_with_one_model_is_refused_wherever_it_is_cut(body: bytes) -> None:
    assert fault(body, [], FORM) == "invalid_form"
    assert fault(body, list(range(len(body))), FORM) == "invalid_form"


def test_the_end_of_a_second_model_is_never_given() -> None:
    upload = Upload("", 1000)
    upload.feed(b'{"model":"a","x":"y"')
    upload.take()
    upload.feed(b',"model":"b')
    assert b"b" not in upload.take().replace(b'"model":"b', b"")
    with pytest.raises(ApiError):
        upload.feed(b'"}')


@settings(deadline=None)
@given(st.lists(st.sampled_from([*'{}[]",:\\ 1atrue', '"model"', '"Model"', '"m"', "\\u0065", ":1,"]), max_size=25))
def test_of_what_a_parser_accepts_as_an_object_with_one_model_nothing_is_refused(tokens: list[str]) -> None:
    body = ('{"model":"a","x":' + "".join(tokens) + "}").encode()
    try:
        pairs = json.loads(body, object_pairs_hook=list)
    except ValueError:
        return
    models = [key for key, _ in pairs if key.lower() == "model"]
    assert (fault(body, list(range(len(body)))) == "") is (models == ["model"])


def test_long_strings_and_files_cost_a_search() -> None:
    """Many times slower than it is, this would still pass: a loop over bytes would not."""
    for body, content_type in (
        (json.dumps({"model": "a", "image": ["A" * 20_000_000]}).encode(), ""),
        (form(("model", b"a"), ("file", b"\0" * 20_000_000)), FORM),
    ):
        pieces = [body[at : at + 65_536] for at in range(0, len(body), 65_536)]
        upload = Upload(content_type, 1000 + 65_536)
        began = time.process_time()
        for piece in pieces:
            upload.feed(piece)
            upload.take()
        assert time.process_time() - began < 0.2
        upload.finish()
