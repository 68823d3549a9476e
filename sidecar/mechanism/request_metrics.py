"""The metrics of requests, with names and bounds of OpenTelemetry's conventions for generative AI where they have them.

(opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics)
"""

from __future__ import annotations

from sidecar.mechanism.metrics import OVERFLOW, counter, histogram

_OPERATION = "gen_ai.operation.name"
_PROVIDER = "gen_ai.provider.name"
_MODEL = "gen_ai.request.model"
_ERROR = "error.type"
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_EACH = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_QUEUED = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)

_GEN_AI = (_OPERATION, _PROVIDER, _MODEL)

SERVER_DURATION = histogram(
    "gen_ai.server.request.duration",
    "s",
    "From the first byte of a request to the last one of its answer, the wait for a server included.",
    (*_GEN_AI, _ERROR, OVERFLOW),
    bounds=_SECONDS,
)
CLIENT_DURATION = histogram(
    "gen_ai.client.operation.duration",
    "s",
    "The same without the wait: what the model's server took.",
    (*_GEN_AI, _ERROR, OVERFLOW),
    bounds=_SECONDS,
)
FIRST_TOKEN = histogram(
    "gen_ai.server.time_to_first_token",
    "s",
    "From the first byte of a request to the first one of its stream, of streams that went well.",
    (*_GEN_AI, OVERFLOW),
    bounds=_FIRST,
)
EACH_TOKEN = histogram(
    "gen_ai.server.time_per_output_token",
    "s",
    "Time for each output token after the first, of streams that went well and told their tokens.",
    (*_GEN_AI, OVERFLOW),
    bounds=_EACH,
)
TOKEN_USAGE = histogram(
    "gen_ai.client.token.usage",
    "{token}",
    "Tokens of each request, as the model's server counted them.",
    (*_GEN_AI, "gen_ai.token.type", OVERFLOW),
    bounds=_TOKENS,
)
QUEUE_WAIT = histogram(
    "sidecar.queue.duration",
    "s",
    "How long requests waited for their turn, or for their model to load, of those that had to wait.",
    ("sidecar.model", OVERFLOW),
    bounds=_QUEUED,
)
_WHO = ("sidecar.model", "sidecar.variant", "sidecar.mode", _OPERATION)
REQUESTS = counter(
    "sidecar.requests",
    "{request}",
    "Requests that have ended, by how. Why they were refused, or failed, is the error type.",
    (*_WHO, "sidecar.end", "http.response.status_code", _ERROR, "sidecar.cold", "sidecar.principal", OVERFLOW),
)
TOKENS = counter(
    "sidecar.tokens",
    "{token}",
    "Tokens; cached ones are among the input's, reasoning ones among the output's.",
    ("sidecar.model", "gen_ai.token.type", "sidecar.principal", OVERFLOW),
)
BYTES = counter(
    "sidecar.body.size",
    "By",
    "Bytes of the bodies of requests and answers.",
    ("sidecar.model", "sidecar.direction", OVERFLOW),
)
RETRIES = counter(
    "sidecar.retries",
    "{attempt}",
    "Further attempts for requests of which nothing can have been processed.",
    ("sidecar.model", OVERFLOW),
)
METRICS = (
    *(SERVER_DURATION, CLIENT_DURATION, FIRST_TOKEN, EACH_TOKEN, TOKEN_USAGE),
    *(QUEUE_WAIT, REQUESTS, TOKENS, BYTES, RETRIES),
)
