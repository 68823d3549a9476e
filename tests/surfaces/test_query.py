"""Models in queries, and in the paths of what is passed through: whatever could be read in two ways is refused."""

from __future__ import annotations

import pytest

from sidecar.surfaces.dataplane import passthrough, query
from sidecar.surfaces.dataplane.errors import ApiError

JSON = "application/json"


@pytest.mark.parametrize(
    ("asked", "model"),
    [
        ("", None),
        ("a=1", None),
        ("model=m", "m"),
        ("a=1&model=org%2Fm+x&b=2", "org/m x"),
        ("%6dodel=m", "m"),
        ("models=m&xmodel=y", None),
        ("model", ""),
        ("model=a;model=b", "a;model=b"),
    ],
)
def test_a_query_names_a_model_or_none(asked: str, model: str | None) -> None:
    assert query.model_in(asked) == model


@pytest.mark.parametrize("asked", ["model=a&model=a", "model=a&%6dodel=b", "model&model=a"])
def test_a_model_named_twice_is_refused(asked: str) -> None:
    with pytest.raises(ApiError, match="twice"):
        query.model_in(asked)


def test_only_the_name_is_replaced() -> None:
    assert query.with_model("a=%20&%6dodel=m&b=+&c", "org/m&x") == "a=%20&%6dodel=org%2Fm%26x&b=+&c"
    assert query.with_model("model=org/m", "org/m") == "model=org/m"


@pytest.mark.parametrize(
    ("body", "kind", "code"),
    [
        (b'{"model": "b"}', "audio/wav", "model_conflict"),
        (b'\xef\xbb\xbf{"model": "b"}', "audio/wav", "invalid_json"),
        (b'{"model": "b", "\\u006dodel": null}', JSON, "invalid_json"),
        (b"RIFF", "application/x-www-form-urlencoded", "invalid_json"),
        (b"[]", JSON, "invalid_type"),
    ],
)
def test_a_body_beside_a_query_is_looked_at_unless_it_is_sound_or_a_picture(body: bytes, kind: str, code: str) -> None:
    with pytest.raises(ApiError) as refused:
        query.head_of(body, kind, "a")
    assert refused.value.code == code


def test_a_body_need_not_name_what_the_query_does() -> None:
    assert query.head_of(b"", "", "a").model is None
    assert query.head_of(b"RIFF{}", "Audio/wav", "a").model is None
    assert query.head_of(b'{"stream": true}', JSON, "a").streams
    assert query.head_of(b'{"model": "a"}', JSON, "a").model == "a"


@pytest.mark.parametrize(
    ("path", "model", "rest"),
    [
        ("/upstream/m/v1/x", "m", "/v1/x"),
        ("/upstream/m", "m", "/"),
        ("/upstream/m/", "m", "/"),
        ("/upstream/org%2Fm/a%2Fb/../c", "org/m", "/a%2Fb/../c"),
        ("/upstream/m%2525/x", "m%25", "/x"),
        ("/upstream/../x", "..", "/x"),
        ("/upstream//x", "", "/x"),
    ],
)
def test_the_first_segment_is_the_model_and_the_rest_the_servers(path: str, model: str, rest: str) -> None:
    assert (passthrough.model_of(path), passthrough.server_path(path)) == (model, rest)


def test_a_path_that_a_filter_has_put_in_its_place_stays() -> None:
    assert passthrough.server_path("/health") == "/health"


def test_what_only_looks_like_json_is_passed_through_unless_it_claims_to_be() -> None:
    names = {"m", "inner"}
    passthrough.check_names("", b"{% template %}", "text/plain", names)
    passthrough.check_names("model=inner", b'{"model": "m"}', JSON, names)
    for body, kind in (
        (b"{", JSON),
        (b"{", ""),
        (b'{"model": "x"}', "text/plain"),
        (b'{"model": "a", "model": "b"}', "text/plain"),  # a server might read it anyway
        (b'{"Model": "x"} and so on', "text/plain"),
        (b"--x", "multipart/form-data; boundary=x"),
    ):
        with pytest.raises(ApiError):
            passthrough.check_names("", body, kind, names)
