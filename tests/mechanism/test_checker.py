"""Plain data to structs, with every fault told."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Any, Literal

import msgspec
import pytest

from plugin_sdk import ByteSize, Config, Duration, Secret
from sidecar.mechanism.checker import read
from sidecar.mechanism.places import Path, shown


class Wheel(Config):
    size: int
    colour: Literal["red", "blue"] = "red"


class Car(Config):
    name: str
    wheels: tuple[Wheel, ...] = ()
    spare: Wheel | None = None
    labels: dict[str, int] = {}  # noqa: RUF012 - msgspec copies it for each struct
    tags: tuple[str, ...] = ()
    timeout: Duration = Duration(1)
    tank: ByteSize = ByteSize(1)
    key: Secret | None = None


class Garage(Config):
    main: Wheel


class Picky(Config):
    number: int = 0

    def __post_init__(self) -> None:
        if self.number == 1:
            raise ValueError("one is too few")
        if self.number == 2:
            raise KeyError("two")


def faults(raw: Any, kind: type[msgspec.Struct] = Car) -> dict[str, str]:
    """What is reported, by its path."""
    found: dict[str, str] = {}

    def report(path: Path, message: str, meant: Path | None = None) -> None:
        found[shown(path)] = message

    read(raw, kind, ("car",), report)
    return found


class Key(msgspec.Struct):
    owner: str


class Keys(Config):
    keys: dict[str, Key] = {}  # noqa: RUF012 - msgspec copies it for each struct
    lists: dict[str, tuple[Key, ...]] = {}  # noqa: RUF012 - as above


class Part(msgspec.Struct):
    memory_mb: dict[str, int]


def test_no_key_that_may_be_a_secret_is_told() -> None:
    raw = {"keys": {"sk-live-1": {"owner": 5}}, "lists": {"sk-live-2": [{}]}}
    told = faults(raw, Keys)
    assert told == {
        "car.keys[...].owner": "expected str, got int",
        "car.lists[...][0].owner": "is missing: expected str",
    }
    assert faults({"memory_mb": {"nvidia": "x"}}, Part) == {"car.memory_mb.nvidia": "expected int, got str"}


def test_what_is_right_is_read() -> None:
    raw = {"name": "x", "wheels": [{"size": 1}], "labels": {"a": 1}, "tags": ["t"], "timeout": "2m", "tank": "1KiB"}
    told: list[str] = []

    def report(path: Path, message: str, meant: Path | None = None) -> None:
        told.append(message)

    car = read(raw, Car, (), report)
    assert car == Car(
        name="x", wheels=(Wheel(size=1),), labels={"a": 1}, tags=("t",), timeout=Duration(120), tank=ByteSize(1024)
    )
    assert told == []


@pytest.mark.parametrize(
    ("raw", "path", "message"),
    [
        ({"name": "x", "tagz": []}, "car.tagz", 'unknown key "tagz"; did you mean "tags"?'),
        ({"name": "x", "zzz": []}, "car.zzz", 'unknown key "zzz"'),
        ({}, "car.name", "is missing: expected str"),
        ({"name": 3}, "car.name", "expected str, got int"),
        ({"name": "x", "tags": "t"}, "car.tags", "expected array, got str"),
        ({"name": "x", "tags": ["t", 1]}, "car.tags[1]", "expected str, got int"),
        ({"name": "x", "labels": {"a": "b"}}, "car.labels[...]", "expected int, got str"),
        ({"name": "x", "spare": 3}, "car.spare", "expected table, got int"),
        ({"name": "x", "wheels": {}}, "car.wheels", "expected an array of tables ([[...wheels]]), got a table"),
        ({"name": "x", "wheels": [1]}, "car.wheels[0]", "expected a table, got an integer"),
        ({"name": "x", "wheels": [{}]}, "car.wheels[0].size", "is missing: expected int"),
        ({"name": "x", "wheels": [{"size": True}]}, "car.wheels[0].size", "expected int, got bool"),
        (
            {"name": "x", "wheels": [{"size": 1, "colour": "rad"}]},
            "car.wheels[0].colour",
            'invalid enum value \'rad\'; expected "red" or "blue"',
        ),
        ({"name": "x", "spare": {"size": "1"}}, "car.spare.size", "expected int, got str"),
        (
            {"name": "x", "timeout": "soon"},
            "car.timeout",
            'expected a duration such as "30s", "10m" or "1h30m", got \'soon\'',
        ),
        ({"name": "x", "timeout": 30}, "car.timeout", 'expected text with a unit, such as "10m", got 30'),
        ({"name": "x", "tank": 30}, "car.tank", 'expected text with a unit, such as "64MB", got 30'),
        (
            {"name": "x", "key": "hunter2"},
            "car.key",
            'expected { env = "NAME" } or { file = "PATH" }: a secret never stands in a manifest',
        ),
        ([], "car", "expected a table, got an array"),
        (3.5, "car", "expected a table, got a float"),
    ],
)
def test_a_fault_is_told_at_its_path(raw: Any, path: str, message: str) -> None:
    assert faults(raw) == {path: message}


def test_every_fault_is_told_not_only_the_first() -> None:
    raw: Any = {"nane": "x", "wheels": [{"size": "big"}, {"siz": 1}], "timeout": "soon"}
    assert faults(raw).keys() == {
        "car.nane",
        "car.wheels[0].size",
        "car.wheels[1].siz",
        "car.timeout",
    }


def test_a_required_key_that_is_misspelt_is_not_told_to_be_missing_as_well() -> None:
    assert faults({"nmae": "x"}) == {"car.nmae": 'unknown key "nmae"; did you mean "name"?'}
    assert faults({"nmae": "x", "name": "y"}) == {"car.nmae": 'unknown key "nmae"; did you mean "name"?'}
    assert faults({"zzz": "x"}).keys() == {"car.zzz", "car.name"}


def test_what_a_struct_says_about_itself_is_told() -> None:
    assert faults({"number": 1}, Picky) == {"car": "one is too few"}


def test_a_struct_is_not_asked_about_itself_when_it_was_made_of_stand_ins() -> None:
    class Full(Config):
        keys: dict[str, str]

        def __post_init__(self) -> None:
            if not self.keys:
                raise ValueError("no keys: nobody could get in")

    assert list(faults({}, Full)) == ["car.keys"]
    assert faults({"keys": {}}, Full) == {"car": "no keys: nobody could get in"}


def test_a_struct_that_breaks_on_its_own_values_is_a_fault_and_no_crash() -> None:
    assert "two" in faults({"number": 2}, Picky)["car"]


@pytest.mark.parametrize("raw", [{}, {"main": 3}, {"main": {}}])
def test_a_required_table_may_be_missing_or_wrong(raw: Any) -> None:
    assert list(faults(raw, Garage)) == (["car.main.size"] if raw == {"main": {}} else ["car.main"])


def test_a_type_that_toml_cannot_hold_is_a_fault_and_no_crash() -> None:
    class Author(Config):
        folder: FilePath

    assert list(faults({"folder": "x"}, Author)) == ["car.folder"]
