"""The manifest's types: what they mean, where it is more than their fields."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from plugin_sdk import Duration, Secret
from sidecar.core.manifest import Declaration, Model, PluginDeclaration, PortRange, Problem, Settings, Variant
from tests.core.build import declare, external, model, variant


def changed(of: Variant, **fields: Any) -> Variant:
    return msgspec.structs.replace(of, **fields)


@pytest.mark.parametrize(
    ("text", "ports"), [("41000-41999", (41000, 41999)), ("1 - 65535", (1, 65535)), ("80-80", (80, 80))]
)
def test_a_port_range_includes_both_ends(text: str, ports: tuple[int, int]) -> None:
    assert PortRange.parse(text) == PortRange(*ports)


@pytest.mark.parametrize("text", ["", "80", "80-", "-80", "a-b", "1-2-3", "1.5-2", "-1-5", "²-³"])
def test_what_is_no_port_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a port range such as"):
        PortRange.parse(text)


@pytest.mark.parametrize("text", ["0-10", "10-9", "1-65536"])
def test_ports_outside_the_possible_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected ports from 1 to 65535 in rising order"):
        PortRange.parse(text)


def test_one_number_is_needed_on_each_device_and_a_table_tells_them_apart() -> None:
    assert variant(100, "gpu", "gpu").needs() == (("gpu", 100), ("gpu", 100))
    assert variant({"cpu": 1, "gpu": 2}, "gpu", "cpu").needs() == (("gpu", 2), ("cpu", 1))


def test_a_variant_with_a_url_is_external() -> None:
    assert external().external
    assert not variant().external


# --- fingerprints ---------------------------------------------------------------------------------------------------

BASE = variant({"gpu": 100, "cpu": 50}, "gpu", "cpu", env={"A": "1", "B": "2"}, cwd="x")


@pytest.mark.parametrize(
    "fields",
    [
        {"command": ("serve", "--more")},
        {"env": {"A": "1", "B": "3"}},
        {"env": {}},
        {"cwd": "y"},
        {"memory_mb": {"gpu": 101, "cpu": 50}},
        {"required_devices": ("cpu", "gpu")},
    ],
)
def test_what_a_running_server_cannot_take_over_changes_the_fingerprint(fields: dict[str, Any]) -> None:
    assert changed(BASE, **fields).fingerprint() != BASE.fingerprint()


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "other"},
        {"load_timeout": Duration(1)},
        {"stop_timeout": Duration(1)},
        {"model_name": "upstream"},
        {"api_key": Secret("s")},
        {"foreign_listener": True},
        {"env": {"B": "2", "A": "1"}},
    ],
)
def test_what_a_running_server_need_not_know_keeps_the_fingerprint(fields: dict[str, Any]) -> None:
    assert changed(BASE, **fields).fingerprint() == BASE.fingerprint()


def test_the_order_of_the_memory_table_keeps_the_fingerprint() -> None:
    assert changed(BASE, memory_mb={"cpu": 50, "gpu": 100}).fingerprint() == BASE.fingerprint()


def test_the_same_memory_written_as_a_number_or_a_table_keeps_the_fingerprint() -> None:
    assert variant(100).fingerprint() == variant({"gpu": 100}).fingerprint()


# --- models and declarations ----------------------------------------------------------------------------------------


def test_a_model_speaks_one_mode_or_several() -> None:
    assert model().modes == ("chat",)
    assert Model(variants=(), mode=("chat", "embedding")).modes == ("chat", "embedding")


def test_a_model_has_the_default_chain_unless_it_names_one() -> None:
    declaration = Declaration(settings=Settings(chain=("keys",)))
    assert declaration.chain_of(model()) == ("keys",)
    assert declaration.chain_of(model(chain=("log",))) == ("log",)
    assert declaration.chain_of(model(chain=())) == ()
    assert declaration.chain_of(model(balance="weighted")) == ("keys", "balance:weighted")
    assert declaration.chain_of(model(balance="failover", chain=())) == ("balance:failover",)


def test_a_model_is_found_by_name_or_alias_and_names_win() -> None:
    one, two = model(aliases=("uno", "two")), model(priority=1)
    declaration = declare(one=one, two=two)
    assert declaration.find("one") == declaration.find("uno") == ("one", one)
    assert declaration.find("two") == ("two", two)
    assert declaration.find("three") is None


def test_a_plugin_is_declared_with_the_key_import() -> None:
    declared = msgspec.convert({"import": "a:B"}, PluginDeclaration)
    assert (declared.import_path, declared.config, declared.on_error) == ("a:B", {}, None)
    assert declared.disable_after == 5
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.convert({"import": "a:B", "import_path": "a:B"}, PluginDeclaration)


def test_a_problem_tells_where_it_is_as_far_as_that_is_known() -> None:
    assert str(Problem(file="a.toml", line=3, path="models.a", message="no")) == "a.toml:3: models.a: no"
    assert str(Problem(file="a.toml", path="models.a", message="no")) == "a.toml: models.a: no"
    assert str(Problem(file="a.toml", line=3, message="no")) == "a.toml:3: no"


def test_a_variant_has_as_long_to_load_as_it_says_or_as_its_memory_takes_from_a_slow_disk() -> None:
    assert Variant(load_timeout=Duration(7)).load_deadline_s == 7
    assert Variant(required_devices=("gpu", "cpu"), memory_mb=6400).load_deadline_s == 120 + 200
