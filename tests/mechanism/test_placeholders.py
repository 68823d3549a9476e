"""`{port}` and its like."""

from __future__ import annotations

import pytest

from sidecar.mechanism.placeholders import PlaceholderError, check, environment, fill, names_in


@pytest.mark.parametrize(
    "text",
    ["--port={port}", "{model}", "{state_dir}/x", "{python}", "{devices.index}", "{devices.uuid}", "{env.HOME}", ""],
)
def test_known_placeholders_are_let_through(text: str) -> None:
    check(text)


@pytest.mark.parametrize("text", ['{"n_gpu_layers": 3}', "{}", "{ port }", "${1}x{2}", "a{b-c}d", "{{"])
def test_braces_that_are_no_placeholder_stay(text: str) -> None:
    check(text)
    assert fill(text, {"port": "1"}) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{prot}", 'unknown placeholder "{prot}"; did you mean "port"?'),
        ("{device.uuid}", 'unknown placeholder "{device.uuid}"; did you mean "devices.uuid"?'),
        ("{PORT}", 'unknown placeholder "{PORT}"; did you mean "port"?'),
        ("{env}", 'unknown placeholder "{env}"'),
        ("{xyzzy}", 'unknown placeholder "{xyzzy}"'),
    ],
)
def test_an_unknown_one_is_an_error_with_the_near_one(text: str, message: str) -> None:
    with pytest.raises(PlaceholderError) as told:
        check(text)
    assert str(told.value).startswith(message)


def test_what_is_known_now_is_filled_and_the_rest_waits() -> None:
    assert fill("{model} at {port}, {port}", {"model": "qwen"}) == "qwen at {port}, {port}"
    assert fill("{model} at {port}", {"port": "8"}) == "{model} at 8"


def test_a_value_is_text_and_is_not_looked_at_again() -> None:
    assert fill("{env.A}{port}", environment({"A": "{port}$(rm)\\1"}) | {"port": "8"}) == "{port}$(rm)\\18"


def test_a_variable_that_is_not_set_is_an_error_where_the_environment_is_known() -> None:
    with pytest.raises(PlaceholderError, match=r'environment variable NOPE is not set \("\{env.NOPE\}"\)'):
        fill("x{env.NOPE}", environment({"HOME": "/"}))
    assert fill("{env.NOPE}", {"port": "8"}) == "{env.NOPE}"


def test_a_variable_may_be_set_to_nothing() -> None:
    assert fill("<{env.A}>", environment({"A": ""})) == "<>"


def test_names_are_listed_in_order() -> None:
    assert names_in("{b}{a}{ x }{b}") == ["b", "a", "b"]
