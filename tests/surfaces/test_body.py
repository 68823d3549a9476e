"""What is read of a request's body."""

from __future__ import annotations

import pytest

from sidecar.surfaces.dataplane.body import read_head


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
    ],
)
def test_a_request_streams_if_it_says_true_and_whatever_else_stands_there_is_no_error(
    body: bytes, streams: bool
) -> None:
    head = read_head(body)
    assert head.model == "qwen"
    assert head.streams is streams
