"""LiteLLM's proxy: https://docs.litellm.ai/docs/proxy/config_settings. Its servers run elsewhere.

Deployments of one `model_name` become the url variants of one model, which share the load as `routing_strategy` says.
LiteLLM translates between APIs and the sidecar passes bytes as they are: so what is not OpenAI's API is left behind.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import msgspec

from sidecar.mechanism.importing import commands, litellm_prices, prices, providers, remote
from sidecar.mechanism.importing.account import Account, At, each, items
from sidecar.mechanism.importing.draft import Draft, Imported, Options
from sidecar.mechanism.importing.litellm_left import LEFT, PARAMS_LEFT
from sidecar.mechanism.importing.reading import Tree

MODES = {
    "chat": ("chat",),
    "completion": ("base",),
    "embedding": ("embedding",),
    "rerank": ("reranker",),
    "audio_transcription": ("transcription",),
    "audio_speech": ("speech",),
    "image_generation": ("image",),
    "image_edit": ("image",),
    "moderation": ("classifier",),
    "responses": ("responses",),
    "realtime": ("realtime",),
}
STRATEGIES = {
    "simple-shuffle": "round_robin",
    "least-busy": "least_busy",
    "usage-based-routing": "least_busy",
    "usage-based-routing-v2": "least_busy",
    "latency-based-routing": "least_busy",
    "cost-based-routing": "failover",
}
FIELDS = frozenset(  # of a request, which LiteLLM adds where the client says nothing
    """
    temperature top_p top_k min_p n max_tokens max_completion_tokens presence_penalty frequency_penalty
    repetition_penalty stop seed logit_bias logprobs top_logprobs response_format tools tool_choice
    parallel_tool_calls reasoning_effort thinking stream_options user service_tier modalities dimensions
    encoding_format voice
    """.split()  # noqa: SIM905 - a list of words is read more easily than a column of quotes
)
_MOST_SHARE = 1e9
_ENVIRONMENT = "os.environ/"


class _Server(msgspec.Struct):
    """A deployment that is carried."""

    at: At
    variant: dict[str, Any]
    modes: list[str]
    fields: list[At]
    rates: litellm_prices.Rates
    weight: At | None = None


def convert(tree: Tree, options: Options) -> Imported:
    """The manifests. Raises InputError where the configuration is none."""
    return _Import(tree, options).run()


class _Import:
    def __init__(self, tree: Tree, options: Options) -> None:
        account = Account(tree)
        self.root = account.root()
        self.draft = Draft("LiteLLM", account, options)
        self.servers: dict[str, list[_Server]] = {}  # by model_name
        self.names: dict[str, str] = {}  # model_name, to the name here

    def run(self) -> Imported:
        self._left()
        self._auth()
        for at in each(self.root.get("model_list")):
            self._deployment(at)
        self.draft.expect(self.servers)
        for wanted, servers in self.servers.items():
            self._model(wanted, servers)
        self._prices()
        self._fallbacks()
        self._share()
        self._aliases()
        self._limits()
        self.draft.note(
            "LiteLLM listens where its command line says (--host, --port 4000): put that into `listen` of [sidecar]",
            "sidecar.toml",
        )
        return self.draft.imported()

    # --- the whole ------------------------------------------------------------------------------------------------

    def _left(self) -> None:
        for path, (why, do) in LEFT.items():
            if at := self.root.get(*path):
                at.left(why, do)
        for at in items(self.root.get("environment_variables")):
            at.left("variables do not stand in manifests", f"set {at.name} in the sidecar's environment, if it is used")

    def _auth(self) -> None:
        if at := self.root.get("general_settings", "master_key"):
            self.draft.key(at, "master", _variable(at))
        elif self.root.get("general_settings", "custom_auth"):
            self.draft.shut()
        if at := self.root.get("general_settings", "custom_auth"):
            self.draft.shut()
            at.left("code has to be ported", "make it an auth plugin: examples/plugins/database_auth")

    def _limits(self) -> None:
        found = [at for path in (("litellm_settings", "request_timeout"), ("router_settings", "timeout"))
                 if (at := self.root.get(*path))]  # fmt: skip
        for at in found:
            self.draft.settings["request_timeout"] = found[0].duration()
            at.changed("sidecar.request_timeout", "for a request as a whole, with its wait and its answer")

    # --- deployments ----------------------------------------------------------------------------------------------

    def _deployment(self, at: At) -> None:
        name, params = at.get("model_name"), at.get("litellm_params")
        model = params.get("model") if params else None
        if name is None or params is None or model is None:
            raise at.wrong("a model_name, and litellm_params with a model")
        self._details(at, params)
        provider, there = providers.split(model.text())
        base = params.get("api_base") or params.get("base_url")
        if why := self._why_not(name.text(), provider, there, base):
            at.left(*why)
            return
        known = providers.COMPATIBLE[provider or "openai_like"]
        modes = self._modes(at, known, there)
        rates = litellm_prices.rates(at.get("model_info"), params)
        server = _Server(at, self._variant(name.text(), known, there, params), modes, list(self._fields(params)), rates)
        server.weight = self._weight(at, params)
        model.changed("variants.model_name", "without the provider, which is told by the url")
        self.servers.setdefault(name.text(), []).append(server)

    def _why_not(self, name: str, provider: str, there: str, base: At | None) -> tuple[str, str] | None:
        if "*" in name or "*" in there:
            return (
                "models are declared by name, not by pattern",
                "declare those that are used, or let a route plugin supply them: examples/plugins/database_router",
            )
        if provider in providers.TRANSLATED or (not provider and base is None):
            return (
                f"{provider or 'that provider'} does not speak OpenAI's API, and the sidecar translates none",
                "keep LiteLLM for it, and declare that as a url variant",
            )
        if base is None and not providers.COMPATIBLE[provider].url:
            return ("nothing says where it runs", "give the model a url variant")
        return None

    def _details(self, at: At, params: At) -> None:
        for key in ("tpm", "rpm"):
            for entry in (at.get(key), params.get(key)):
                if entry:
                    entry.left(
                        "the sidecar limits callers, not servers", "the plugin `limits` has limits for each model, too"
                    )
        for entry in params.items():
            if not litellm_prices.leave(entry) and entry.name in PARAMS_LEFT:
                entry.left(*PARAMS_LEFT[entry.name])
        for entry in items(at.get("model_info")):
            if entry.name != "mode" and not litellm_prices.is_price(entry.name) and not litellm_prices.leave(entry):
                entry.left("/v1/models lists names alone")

    def _modes(self, at: At, known: providers.Provider, there: str) -> list[str]:
        mode = at.get("model_info", "mode")
        if mode and mode.text() in MODES:
            mode.changed("mode", "in the sidecar's word for it")
            return list(MODES[mode.text()])
        if mode:
            mode.left(f'there is no mode like "{mode.text()}"', "see the modes in manifests/README.md")
        return list(known.modes) or commands.modes_by_name(there)

    def _variant(self, name: str, known: providers.Provider, there: str, params: At) -> dict[str, Any]:
        base = params.get("api_base") or params.get("base_url")
        variant: dict[str, Any] = {"url": self._url(name, base) if base else known.url}
        if there != name:
            variant["model_name"] = there
        key = params.get("api_key")
        if key is not None:
            what = f"the key of {name}'s server"
            if found := remote.key(self.draft, key, _variable(key), f"{name}_api_key", what):
                variant["api_key"] = found
        elif base is None and known.key:
            self.draft.variables.setdefault(known.key, f"the key of {name}'s server")
            variant["api_key"] = {"env": known.key}
        return variant

    def _url(self, name: str, base: At) -> str:
        if reference := _variable(base):
            self.draft.variables.setdefault(reference, f"the address of {name}'s server, without /v1")
            base.changed("variants.url", "read from the same variable, which must not end in /v1 here")
            return f"{{env.{reference}}}"
        url = remote.base_url(base, base.text())
        if remote.has_version(base.text()):
            base.changed("variants.url", "without /v1, which clients ask for themselves")
        else:
            base.changed("variants.url", "clients ask there for paths with /v1, where LiteLLM asked without")
        return url

    def _fields(self, params: At) -> Iterator[At]:
        """What is added to requests."""
        yield from (at for at in params.items() if at.name in FIELDS)
        yield from items(params.get("extra_body"))

    def _weight(self, at: At, params: At) -> At | None:
        places = ((params, "weight"), (params, "rpm"), (at, "rpm"), (params, "tpm"), (at, "tpm"))
        return next((entry for place, key in places if (entry := place.get(key))), None)

    # --- models ---------------------------------------------------------------------------------------------------

    def _model(self, wanted: str, servers: list[_Server]) -> None:
        modes = list(dict.fromkeys(mode for server in servers for mode in server.modes))
        name, table = self.draft.model(wanted, modes)
        self.names[wanted] = name
        self.draft.comment(
            name, f"What it speaks ({', '.join(modes)}) is a guess by its name, unless LiteLLM was told."
        )
        table["variants"] = [server.variant for server in servers]
        for server in servers:
            at = server.at.get("model_name")
            if at:
                at.carried(f"models.{name}")
        self._defaults(name, servers)

    def _defaults(self, name: str, servers: list[_Server]) -> None:
        """Fields that are added to requests: here they are the same for all of a model's servers."""
        fields = [{at.name: _plain(at.value) for at in server.fields} for server in servers]
        same = all(one == fields[0] for one in fields)
        if same and fields[0]:
            remote.params(self.draft, name, {"default": fields[0]})
        for at in [at for server in servers for at in server.fields]:
            if same:
                at.changed("plugins.params-*.config.default", "added where the client says nothing")
            else:
                at.left("its servers had different fields, and here a model has the same for all", "make it two models")

    def _prices(self) -> None:
        rates = {self.names[name]: [server.rates for server in servers] for name, servers in self.servers.items()}
        found = [prices.price(name, *one) for name, one in rates.items() if one[0] and litellm_prices.agree(one)]
        prices.declare(self.draft, found)

    def _share(self) -> None:
        strategy = self.root.get("router_settings", "routing_strategy")
        policy = STRATEGIES.get(strategy.text(), "") if strategy else "round_robin"
        if strategy and policy:
            strategy.changed("models.*.balance", f"{policy} comes nearest")
        elif strategy:
            strategy.left("there is no strategy of that kind", "make it a route plugin: `sidecar plugin new route`")
        settings = self._cooling()
        for wanted, servers in self.servers.items():
            table = self.draft.models[self.names[wanted]]
            if len(servers) < 2 or "balance" in table:
                continue
            chosen = policy or "least_busy"
            if chosen == "round_robin" and self._weigh(servers):
                chosen = "weighted"
            remote.balance(self.draft, self.names[wanted], chosen, settings)

    def _weigh(self, servers: list[_Server]) -> bool:
        """Give servers their shares, if each has one, and whether they differ."""
        weights = [server.weight for server in servers if server.weight]
        shares = [max(1, round(min(weight.number(), _MOST_SHARE))) for weight in weights]
        if len(weights) < len(servers) or len(set(shares)) < 2:
            return False
        divisor = math.gcd(*shares)
        for server, weight, share in zip(servers, weights, shares, strict=True):
            server.variant["weight"] = share // divisor
            weight.changed("variants.weight", "its share, against that of the others")
        return True

    def _cooling(self) -> dict[str, Any]:
        settings: dict[str, Any] = {}
        for section in ("router_settings", "litellm_settings"):
            if at := self.root.get(section, "allowed_fails"):
                settings["max_failures"] = at.whole() + 1
                at.changed("plugins.balance-*.config.max_failures", "failures in a row, not in a minute")
            if at := self.root.get(section, "cooldown_time"):
                settings["out_for"] = at.duration()
                at.carried("plugins.balance-*.config.out_for")
        return settings

    def _fallbacks(self) -> None:
        for section in ("litellm_settings", "router_settings"):
            for at in each(self.root.get(section, "fallbacks")):
                for entry in at.items():
                    self._fallback(entry)

    def _fallback(self, entry: At) -> None:
        """Let other models' servers stand in for those of a model that has but one."""
        others = [at.text() for at in entry.each()]
        ours = self.servers.get(entry.name, [])
        known = [server for other in others for server in self.servers.get(other, ())]
        if len(ours) != 1 or not known or not all(other in self.servers for other in others):
            entry.left(
                "it, or what stands in for it, is no model here, or has several servers that share the load",
                'give it further url variants, and balance = "failover"',
            )
            return
        name = self.names[entry.name]
        spare = [
            server.variant if "model_name" in server.variant else server.variant | {"model_name": other}
            for other in others
            for server in self.servers[other]
        ]
        table = self.draft.models[name]
        table["variants"] = [ours[0].variant, *({**variant} for variant in spare)]
        table["balance"] = "failover"
        entry.changed(f"models.{name}.variants", 'their servers stand in for its own, by balance = "failover"')

    def _aliases(self) -> None:
        for at in items(self.root.get("router_settings", "model_group_alias")):
            target = at.get("model") if at.is_table else at
            name = self.names.get(target.text()) if target else None
            if target is None or name is None or not self.draft.alias(name, at.name):
                at.left("what it stands for is no model here, or the name is taken")
            else:
                target.changed(f"models.{name}.aliases", "another name of that model")
            if hidden := at.get("hidden") if at.is_table else None:
                hidden.left("/v1/models lists names alone, and no aliases")


def _variable(at: At) -> str:
    """The environment variable that a value is in; "" if it stands there itself."""
    text = at.text()
    return text.removeprefix(_ENVIRONMENT) if text.startswith(_ENVIRONMENT) else ""


def _plain(value: Any) -> Any:
    """The value without what TOML cannot say."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_plain(item) for item in value if item is not None]
    return value
