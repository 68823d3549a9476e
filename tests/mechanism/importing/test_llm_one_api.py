"""What LLM One API's settings become, one by one."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from plugin_sdk import Reject, Request
from sidecar.builtin.usage import Price
from sidecar.mechanism.importing.account import Fate
from sidecar.mechanism.importing.draft import NOBODY
from sidecar.mechanism.importing.reading import InputError
from tests.mechanism.importing.world import convert, models, text, tree, validated


def test_upstreams_are_variants_that_share_the_load(tmp_path: Path) -> None:
    found = models(convert("llm_one_api/load_balance.yaml", tree("llm_one_api/load_balance.yaml")), tmp_path)
    assert found["gpt-3.5-turbo"].balance == "round_robin"
    assert [one.weight for one in found["gpt-4"].variants] == [5, 1]
    assert found["gpt-4"].chain == ("keys", "log", "limits", "balance-weighted")
    assert "claude-3-opus" not in found
    assert found["text-embedding-ada-002"].modes == ("embedding",)


def test_an_auth_plugin_of_ones_own_gets_a_place_that_lets_nobody_in(tmp_path: Path) -> None:
    loaded, problems = validated(convert("llm_one_api/guide.yaml", tree("llm_one_api/guide.yaml")), tmp_path)
    assert problems == []
    assert loaded.declaration.settings.chain[0] == "database"
    assert loaded.declaration.plugins["database"].config == {"db_path": "/path/to/auth.db"}
    plugin: Any = loaded.catalog.loaded["database"].make()
    with pytest.raises(Reject) as refused:
        plugin.authenticate(Request(method="POST", path="/"))
    assert refused.value.status == 503


def test_limits_are_those_of_each_caller(tmp_path: Path) -> None:
    for number, (limit, least) in enumerate({"100/minute": 100, "7200/hour": 120, "2/second": 120, "5/day": 1}.items()):
        content = f"models: {{}}\nrate_limit: {{enabled: true, default_limit: {limit}}}"
        loaded, problems = validated(text("llm_one_api", content), tmp_path / str(number))
        assert problems == []
        assert loaded.declaration.plugins["limits"].config == {"requests_per_minute": least, "tokens_per_minute": 0}


def test_a_limit_that_was_off_stays_off(tmp_path: Path) -> None:
    loaded, _ = validated(convert("llm_one_api/default.yaml", tree("llm_one_api/default.yaml")), tmp_path)
    assert "limits" not in loaded.declaration.plugins


def test_without_keys_nobody_is_let_in(tmp_path: Path) -> None:
    loaded, problems = validated(text("llm_one_api", "host: 0.0.0.0\nport: 8000\nmodels: {}"), tmp_path)
    assert problems == []
    assert loaded.declaration.settings.listen == "0.0.0.0:8000"
    assert loaded.declaration.plugins["keys"].config == {"keys": {NOBODY: "nobody"}}


def test_prices_for_a_thousand_tokens_are_for_a_million_here(tmp_path: Path) -> None:
    loaded, problems = validated(convert("llm_one_api/pricing.yaml", tree("llm_one_api/pricing.yaml")), tmp_path)
    assert problems == []
    usage: Any = loaded.catalog.loaded["usage"].make()
    assert usage.config.prices == (
        Price(model="gpt-3.5-turbo", input=Decimal("1.5"), output=Decimal(2)),
        Price(model="gpt-4", input=Decimal(30), output=Decimal(60)),
    )


def test_of_several_prices_that_of_the_first_server_counts(tmp_path: Path) -> None:
    key = "price_per_1k_prompt_tokens"
    first = f"{{api_base: 'http://h:1', {key}: 0.0007, metadata: {{{key}: 2}}}}"
    content = f"models: {{m: {{{key}: 3, upstreams: [{first}, {{api_base: 'http://h:2', {key}: 4}}]}}}}"
    imported = text("llm_one_api", content)
    loaded, problems = validated(imported, tmp_path)
    assert problems == []
    usage: Any = loaded.catalog.loaded["usage"].make()
    assert [one.input for one in usage.config.prices] == [Decimal("0.7")]
    told = [(entry.path, entry.fate) for entry in imported.entries if entry.path.endswith(key)]
    assert [path for path, fate in told if fate is Fate.CHANGED] == [f"models.m.upstreams[0].{key}"]
    assert len(told) == 4


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("models: {a: {api_key: x}}", "models.a: expected an api_base"),
        ("models: {a: {upstreams: [{api_base: nowhere}]}}", "models.a.upstreams[0].api_base: expected an address"),
        (
            "rate_limit: {enabled: true, default_limit: much}",
            'rate_limit.default_limit: expected a rate such as "100/minute"',
        ),
        (
            "models: {a: {api_base: 'http://h', price_per_1k_prompt_tokens: -1}}",
            "models.a.price_per_1k_prompt_tokens: expected a price from 0 to 10000",
        ),
        ("rate_limit: {enabled: 3}", "rate_limit.enabled: expected true or false"),
    ],
)
def test_what_cannot_be_meant_is_told_with_its_place(content: str, told: str) -> None:
    with pytest.raises(InputError) as error:
        text("llm_one_api", content)
    assert told in str(error.value)
