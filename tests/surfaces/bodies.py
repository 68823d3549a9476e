"""Request bodies as clients write them, and in every other way in which they may."""

from __future__ import annotations

import itertools
import json
from random import Random
from typing import Any

from hypothesis import strategies as st

from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.upload import Upload

_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["model", '"model": "x"', "\\", '"', '\\"', "\\\\", "{", "]", '{"model":"y"}', "x" * 100]
)
_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_texts, inner, max_size=4),
    max_leaves=12,
)


@st.composite
def objects(draw: st.DrawFn) -> dict[str, Any]:
    """A request with a model somewhere among its members."""
    members = list(draw(st.dictionaries(_texts, _values, max_size=4)).items())
    members = [(key, value) for key, value in members if key.lower() not in {"model", "stream", "stream_options"}]
    members.insert(draw(st.integers(0, len(members))), ("model", draw(_texts)))
    return dict(members)


def spelled(value: Any, random: Random) -> bytes:
    """That value in JSON, with other spaces and escapes than a library would write."""
    text = json.dumps(value, ensure_ascii=random.random() < 0.5, indent=random.choice([None, 1]))
    if random.random() < 0.5:
        text = text.replace('"model"', random.choice(['"mod\\u0065l"', '"model"', '"\\u006Dodel"']))
    return (random.choice(["", " ", "\r\n\t"]) + text + random.choice(["", "\n "])).encode()


def uploaded(body: bytes, cuts: list[int], name: str | None, content_type: str = "", most_bytes: int = 10**9) -> bytes:
    """What is passed on of a body that comes in pieces, with another name for its model. Raises ApiError."""
    upload = Upload(content_type, most_bytes)
    passed: list[bytes] = []
    edges = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    renamed = False
    for start, end in itertools.pairwise(edges):
        upload.feed(body[start:end])
        if upload.known and not renamed and upload.model is not None and name is not None:
            upload.rename(name)
            renamed = True
        passed.append(upload.take())
    upload.finish()
    passed.append(upload.take())
    whole = b"".join(passed)
    assert len(whole) == len(body) + upload.length_change
    return whole


def fault(body: bytes, cuts: list[int], content_type: str = "") -> str:
    """The code with which such a body is refused; "" if it is not."""
    try:
        uploaded(body, cuts, "other", content_type)
    except ApiError as error:
        assert error.status in {400, 413}
        return error.code
    return ""
