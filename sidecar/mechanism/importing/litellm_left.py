"""What of LiteLLM's settings is not carried: why, and what to do instead."""

from __future__ import annotations

_RETRY = ("a request is tried again only when nothing of it can have been processed, and then at once", "")
_TIMEOUT = ("a server has no time limit of its own", "request_timeout in [sidecar] bounds whole requests")
_DATABASE = ("nothing is kept in a database of LiteLLM's", "the plugins `keys` and `usage` keep keys and usage")
_CACHE = ("answers are not cached", "")
_ALERTS = ("nothing is sent to chats", "alert on /metrics: examples/observability")
_LOGS = ("logs are the sidecar's own", "")
_TRACE = (
    "callbacks of LiteLLM do not run here",
    "OTEL_TRACES_EXPORTER=otlp sends traces; a stats plugin does the rest: examples/plugins/redis_stats",
)
_GUARD = ("guardrails have to be ported", "make each a filter: examples/plugins/redact")
_BUDGET = (
    "nobody has a budget in money",
    "the plugin `limits` bounds requests and tokens, and `sidecar usage` tells costs",
)
_OTHER_API = ("only inference is served", "ask the provider, or a route plugin, for the rest")
_FALLBACK = ("servers stand in for each other when they fail, not by what they answer", "")
_REDIS = ("one sidecar counts for itself, in memory", "")

Reason = tuple[str, str]

LEFT: dict[tuple[str, ...], Reason] = {
    ("litellm_settings", "drop_params"): (
        "fields pass as they are",
        "strip those that a server refuses: plugin `params`",
    ),
    ("litellm_settings", "modify_params"): ("fields pass as they are", "the plugin `params` changes them"),
    ("litellm_settings", "num_retries"): _RETRY,
    ("litellm_settings", "telemetry"): ("nothing is reported to anybody", ""),
    ("litellm_settings", "set_verbose"): _LOGS,
    ("litellm_settings", "json_logs"): _LOGS,
    ("litellm_settings", "callbacks"): _TRACE,
    ("litellm_settings", "success_callback"): _TRACE,
    ("litellm_settings", "failure_callback"): _TRACE,
    ("litellm_settings", "service_callback"): _TRACE,
    ("litellm_settings", "default_team_settings"): _TRACE,
    ("litellm_settings", "cache"): _CACHE,
    ("litellm_settings", "cache_params"): _CACHE,
    ("litellm_settings", "max_budget"): _BUDGET,
    ("litellm_settings", "budget_duration"): _BUDGET,
    ("litellm_settings", "context_window_fallbacks"): _FALLBACK,
    ("litellm_settings", "content_policy_fallbacks"): _FALLBACK,
    ("litellm_settings", "default_fallbacks"): _FALLBACK,
    ("litellm_settings", "include_cost_in_streaming_usage"): (
        "answers pass as they are",
        "`sidecar usage` tells costs",
    ),
    ("litellm_settings", "turn_off_message_logging"): ("bodies are not logged", ""),
    ("litellm_settings", "guardrails"): _GUARD,
    ("router_settings", "num_retries"): _RETRY,
    ("router_settings", "max_retries"): _RETRY,
    ("router_settings", "retry_after"): _RETRY,
    ("router_settings", "retry_policy"): _RETRY,
    ("router_settings", "stream_timeout"): _TIMEOUT,
    ("router_settings", "redis_host"): _REDIS,
    ("router_settings", "redis_port"): _REDIS,
    ("router_settings", "redis_password"): _REDIS,
    ("router_settings", "redis_url"): _REDIS,
    ("router_settings", "enable_pre_call_checks"): ("the server itself says what is too long for it", ""),
    ("router_settings", "context_window_fallbacks"): _FALLBACK,
    ("router_settings", "content_policy_fallbacks"): _FALLBACK,
    ("router_settings", "default_fallbacks"): _FALLBACK,
    ("router_settings", "routing_strategy_args"): ("the strategies here have no arguments of that kind", ""),
    ("router_settings", "set_verbose"): _LOGS,
    ("general_settings", "store_model_in_db"): (
        "models stand in manifests",
        "a route plugin can supply those of a database: examples/plugins/database_router",
    ),
    ("general_settings", "database_url"): _DATABASE,
    ("general_settings", "database_connection_pool_limit"): _DATABASE,
    ("general_settings", "database_connection_timeout"): _DATABASE,
    ("general_settings", "proxy_budget_rescheduler_min_time"): _BUDGET,
    ("general_settings", "proxy_budget_rescheduler_max_time"): _BUDGET,
    ("general_settings", "proxy_batch_write_at"): _DATABASE,
    ("general_settings", "disable_spend_logs"): _DATABASE,
    ("general_settings", "salt_key"): _DATABASE,
    ("general_settings", "alerting"): _ALERTS,
    ("general_settings", "alerting_threshold"): _ALERTS,
    ("general_settings", "alert_types"): _ALERTS,
    ("general_settings", "background_health_checks"): ("servers are always watched", ""),
    ("general_settings", "health_check_interval"): ("servers are always watched", ""),
    ("general_settings", "max_parallel_requests"): ("requests in flight are not limited", "let servers queue them"),
    ("general_settings", "global_max_parallel_requests"): (
        "requests in flight are not limited",
        "max_connections in [sidecar] bounds clients' connections",
    ),
    ("general_settings", "pass_through_endpoints"): (
        "only models have paths",
        "/upstream/MODEL/ passes anything to a model's server",
    ),
    ("general_settings", "enable_jwt_auth"): ("its settings are others", "the plugin `jwt` does it"),
    ("general_settings", "litellm_jwtauth"): ("its settings are others", "the plugin `jwt` does it"),
    ("general_settings", "ui_access_mode"): ("there is no such page", ""),
    ("guardrails",): _GUARD,
    ("finetune_settings",): _OTHER_API,
    ("files_settings",): _OTHER_API,
    ("assistant_settings",): _OTHER_API,
    ("vector_store_registry",): _OTHER_API,
    ("mcp_servers",): _OTHER_API,
    ("callback_settings",): _TRACE,
}
PARAMS_LEFT: dict[str, Reason] = {
    "timeout": _TIMEOUT,
    "stream_timeout": _TIMEOUT,
    "max_retries": _RETRY,
    "num_retries": _RETRY,
    "cooldown_time": ("it is the same for all servers of a model", "out_for of the plugin `balance`"),
    "max_budget": _BUDGET,
    "budget_duration": _BUDGET,
    "tags": ("requests are not routed by tags", "make it a route plugin: `sidecar plugin new route`"),
    "mock_response": ("nothing is answered in a server's place", ""),
    "mock_timeout": ("nothing is answered in a server's place", ""),
    "drop_params": LEFT["litellm_settings", "drop_params"],
    "organization": ("headers of OpenAI's are not added", "clients' own headers reach the server"),
    "extra_headers": ("headers are not added", "make it a filter: `sidecar plugin new filter`"),
    "custom_llm_provider": ("the url tells where a server is", ""),
    "merge_reasoning_content_in_choices": ("answers pass as they are", "make it a filter: `sidecar plugin new filter`"),
    "max_parallel_requests": ("requests in flight are not limited", "let the server queue them"),
    "region_name": ("requests are not routed by region", ""),
    "use_in_pass_through": ("only models have paths", ""),
}
