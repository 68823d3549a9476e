"""LLM One API (https://github.com/Puhua-AI-Research/llm-one-api), by its plugin guide and its config.yaml.

All of its servers run elsewhere: the variants of models have a url.
"""

from __future__ import annotations

import re
from typing import Any

from sidecar.mechanism.importing import commands, prices, remote, skeletons
from sidecar.mechanism.importing.account import Account, At, each, items
from sidecar.mechanism.importing.draft import Draft, Imported, Options
from sidecar.mechanism.importing.reading import Tree

STRATEGIES = {
    "round_robin": "round_robin",
    "random": "round_robin",
    "weighted": "weighted",
    "least_connections": "least_busy",
}
_LOG = ("the log of the sidecar is its own", "")
_LISTED = ("/v1/models lists names alone", "")
_TIMEOUT = ("a server has no time limit of its own", "request_timeout in [sidecar] bounds whole requests")
LEFT: dict[str, tuple[str, str]] = {
    "workers": ("one process serves all", ""),
    "log_level": _LOG,
    "logging": _LOG,
    "cors": ("its settings are others", "cors_origins in [sidecar]"),
}
SERVER_LEFT: dict[str, tuple[str, str]] = {
    "timeout": _TIMEOUT,
    "max_retries": ("a request is tried again only when nothing of it can have been processed, and then at once", ""),
    "health_check_interval": ("servers are watched all the time", ""),
    "owned_by": _LISTED,
    "metadata": _LISTED,
    "max_tokens": ("the server itself says what is too long for it", ""),
    "max_input_tokens": ("the server itself says what is too long for it", ""),
    "max_output_tokens": ("the server itself says what is too long for it", ""),
}
PRICES = {"price_per_1k_prompt_tokens": "input", "price_per_1k_completion_tokens": "output"}
_KEYED_AUTH = ("default_auth", "simple")
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_DEFAULT_FAILURES = 3


def convert(tree: Tree, options: Options) -> Imported:
    """The manifests. Raises InputError where the configuration is none."""
    return _Import(tree, options).run()


class _Import:
    def __init__(self, tree: Tree, options: Options) -> None:
        account = Account(tree)
        self.root = account.root()
        self.draft = Draft("LLM One API", account, options)
        self.prices: list[dict[str, Any]] = []

    def run(self) -> Imported:
        self._left()
        self._auth()
        self._stats()
        self._limits()
        self._listen()
        self.draft.expect(at.name for at in items(self.root.get("models")))
        for at in items(self.root.get("models")):
            self._model(at)
        prices.declare(self.draft, self.prices)
        router = self.root.get("plugins", "model_route")
        if router and router.text() in ("default_router", "config"):
            router.changed("models", "models stand in manifests")
        elif router:
            router.left("code has to be ported", "make it a route plugin: examples/plugins/database_router")
        return self.draft.imported()

    # --- the whole ------------------------------------------------------------------------------------------------

    def _left(self) -> None:
        for key, (why, do) in LEFT.items():
            for at in (self.root.get(key), self.root.get("server", key)):
                if at:
                    at.left(why, do)

    def _listen(self) -> None:
        host, port = (self.root.get("server", key) or self.root.get(key) for key in ("host", "port"))
        address = f"{host.host() if host else '127.0.0.1'}:{port.port() if port else 8000}"
        self.draft.settings["listen"] = address
        for at in (host, port):
            if at:
                at.carried("sidecar.listen")

    def _auth(self) -> None:
        chosen = self.root.get("plugins", "auth")
        name = chosen.text() if chosen else "default_auth"
        for at in items(self.root.get("auth")):
            if at.name != name:
                at.left(f'the auth plugin is "{name}"')
        settings = self.root.get("auth", name)
        if name not in _KEYED_AUTH:
            self._ported(name, chosen, settings)
            return
        if chosen:
            chosen.changed("plugins.keys", "keys are checked by the plugin `keys`")
        keys = settings.get("api_keys") if settings else None
        for number, at in enumerate(keys.each() if keys else (), 1):
            match = _VARIABLE.fullmatch(at.text())
            self.draft.key(at, f"key-{number}", match[1] if match else "")
        if keys is None or not keys.value:
            self.draft.shut()

    def _ported(self, name: str, chosen: At | None, settings: At | None) -> None:
        config = {}
        for at in items(settings):
            if at.is_table or isinstance(at.value, list):
                at.left("code has to be ported", "give it to the plugin that you make of it")
                continue
            config[at.name] = at.value
            at.carried(f"plugins.{name}.config")
        plugin = skeletons.auth(self.draft, name, config)
        self.draft.chain(plugin, first=True)
        if chosen:
            chosen.changed(
                "sidecar.chain", "its place is kept, and lets nobody in", f"port it into plugins/{plugin}.py"
            )

    def _stats(self) -> None:
        known = {"log": "log", "memory": "usage"}
        for at in each(self.root.get("plugins", "stats")):
            if plugin := known.get(at.text()):
                self.draft.chain(plugin)
                at.changed("sidecar.chain", f"the plugin `{plugin}`")
            else:
                at.left("code has to be ported", "make it a stats plugin: examples/plugins/redis_stats")
        for at in items(self.root.get("stats")):
            at.left("the plugins `log` and `usage` have settings of their own", "")

    def _limits(self) -> None:
        at = self.root.get("rate_limit")
        if at is None:
            return
        on, rate, text = (at.get(key) for key in ("enabled", "requests_per_minute", "default_limit"))
        for entry in at.items():
            entry.left("it was off" if not (on and on.flag()) else "limits are for each caller and model")
        if not (on and on.flag()):
            return
        on.changed("sidecar.chain", "the plugin `limits`")
        limit = rate.whole() if rate else _per_minute(text) if text else 60
        for told in (rate, text):
            if told:
                told.changed("plugins.limits.config.requests_per_minute", "for each caller and model")
        config = {"requests_per_minute": limit, "tokens_per_minute": 0}
        self.draft.chain(self.draft.plugin("limits", "sidecar.builtin.limits:Limits", config))

    # --- models ---------------------------------------------------------------------------------------------------

    def _model(self, at: At) -> None:
        upstreams = at.get("upstreams")
        servers = list(upstreams.each()) if upstreams else [at]
        if not servers:
            raise at.wrong("at least one upstream")
        for place in (at, *servers):
            for key, (why, do) in SERVER_LEFT.items():
                if entry := place.get(key):
                    entry.left(why, do)
        adapter = at.get("adapter") or next((entry for one in servers if (entry := one.get("adapter"))), None)
        if adapter and adapter.text() != "openai":
            at.left(
                "its server does not speak OpenAI's API, and the sidecar translates none", "put a translator before it"
            )
            return
        if adapter:
            adapter.changed("mode", "OpenAI's API is what modes speak")
        modes = commands.modes_by_name(at.name)
        name, table = self.draft.model(at.name, modes)
        self.draft.comment(name, f"What it speaks ({', '.join(modes)}) is a guess by its name.")
        table["variants"] = [self._variant(at.name, server) for server in servers]
        self._price(name, at, servers)
        self._share(at, name, len(servers))

    def _price(self, model: str, at: At, servers: list[At]) -> None:
        """What stands at the first server counts there, then at the model, then in the metadata of either."""
        places = [servers[0], at, *_metadata(servers[0]), *_metadata(at)]
        others = [place for one in servers[1:] for place in (one, *_metadata(one))]
        found = {}
        for key, name in PRICES.items():
            told = {entry.path: entry for place in places if (entry := place.get(key))}  # may be the same place twice
            for entry in (*list(told.values())[1:], *(entry for place in others if (entry := place.get(key)))):
                entry.left("only one price counted, that of the first server")
            for entry in list(told.values())[:1]:
                found[0, name] = prices.rate(entry, 1000)
        if found:
            self.prices.append(prices.price(model, found))

    def _variant(self, model: str, at: At) -> dict[str, Any]:
        base, key, weight = (at.get(name) for name in ("api_base", "api_key", "weight"))
        if base is None:
            raise at.wrong("an api_base")
        variant: dict[str, Any] = {"url": remote.base_url(base, base.text())}
        base.changed("variants.url", "without /v1, which clients ask for themselves")
        if key:
            match = _VARIABLE.fullmatch(key.text())
            what = f"the key of {model}'s server"
            if found := remote.key(self.draft, key, match[1] if match else "", f"{model}_api_key", what):
                variant["api_key"] = found
        if weight:
            variant["weight"] = max(1, weight.whole())
            weight.carried("variants.weight")
        return variant

    def _share(self, at: At, name: str, servers: int) -> None:
        strategy, failures = at.get("load_balance_strategy"), at.get("max_failures")
        policy = STRATEGIES.get(strategy.text(), "") if strategy else "round_robin"
        if strategy and policy:
            strategy.changed(f"models.{name}.balance", f"{policy} comes nearest")
        elif strategy:
            strategy.left("there is no strategy of that kind", "make it a route plugin: `sidecar plugin new route`")
        if servers < 2:
            for entry in (strategy, failures):
                if entry:
                    entry.left("there is one server, which has all the load")
            return
        settings = {}
        if failures:
            failures.changed("plugins.balance-*.config.max_failures", "3 is what it is anyway")
            settings = {"max_failures": failures.whole()} if failures.whole() != _DEFAULT_FAILURES else {}
        remote.balance(self.draft, name, policy or "least_busy", settings)


def _metadata(at: At) -> list[At]:
    found = at.get("metadata")
    return [found] if found and found.is_table else []


def _per_minute(at: At) -> int:
    """`100/minute`."""
    count, slash, unit = at.text().partition("/")
    seconds = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}.get(unit.strip().rstrip("s"))
    if not slash or seconds is None or not count.strip().isdecimal():
        raise at.wrong('a rate such as "100/minute"')
    return max(1, int(count) * 60 // seconds)
