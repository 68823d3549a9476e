"""What is measured: the sidecar; and the stub itself, with nothing between."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import msgspec

from tests.benchmarks.dataplane import requests
from tests.benchmarks.dataplane.processes import answers, await_true, started
from tests.support import free_port

SPANS_WAIT_S = 1.0  # at most, for their batch to be full
_TREE = Path(__file__).resolve().parents[3]


class Proxy(msgspec.Struct, frozen=True):
    """Something that answers on a port. pid: None = nothing stands between."""

    name: str
    port: int
    pid: int | None


Starting = Callable[[Path, int, int | None], AbstractContextManager[Proxy]]  # of a folder, the stub's port, a core

_SIDECAR = """
[sidecar]
listen = "127.0.0.1:{port}"
state_dir = "{folder}/state"
chain = ["keys", "usage", "limits"]

[plugins.keys]
import = "sidecar.builtin.keys:StaticKeys"
config = {{ keys = {{ "sha256:{key}" = "benchmark" }} }}

[plugins.limits]
import = "sidecar.builtin.limits:Limits"
config = {{ requests_per_minute = 1_000_000_000, tokens_per_minute = 1_000_000_000_000 }}

[models.stub]
mode = "chat"
variants = [{{ url = "http://127.0.0.1:{upstream}" }}]
"""


def direct(_folder: Path, upstream: int, _core: int | None) -> AbstractContextManager[Proxy]:
    """Nothing between."""

    @contextmanager
    def nothing() -> Iterator[Proxy]:
        yield Proxy("direct", upstream, None)

    return nothing()


def sidecar(name: str = "sidecar", traced: str = "0.01") -> Starting:
    """The sidecar, with keys, usage and limits. traced: the share of requests that is traced; "" = no exporter."""

    @contextmanager
    def running(folder: Path, upstream: int, core: int | None) -> Iterator[Proxy]:
        here, port = folder / name, free_port()
        (here / "manifests").mkdir(parents=True)
        key = hashlib.sha256(requests.KEY.encode()).hexdigest()
        text = _SIDECAR.format(port=port, folder=here, key=key, upstream=upstream)
        (here / "manifests" / "sidecar.toml").write_text(text)
        argv = [sys.executable, "-m", "sidecar", "run", str(here / "manifests")]
        with started(argv, core, here / "log", _environment(traced, upstream)) as process:
            await_answer(port, process, here / "log")
            yield Proxy(name, port, process.pid)

    return running


def _environment(traced: str, collector: int) -> Mapping[str, str]:
    path = os.pathsep.join(filter(None, [str(_TREE), os.environ.get("PYTHONPATH", "")]))
    own = {"PYTHONPATH": path, "OTEL_TRACES_EXPORTER": "otlp" if traced else "none"}
    if traced:
        own |= {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": traced}
        own |= {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector}"}
        own |= {"OTEL_BSP_SCHEDULE_DELAY": f"{SPANS_WAIT_S * 1000:.0f}"}
    return own


def await_answer(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a chat request is answered. Raises ProcessError."""
    request = ("POST", requests.PATH, requests.body(), requests.headers())
    await_true(lambda: answers(port, request), process, log)
