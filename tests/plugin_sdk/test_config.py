"""Typed settings, and the three types that TOML has no literal for."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugin_sdk import ByteSize, Config, Duration, Secret
from plugin_sdk.config import convert, schema

pure = settings(max_examples=200, deadline=None, derandomize=True, database=None)


class Nested(Config):
    wait: Duration = Duration(1)


class Example(Config):
    path: str
    wait: Duration = Duration(30)
    size: ByteSize = ByteSize(64)
    key: Secret | None = None
    nested: Nested = Nested()


class Odd(Config):
    number: complex = 0j


# --- durations and sizes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("30s", 30), ("10m", 600), ("1h30m", 5400), ("2d", 172800), ("1.5h", 5400), ("0s", 0)],
)
def test_a_duration_is_a_sum_of_numbers_with_units(text: str, seconds: float) -> None:
    assert Duration.parse(text) == pytest.approx(seconds)
    assert isinstance(Duration.parse(text), Duration)


@pytest.mark.parametrize("text", ["", "30", "s", "30 s", "-5s", "30s!", "1.5.5s", "5S", "1h 30m", "30s\n"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a duration such as"):
        Duration.parse(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64", 64),
        ("64B", 64),
        ("64MB", 64_000_000),
        ("64MiB", 64 * 2**20),
        ("64 mib", 64 * 2**20),
        ("1.5KiB", 1536),
        ("2G", 2 * 10**9),
        (" 1TiB ", 2**40),
        ("0", 0),
    ],
)
def test_a_size_is_a_number_with_a_decimal_or_binary_unit(text: str, size: int) -> None:
    assert ByteSize.parse(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "1XB", "1 2", "1iB", "1e3"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size such as"):
        ByteSize.parse(text)


def test_a_size_beyond_all_bounds_is_refused_like_any_other() -> None:
    with pytest.raises(ValueError, match="expected a size"):
        ByteSize.parse("9" * 400)


@pure
@given(st.text(alphabet="0123456789.smhdKMGTiB -", max_size=12))
def test_any_text_is_either_read_or_refused(text: str) -> None:
    for kind in (Duration, ByteSize):
        try:
            assert kind.parse(text) >= 0
        except ValueError as error:
            assert repr(text) in str(error)


# --- secrets --------------------------------------------------------------------------------------------------------


def test_a_secret_is_never_shown_but_on_purpose() -> None:
    secret = Secret("hunter2")
    assert secret.reveal() == "hunter2"
    for shown in (repr(secret), str(secret), f"{secret}", f"{[secret]}", f"{Example(path='x', key=secret)}"):
        assert "hunter2" not in shown
    with pytest.raises(TypeError):
        msgspec.json.encode(secret)


def test_secrets_are_compared_by_value() -> None:
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a")}) == 1


def test_a_secret_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDECAR_TEST_KEY", "k1")
    assert Secret.resolve({"env": "SIDECAR_TEST_KEY"}).reveal() == "k1"


@pytest.mark.parametrize("value", [None, ""])
def test_a_variable_that_is_not_set_is_named(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIDECAR_TEST_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("SIDECAR_TEST_KEY", value)
    with pytest.raises(ValueError, match="SIDECAR_TEST_KEY is not set"):
        Secret.resolve({"env": "SIDECAR_TEST_KEY"})


def test_a_secret_in_place_of_its_variables_name_is_not_repeated() -> None:
    with pytest.raises(ValueError, match="expected env to name a variable") as caught:
        Secret.resolve({"env": "sk-0123456789"})
    assert "sk-01" not in str(caught.value)


def test_a_secret_is_read_from_a_file_without_the_last_newline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("k2\n")
    assert Secret.resolve({"file": str(tmp_path / "key")}).reveal() == "k2"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Secret.resolve({"file": "~/key"}).reveal() == "k2"


def test_a_file_that_is_absent_unreadable_or_empty_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xff")
    for name, problem in (("absent", "No such file"), ("binary", "codec"), ("empty", "is empty"), ("", "directory")):
        with pytest.raises(ValueError, match=problem) as caught:
            Secret.resolve({"file": f"{tmp_path}/{name}"})
        assert name in str(caught.value)


@pytest.mark.parametrize("source", ["plain", {}, {"env": "A", "file": "b"}, {"vault": "x"}, None, ["env", "A"]])
def test_a_secret_in_plain_text_is_refused(source: Any) -> None:
    with pytest.raises(ValueError, match="a secret never stands in a manifest"):
        Secret.resolve(source)


@pytest.mark.parametrize("source", [{"env": ""}, {"file": 5}])
def test_a_source_without_a_place_is_refused(source: Any) -> None:
    with pytest.raises(ValueError, match="to be a non-empty string"):
        Secret.resolve(source)


def test_a_refused_secret_is_not_repeated_in_the_error() -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        convert({"path": "x", "key": "hunter2"}, Example)
    assert "hunter2" not in str(caught.value)


# --- convert --------------------------------------------------------------------------------------------------------


def test_plain_data_become_a_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDECAR_TEST_KEY", "k1")
    written = {"path": "x", "wait": "5s", "size": "1KiB", "key": {"env": "SIDECAR_TEST_KEY"}, "nested": {"wait": "1m"}}
    assert convert(written, Example) == Example("x", Duration(5), ByteSize(1024), Secret("k1"), Nested(Duration(60)))


def test_values_that_were_read_already_are_kept() -> None:
    kept = {"path": "x", "wait": Duration(5), "size": ByteSize(7), "key": Secret("k")}
    assert convert(kept, Example) == Example("x", Duration(5), ByteSize(7), Secret("k"))


def test_a_config_is_frozen() -> None:
    with pytest.raises(AttributeError):
        Example("x").path = "y"


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ({}, "missing required field `path`"),
        ({"path": "x", "pth": 1}, "unknown field `pth`"),
        ({"path": 1}, r"Expected `str`, got `int` - at `\$.path`"),
        ({"path": "x", "wait": 5}, r'text with a unit, such as "10m", got 5 - at `\$.wait`'),
        ({"path": "x", "size": 5}, r'text with a unit, such as "64MB", got 5 - at `\$.size`'),
        ({"path": "x", "nested": {"wait": "soon"}}, r"'soon' - at `\$.nested.wait`"),
    ],
)
def test_a_fault_is_told_with_its_path(written: dict[str, Any], told: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=told):
        convert(written, Example)


def test_a_type_that_no_manifest_can_hold_is_the_authors_fault() -> None:
    with pytest.raises(NotImplementedError, match="complex"):
        convert({"number": 1}, Odd)


# --- JSON Schema ----------------------------------------------------------------------------------------------------


class Described(Config):
    """What it is for."""

    wait: Duration
    size: ByteSize = ByteSize(64)
    pause: Duration = Duration(90)
    years: Duration = Duration(1e8 + 0.25)
    price: Decimal = Decimal("0.15")
    key: Secret | None = None
    nested: Nested = Nested()
    each: tuple[Nested, ...] = (Nested(Duration(0.5)),)
    table: dict[str, int] = {}  # noqa: RUF012 - msgspec makes a new one each time
    words: tuple[str, ...] = ("a",)


class Selfish(Config):
    inner: Selfish | None = None


def test_the_schema_of_settings_is_what_a_manifest_may_hold() -> None:
    found = schema(Described)["$defs"]
    described, nested = found["Described"], found["Nested"]
    assert (described["description"], described["additionalProperties"]) == ("What it is for.", False)
    assert described["required"] == ["wait"]
    properties = described["properties"]
    assert {name: value.get("default") for name, value in properties.items()} == {
        "wait": None,
        "size": "64B",
        "pause": "90s",
        "years": "100000000.25s",
        "price": "0.15",
        "key": None,
        "nested": None,
        "each": ({"wait": "0.5s"},),
        "table": {},
        "words": ("a",),
    }
    assert nested["properties"]["wait"]["default"] == "1s"
    assert [one["type"] for one in properties["price"]["anyOf"]] == ["number", "string"]
    assert properties["each"]["items"] == {"$ref": "#/$defs/Nested"}


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("wait", ["30s", "1h30m", "1.5s", "250ms"], ["30", "s", "1x", ""]),
        ("size", ["64MB", "1 GiB", "3"], ["MB", "1XB"]),
    ],
)
def test_the_patterns_of_the_schema_say_what_is_read(field: str, good: list[str], bad: list[str]) -> None:
    pattern = re.compile(schema(Described)["$defs"]["Described"]["properties"][field]["pattern"])
    kind = Duration if field == "wait" else ByteSize
    for text in good:
        assert pattern.search(text)
        kind.parse(text)
    for text in bad:
        assert not pattern.search(text)
        with pytest.raises(ValueError, match="expected"):
            kind.parse(text)


def test_a_default_that_the_schema_gives_can_be_read_again() -> None:
    defaults = schema(Described)["$defs"]["Described"]["properties"]
    assert convert(defaults["pause"]["default"], Duration) == Duration(90)
    assert convert(defaults["years"]["default"], Duration) == Duration(1e8 + 0.25)
    assert convert(defaults["price"]["default"], Decimal) == convert(0.15, Decimal) == Decimal("0.15")
    assert convert(defaults["size"]["default"], ByteSize) == 64


def test_a_secret_is_described_by_where_it_may_come_from_and_never_told() -> None:
    class Keyed(Config):
        key: Secret = Secret("hush")

    found = schema(Keyed)
    assert "hush" not in str(found)
    assert [one["required"] for one in found["$defs"]["Keyed"]["properties"]["key"]["oneOf"]] == [["env"], ["file"]]


def test_settings_within_themselves_have_a_schema() -> None:
    assert schema(Selfish)["$defs"]["Selfish"]["properties"]["inner"]["anyOf"][0]["type"] == "object"


def test_a_type_that_no_manifest_can_hold_has_no_schema() -> None:
    with pytest.raises((TypeError, NotImplementedError)):
        schema(Odd)
