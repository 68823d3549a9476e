"""Variants that run already, elsewhere: addresses, keys, models' names there, and how several share the load."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from sidecar.mechanism import origins
from sidecar.mechanism.importing.account import At
from sidecar.mechanism.importing.draft import Draft

LIMITS = "sidecar.builtin.limits:Limits"
BALANCE = "sidecar.builtin.balance:Balance"
# What people write where a client insists on a key, and the server on none.
_NO_KEY = frozenset(
    """
    none null dummy empty na n/a not-needed not_needed no-key sk-no-key no-key-required sk-no-key-required not-required
    anything
    """.split()  # noqa: SIM905 - a list of words is read more easily than a column of quotes
) | {""}
PARAMS = "sidecar.builtin.params:Params"


def base_url(at: At, text: str, *, version: str = "/v1") -> str:
    """An address without the path that clients of the sidecar ask for themselves. Raises InputError.

    version: that path, if clients of the other did not ask for it themselves.
    """
    url = text.strip().rstrip("/").removesuffix(version).rstrip("/")
    try:
        origins.check(url)
    except ValueError as error:
        raise at.wrong(f"an address: {error}") from None
    return url


def has_version(text: str) -> bool:
    """Whether an address ends in `/v1`, so that clients do not ask for it there a second time."""
    return urlsplit(text.strip()).path.rstrip("/").endswith("/v1")


def balance(draft: Draft, model: str, policy: str, settings: dict[str, Any]) -> None:
    """Share the load among a model's servers. settings: of the plugin, where they are not its own defaults."""
    if not settings:
        draft.models[model]["balance"] = policy
        return
    plugin = draft.plugin(f"balance-{policy.replace('_', '-')}", BALANCE, {"policy": policy, **settings})
    draft.own_chain(model, plugin)


def params(draft: Draft, model: str, fields: dict[str, Any], name: str = "") -> None:
    """Set, default or strip fields of requests for a model. name: what the plugin is called after, if not the model."""
    draft.own_chain(model, draft.plugin(f"params-{name or model}", PARAMS, fields))


def in_flight(draft: Draft, model: str, most: int) -> str:
    """Refuse requests of all callers together beyond that many at once. Where it stands now."""
    # The plugin's own limits are on unless they are told not to be.
    config = {"requests_per_minute": 0, "tokens_per_minute": 0, "concurrent_total": most}
    plugin = draft.plugin(f"limits-{most}", LIMITS, config)
    draft.own_chain(model, plugin)
    return f"plugins.{plugin}.config.concurrent_total"


def key(draft: Draft, at: At, reference: str, wanted: str, what: str) -> dict[str, str] | None:
    """A server's key, `{ env = "NAME" }`; None if what stands there only says that there is none.

    reference: the variable that it is in already; "" if it stands there plainly.
    """
    if reference:
        at.carried("variants.api_key")
        draft.variables.setdefault(reference, what)
        return {"env": reference}
    if at.text().strip().lower() in _NO_KEY:
        at.changed("", "there is none, as it says")
        return None
    name = draft.hide(at.text(), wanted, what)
    at.changed(f"the variable {name}", "secrets do not stand in manifests", f"set {name} to what stands there")
    return {"env": name}
