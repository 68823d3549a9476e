"""What LiteLLM's settings become, one by one."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from sidecar.builtin.usage import Price, Tier, Usage
from sidecar.mechanism.importing.account import Fate
from sidecar.mechanism.importing.draft import NOBODY
from sidecar.mechanism.importing.reading import InputError
from tests.mechanism.importing.world import convert, models, text, tree, validated


def deployment(name: str = "m", model: str = "openai/x", **params: Any) -> str:
    """An entry of model_list."""
    lines = "".join(f"\n      {key}: {value}" for key, value in params.items())
    return f"  - model_name: {name}\n    litellm_params:\n      model: {model}{lines}\n"


def test_deployments_of_one_name_are_variants_that_share_the_load(tmp_path: Path) -> None:
    found = models(convert("litellm/local.yaml", tree("litellm/local.yaml")), tmp_path)["qwen"]
    assert [(one.url, one.weight) for one in found.variants] == [
        ("http://10.0.0.1:8000", 2),
        ("http://10.0.0.2:8000", 1),
    ]
    assert found.chain == ("params-qwen", "balance-weighted")


def test_a_fallback_stands_in_with_its_own_name_and_key(tmp_path: Path) -> None:
    found = models(convert("litellm/local.yaml", tree("litellm/local.yaml")), tmp_path)["big"]
    assert found.balance == "failover"
    assert [(one.url, one.model_name) for one in found.variants] == [
        ("http://10.0.0.3:8000", "big-70b"),
        ("http://localhost:11434", "small:latest"),
    ]


@pytest.mark.parametrize(
    ("model", "base", "url"),
    [
        ("openai/x", "http://h:1/v1", "http://h:1"),
        ("openai/x", "http://h:1/v1/", "http://h:1"),
        ("hosted_vllm/org/x", "http://h:1/prefix/v1", "http://h:1/prefix"),
        ("openai/x", "http://h:1", "http://h:1"),
        ("org/x", "http://h:1/v1", "http://h:1"),
        ("groq/x", "", "https://api.groq.com/openai"),
        ("gpt-4o", "", "https://api.openai.com"),
        ("ollama/x", "", "http://localhost:11434"),
    ],
)
def test_an_address_is_that_of_the_provider_or_its_own_without_v1(
    model: str, base: str, url: str, tmp_path: Path
) -> None:
    entry = deployment(model=model, **({"api_base": base} if base else {}))
    (variant,) = models(text("litellm", f"model_list:\n{entry}"), tmp_path)["m"].variants
    assert variant.url == url


@pytest.mark.parametrize(
    "model", ["anthropic/claude", "azure/x", "bedrock/x", "vertex_ai/x", "unheard/of", "hosted_vllm/x", "openai/*"]
)
def test_what_cannot_be_passed_on_as_it_is_is_left_with_the_reason(model: str) -> None:
    imported = text("litellm", f"model_list:\n{deployment(model=model)}")
    assert [name for name in imported.files if name.startswith("models/")] == []
    assert all(entry.fate is Fate.LEFT and entry.why and entry.do for entry in imported.entries)


def test_fields_of_requests_are_defaults(tmp_path: Path) -> None:
    entry = deployment(api_base="http://h:1", temperature=0.1, extra_body="{top_k: 5}", stop='["a", null]')
    loaded, problems = validated(text("litellm", f"model_list:\n{entry}"), tmp_path)
    assert problems == []
    assert loaded.declaration.plugins["params-m"].config == {"default": {"temperature": 0.1, "stop": ["a"], "top_k": 5}}


def test_fields_that_differ_between_servers_are_told_and_left() -> None:
    entries = deployment(api_base="http://h:1", temperature=0.1) + deployment(api_base="http://h:2")
    imported = text("litellm", f"model_list:\n{entries}")
    (entry,) = [entry for entry in imported.entries if entry.path.endswith(".temperature")]
    assert entry.fate is Fate.LEFT
    assert "params" not in imported.files.get("plugins.toml", "")


def test_rates_that_differ_are_shares_as_they_are_there(tmp_path: Path) -> None:
    entries = deployment(api_base="http://h:1", rpm=600) + deployment(api_base="http://h:2", rpm=200)
    found = models(text("litellm", f"model_list:\n{entries}"), tmp_path)["m"]
    assert (found.balance, [one.weight for one in found.variants]) == ("weighted", [3, 1])


def test_prices_of_tokens_are_exact_decimals_for_a_million(tmp_path: Path) -> None:
    imported = convert("litellm/prices.yaml", tree("litellm/prices.yaml"))
    loaded, problems = validated(imported, tmp_path)
    assert problems == []
    assert loaded.declaration.settings.chain == ("usage",)
    usage: Any = loaded.catalog.loaded["usage"].make()
    assert isinstance(usage, Usage)
    assert usage.config.currency == "USD"
    tier = Tier(above=128_000, input=Decimal("0.3"), output=Decimal("1.2"))
    cached, reasoning = Decimal("0.03"), Decimal("0.7")
    costs = Price(model="own", input=Decimal("0.15"), output=Decimal("0.6"), cached=cached, reasoning=reasoning)
    assert usage.config.prices == (
        structs.replace(costs, tiers=(tier,)),
        Price(model="shared", input=Decimal(1)),
    )
    assert "input = 0.15\n" in imported.files["plugins.toml"]
    counted = [name for name, model in loaded.declaration.models.items() if model.count_streams]
    assert sorted(counted) == ["own", "shared"]


def test_prices_that_differ_between_servers_are_told_and_left() -> None:
    imported = convert("litellm/prices.yaml", tree("litellm/prices.yaml"))
    told = [entry for entry in imported.entries if entry.path.endswith(".output_cost_per_token")]
    assert [entry.fate for entry in told] == [Fate.CHANGED, Fate.LEFT, Fate.LEFT]
    assert "torn" not in imported.files["plugins.toml"]


@pytest.mark.parametrize(
    ("told", "price", "why"),
    [
        ("1.5e-07", "0.15", "for a million tokens"),
        ("15e-8", "0.15", "for a million tokens"),
        ('"0.00000015"', "0.15", "for a million tokens"),
        ("0.0000000000001", "0.0000001", "for a million tokens"),
        ("0", "0", "for a million tokens"),
        ("1", "1000000", "for a million tokens"),
        ("1.6666666666666667e-07", "0.166666667", "for a million tokens, rounded to a billionth"),
    ],
)
def test_a_price_has_no_digits_that_nobody_wrote(told: str, price: str, why: str, tmp_path: Path) -> None:
    imported = text("litellm", f"model_list:\n{deployment(api_base='http://h:1', input_cost_per_token=told)}")
    loaded, problems = validated(imported, tmp_path)
    assert problems == []
    usage: Any = loaded.catalog.loaded["usage"].make()
    assert [one.input for one in usage.config.prices] == [Decimal(price)]
    assert [entry.why for entry in imported.entries if entry.path.endswith("_token")] == [why]


@pytest.mark.parametrize("told", ["-1", "11", "much", "true", ".nan", '"nan"', '"1e999999999"', "[1]"])
def test_what_is_no_price_is_told_with_its_place(told: str) -> None:
    with pytest.raises(InputError, match=r"config\.yaml:6: .*expected"):
        text("litellm", f"model_list:\n{deployment(api_base='http://h:1', input_cost_per_token=told)}")


@pytest.mark.parametrize(
    ("settings", "environment", "keys"),
    [
        ("master_key: sk-1234", {}, 1),
        ("master_key: os.environ/MASTER", {"MASTER": "sk-1234"}, 1),
        ("master_key: os.environ/MASTER", {}, 0),
        ("custom_auth: a.b", {}, 0),
    ],
)
def test_a_door_stays_a_door(settings: str, environment: dict[str, str], keys: int, tmp_path: Path) -> None:
    imported = text("litellm", f"model_list: []\ngeneral_settings: {{{settings}}}", **environment)
    loaded, problems = validated(imported, tmp_path)
    assert problems == []
    assert loaded.declaration.settings.chain == ("keys",)
    found = loaded.declaration.plugins["keys"].config["keys"]
    assert len(found.keys() - {NOBODY}) == keys
    assert (NOBODY in found) == (keys == 0)
    assert "sk-1234" not in repr(imported)


def test_secrets_of_servers_are_told_apart() -> None:
    entries = "".join(deployment(api_base=f"http://h:{n}", api_key=f"sk-key-{n}") for n in (1, 2, 1))
    imported = text("litellm", f"model_list:\n{entries}")
    assert list(imported.variables) == ["M_API_KEY", "M_API_KEY_2"]
    assert imported.files["models/m.toml"].count('"M_API_KEY"') == 2


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("model_list: {a: 1}", "model_list: expected a list"),
        ("model_list: [{model_name: m}]", "model_list[0]: expected a model_name, and litellm_params with a model"),
        (
            f"model_list:\n{deployment(api_base='ftp://h')}",
            "model_list[0].litellm_params.api_base: expected an address",
        ),
        (f"model_list:\n{deployment(api_base='http://user:pw@h')}", "expected an address"),
        ("litellm_settings: {request_timeout: soon}", "litellm_settings.request_timeout: expected a number"),
        ("litellm_settings: [x]", "litellm_settings: expected a table"),
    ],
)
def test_what_cannot_be_meant_is_told_with_its_place(content: str, told: str) -> None:
    with pytest.raises(InputError) as error:
        text("litellm", content)
    assert told in str(error.value)
    assert "user:pw" not in str(error.value)
