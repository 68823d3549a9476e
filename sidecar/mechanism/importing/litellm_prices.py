"""What tokens cost in LiteLLM, each, in US dollars: https://docs.litellm.ai/docs/proxy/custom_pricing."""

from __future__ import annotations

import re

from sidecar.mechanism.importing.account import At, items
from sidecar.mechanism.importing.prices import Rate, rate

Rates = dict[tuple[int, str], Rate]

_NAMES = {
    "input_cost_per_token": "input",
    "output_cost_per_token": "output",
    "cache_read_input_token_cost": "cached",
    "output_cost_per_reasoning_token": "reasoning",
}
_KEY = re.compile(rf"({'|'.join(_NAMES)})(?:_above_([1-9][0-9]{{0,8}})(k?)_tokens)?")
_OTHER = re.compile(r"(^|_)(costs?|pric(e|es|ing))(_|$)")


def is_price(name: str) -> bool:
    """Whether a setting of that name is a price that can be carried."""
    return bool(_KEY.fullmatch(name))


def leave(at: At) -> bool:
    """Whether it is a price of another kind, of which it is said then why it is left."""
    if is_price(at.name) or not _OTHER.search(at.name):
        return False
    at.left(
        "the plugin `usage` has no prices of that kind",
        "it has some for tokens, by the length of prompts, for requests and for hours: manifests/README.md",
    )
    return True


def rates(info: At | None, params: At) -> Rates:
    """By (tokens of a prompt above which it holds, what it is for). Raises InputError."""
    found: Rates = {}
    for at in (*items(info), *items(params)):  # LiteLLM puts these over those
        if not (match := _KEY.fullmatch(at.name)):
            continue
        key = (int(match[2] or 0) * (1000 if match[3] else 1), _NAMES[match[1]])
        if key in found:
            found[key].at.left(f"{at.name} in another place counts")
        found[key] = rate(at, 1)
    return found


def agree(servers: list[Rates]) -> bool:
    """Whether all cost the same; of those that do not it is said."""
    amounts = [{key: one.amount for key, one in rates.items()} for rates in servers]
    if all(one == amounts[0] for one in amounts):
        return True
    for one in (one for rates in servers for one in rates.values()):
        one.at.left("its servers had different prices, and here a model has one", "make it two models")
    return False
