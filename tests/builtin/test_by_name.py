"""The built-in plugins as manifests name them: by import path with settings, or by name alone where none are needed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from plugin_sdk.config import convert
from sidecar.builtin import balance
from sidecar.core.manifest import PluginDeclaration
from sidecar.mechanism.plugins import BUILTIN, BUILTIN_CHAIN, STRATEGIES, load
from tests.builtin.test_keys import hashed

SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "sidecar.builtin.keys:StaticKeys": ("auth", {"keys": {hashed("a"): "x", hashed("b"): {"principal": "y"}}}),
    "sidecar.builtin.limits:Limits": ("filter", {"principals": {"team-*": {"requests_per_minute": 9}}}),
    "sidecar.builtin.usage:Usage": ("stats", {"path": "usage.db", "retention": "30d"}),
    "sidecar.builtin.params:Params": ("filter", {"set": {"n": 1}, "strip": ["user"]}),
    "sidecar.builtin.balance:Balance": ("route", {"policy": "weighted", "out_for": "5s"}),
    "sidecar.builtin.log:Log": ("stats", {}),
}


@pytest.mark.parametrize("path", SETTINGS)
def test_a_manifest_may_name_it_by_import_path_with_settings(path: str, tmp_path: Path) -> None:
    kind, config = SETTINGS[path]
    catalog = load({"it": PluginDeclaration(import_path=path, config=config)}, tmp_path)
    assert catalog.faults == {}
    assert catalog.loaded["it"].kind == kind
    assert catalog.loaded["it"].make().name == "it"


def test_tokens_too_where_the_extra_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("jwt", reason='needs the extra "jwt"')
    config = {"issuer": "https://i.test", "audience": "a", "jwks_url": "https://i.test/jwks", "refresh": "10m"}
    catalog = load({"it": PluginDeclaration(import_path="sidecar.builtin.jwt:Jwt", config=config)}, tmp_path)
    assert catalog.faults == {}
    assert catalog.loaded["it"].kind == "auth"


def test_tokens_without_the_extra_are_an_error_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jwt", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "sidecar.builtin.jwt", raising=False)
    catalog = load({"it": PluginDeclaration(import_path="sidecar.builtin.jwt:Jwt")}, tmp_path)
    assert 'tokens need the extra "jwt", pip install "llm-sidecar[jwt]"' in str(catalog.faults["it"][0])
    assert "it" not in catalog.loaded


def test_those_that_need_no_settings_have_a_name(tmp_path: Path) -> None:
    catalog = load({}, tmp_path)
    assert catalog.faults == {}
    assert {name: catalog.loaded[name].kind for name in BUILTIN_CHAIN} == {
        "log": "stats",
        "usage": "stats",
        "limits": "filter",
        "balance": "route",
    }
    for name in BUILTIN | BUILTIN_CHAIN:
        assert catalog.loaded[name].make().name == name


def test_each_strategy_that_a_model_may_name_is_one_of_balance(tmp_path: Path) -> None:
    assert get_args(balance.Policy) == STRATEGIES
    catalog = load({}, tmp_path)
    for strategy in STRATEGIES:
        loaded = catalog.loaded[f"balance:{strategy}"]
        assert (loaded.cls, loaded.config) == (balance.Balance, convert({"policy": strategy}, balance.Settings))


@pytest.mark.parametrize("path", SETTINGS)
def test_a_key_that_nobody_knows_is_told_of(path: str, tmp_path: Path) -> None:
    config = {**SETTINGS[path][1], "no_such_key": 1}
    catalog = load({"it": PluginDeclaration(import_path=path, config=config)}, tmp_path)
    assert 'unknown key "no_such_key"' in str(catalog.faults["it"][0])
