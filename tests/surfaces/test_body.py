"""What is read of a request's body, and what is changed in it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.surfaces.dataplane.body import read_head, with_model, with_usage
from sidecar.surfaces.dataplane.errors import ApiError
from tests.surfaces.bodies import objects, spelled


@pytest.mark.parametrize(
    ("body", "streams"),
    [
        (b'{"model": "qwen", "stream": true}', True),
        (b'{"stream" :  true , "model": "qwen"}', True),
        (b'{"model": "qwen", "stream": false}', False),
        (b'{"model": "qwen"}', False),
        (b'{"model": "qwen", "messages": [{"stream": true}]}', False),
        (b'{"model": "qwen", "stream": null}', False),
        (b'{"model": "qwen", "stream": "true"}', False),
        (b'{"model": "qwen", "stream": {"a": [true]}}', False),
        (b'{"model": "qwen", "stream": true, "stream_options": 5}', True),
    ],
)
def test_a_request_streams_if_it_says_true_and_whatever_else_stands_there_is_no_error(
    body: bytes, streams: bool
) -> None:
    head = read_head(body)
    assert head.model == "qwen"
    assert head.streams is streams


@pytest.mark.parametrize(
    ("options", "asks"),
    [
        ('{"include_usage": true}', True),
        ('{"other": [1], "include_usage": true}', True),
        ('{"include_usage": false}', False),
        ('{"include_usage": "true"}', False),
        ("{}", False),
        ("null", False),
        ("7", False),
        ('{"nested": {"include_usage": true}}', False),
    ],
)
@pytest.mark.parametrize("stream", ["true", '"yes"'])
def test_a_client_asks_for_usage_by_an_option_of_the_stream(options: str, asks: bool, stream: str) -> None:
    body = f'{{"model": "qwen", "stream": {stream}, "stream_options": {options}}}'.encode()
    assert read_head(body).asks_usage is asks


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"[1]", "invalid_type"),
        (b'{"model": 5}', "invalid_type"),
        (b'{"model": 5, "stream": 5}', "invalid_type"),
        (b'{"model": "a"', "invalid_json"),
        (b'{"model": "a"} x', "invalid_json"),
        (b'{"model": "a"}\0', "invalid_json"),
        (b'\xef\xbb\xbf{"model": "a"}', "invalid_json"),
        (b'{"model": "\xff"}', "invalid_json"),
        (b'{"model": "a", "x": NaN}', "invalid_json"),
        (b'{"model": "a", "x": "\x01"}', "invalid_json"),
        (b'{"model": "a", "x": ' + b"[" * 100_000, "invalid_json"),
        (b'{"model": "a", "stream": 1, "x": tru}', "invalid_json"),
    ],
)
def test_what_is_no_json_object_is_refused(body: bytes, code: str) -> None:
    with pytest.raises(ApiError) as refused:
        read_head(body)
    assert (refused.value.status, refused.value.code) == (400, code)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "a", "model": "b"}',
        b'{"model": "a", "mod\\u0065l": "a"}',
        b'{"mod\\u0065l": "a", "model": "b"}',
        b'{"\\u006dodel": "a", "mode\\u006c": "b"}',
        b'{"model": null, "model": "b"}',
        b'{"x": {"model": "z"}, "model": "a", "y": ["\\"model\\": \\"q\\""], "model": "b"}',
    ],
)
def test_a_model_that_stands_there_twice_is_refused_however_it_is_spelled(body: bytes) -> None:
    for read in (read_head, lambda body: with_model(body, "other")):
        with pytest.raises(ApiError) as refused:
            read(body)
        assert (refused.value.status, refused.value.code) == (400, "invalid_json")


@pytest.mark.parametrize(
    ("body", "changed"),
    [
        (b'{"model":"a"}', b'{"model":"b\\"c"}'),
        (b' {\n\t"stream" : true, "model" : "a"\n} ', b' {\n\t"stream" : true, "model" : "b\\"c"\n} '),
        (b'{"m\\u006fdel":"a","x":1e5}', b'{"m\\u006fdel":"b\\"c","x":1e5}'),
        (b'{"x":{"model":"a"},"model":"a"}', b'{"x":{"model":"a"},"model":"b\\"c"}'),
        (b'{"x":"\\"model\\":\\"a\\"","model":"a"}', b'{"x":"\\"model\\":\\"a\\"","model":"b\\"c"}'),
        (b'{"x":"\\\\","model":"\\"a\\\\"}', b'{"x":"\\\\","model":"b\\"c"}'),
        (b'{"x":"\xff\xfe","model":"a","temperature":0.10}', b'{"x":"\xff\xfe","model":"b\\"c","temperature":0.10}'),
        (b'{"model":"model","a":"model"}', b'{"model":"b\\"c","a":"model"}'),
        (b'{"x":{"Model":"x"},"model":"a","models":"M"}', b'{"x":{"Model":"x"},"model":"b\\"c","models":"M"}'),
    ],
)
def test_the_name_is_replaced_and_no_other_byte(body: bytes, changed: bytes) -> None:
    assert read_head(body).model in {"a", '"a\\', "model"}
    assert with_model(body, 'b"c') == changed


@pytest.mark.parametrize("key", ["Model", "MODEL", "modeL", "Mod\\u0065l", "\\u004dodel", "mod\\u0045l"])
@pytest.mark.parametrize("rest", ["}", ',"model":"a"}', ',"model":null,"stream":5}'])
@pytest.mark.parametrize("value", ['"b"', "null", '["b"]'])
def test_a_model_in_other_case_is_refused_since_some_servers_would_take_it(key: str, rest: str, value: str) -> None:
    body = f'{{"{key}":{value}{rest}'.encode()
    for read in (read_head, lambda body: with_model(body, "other")):
        with pytest.raises(ApiError, match="some servers take for the model") as refused:
            read(body)
        assert (refused.value.status, refused.value.code) == (400, "invalid_json")


def test_a_name_can_only_be_replaced_where_there_is_one() -> None:
    with pytest.raises(ApiError, match="must name"):
        with_model(b'{"messages": [{"model": "a"}]}', "b")


@settings(deadline=None)
@given(objects(), st.text(max_size=20), st.randoms(use_true_random=False))
def test_the_head_is_what_a_json_parser_reads_and_a_new_name_is_all_that_changes(
    value: dict[str, Any], name: str, random: Any
) -> None:
    body = spelled(value, random)
    assert read_head(body).model == value["model"]
    changed = with_model(body, name)
    assert json.loads(changed) == value | {"model": name}
    assert with_model(changed, value["model"]) == with_model(body, value["model"])


# --- usage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "changed"),
    [
        (b"{}", b'{"stream_options":{"include_usage":true}}'),
        (b'{"model":"a"}', b'{"stream_options":{"include_usage":true},"model":"a"}'),
        (b'{"stream_options": null }', b'{"stream_options": {"include_usage":true} }'),
        (b'{"stream_options":{}}', b'{"stream_options":{"include_usage":true}}'),
        (b'{"stream_options":{ "x":[1] }}', b'{"stream_options":{ "include_usage":true,"x":[1] }}'),
        (b'{"stream_options":{"include_usage":false,"x":1}}', b'{"stream_options":{"include_usage":true,"x":1}}'),
        (b'{"stream_options":{"include_usage":{"a":1}}}', b'{"stream_options":{"include_usage":true}}'),
        (b'{"a":{"stream_options":{}}}', b'{"stream_options":{"include_usage":true},"a":{"stream_options":{}}}'),
        (b'{"stream_options":7}', b'{"stream_options":7}'),
    ],
)
def test_usage_is_asked_for_beside_whatever_else_is(body: bytes, changed: bytes) -> None:
    assert with_usage(body) == changed


@pytest.mark.parametrize(
    "body", [b"[]", b'{"stream_options":{},"stream_options":{}}', b'{"stream_options":{"include_usage":1'], ids=str
)
def test_usage_is_not_asked_for_in_what_cannot_be_read(body: bytes) -> None:
    with pytest.raises(ApiError) as refused:
        with_usage(body)
    assert refused.value.status == 400


@settings(deadline=None)
@given(objects(), st.none() | st.dictionaries(st.text(max_size=5), st.booleans(), max_size=3), st.randoms())
def test_after_asking_a_parser_reads_that_usage_is_asked_for(
    value: dict[str, Any], options: dict[str, Any] | None, random: Any
) -> None:
    for asked in (value, value | {"stream_options": options}):
        changed = with_usage(json.dumps(asked, ensure_ascii=random.random() < 0.5).encode())
        assert json.loads(changed) == value | {"stream_options": (options if asked is not value else None) or {}} | {
            "stream_options": {**((options or {}) if asked is not value else {}), "include_usage": True}
        }
        assert read_head(changed).asks_usage
