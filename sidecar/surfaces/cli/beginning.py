"""What `sidecar init` writes: a manifest directory to begin with, that says what one would look up first."""

from __future__ import annotations

_SIDECAR = """\
#:schema ./sidecar.schema.json
# The sidecar itself. Every key has a default; `sidecar plugin docs` and the README of the manifests explain them all.

[sidecar]
listen = "{listen}"
chain = ["log"] # what every request passes: "keys" for API keys, "limits", "usage", or plugins of your own

# Who may come in. Put "keys" first in the chain, and the hash of each key here:  printf %s KEY | sha256sum
# [plugins.keys]
# import = "sidecar.builtin.keys:StaticKeys"
# config = {{ keys = {{ "sha256:..." = "team-a" }} }}
"""

_MODEL = """\
#:schema ../sidecar.schema.json
# A model: what clients ask for, and the ways to serve it, of which the first that fits is taken.

[models.example]
mode = "chat" # or base, embedding, reranker, ...: which paths it answers
aliases = []  # other names that clients may use

# A server that somebody else runs: watched and routed to, never started or stopped.
[[models.example.variants]]
url = "http://127.0.0.1:9000"

# A server that is started when somebody asks for the model, and stopped when nobody has for idle_timeout (10m):
# [[models.example.variants]]
# required_devices = ["nvidia"] # or "cpu", "amd", "nvidia:0", a UUID
# memory_mb = 9000              # what it takes there; `sidecar calibrate` tells what it really took
# command = ["llama-server", "-m", "/models/example.gguf", "--port", "{port}"]
"""


def files(listen: str, schema: str) -> dict[str, str]:
    """The files, by path. schema: that of the manifests, as text."""
    return {
        "sidecar.toml": _SIDECAR.format(listen=listen),
        "models/example.toml": _MODEL,
        "sidecar.schema.json": schema,
    }
