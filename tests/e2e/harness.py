"""A real sidecar in a process of its own, on manifests that a test writes. Nothing in it is replaced."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai

from tests.e2e import forked, leaks
from tests.servers import HTTP_SERVER

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / "examples" / "llama" / "serve.py"
KEY = "sk-test-e2e"
KEY_HASH = hashlib.sha256(KEY.encode()).hexdigest()
PATIENCE_S = 30.0
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # all is http: to load the certificates of the world takes httpx 30 ms

_LISTENING = re.compile(r"(http://[\d.]+:\d+) serves")


def settings(state_dir: Path, ports: str, extra: str = "") -> str:
    """`[sidecar]` with a key in front, on a port that the system picks."""
    return f"""
[sidecar]
listen = "127.0.0.1:0"
state_dir = "{state_dir}"
ports = "{ports}"
chain = ["keys", "log"]
headroom_mb = 0
{extra}

[plugins.keys]
import = "sidecar.builtin.keys:StaticKeys"
config = {{ keys = {{ "sha256:{KEY_HASH}" = "tester" }} }}
"""


def llama(name: str, *, memory_mb: int = 300, mode: str = "chat", model: str = "", variant: str = "") -> str:
    """A model on a real llama.cpp. `model` and `variant` are further lines of their tables."""
    kind = ["--embedding"] if mode == "embedding" else ["--say", f"I am {name} and I speak in plain words."]
    command = ["{python}", str(ENGINE), "--port", "{port}", "--dir", "{state_dir}/gguf", "--name", name, *kind]
    return _model(name, mode, memory_mb, command, model, variant)


class Sidecar:
    """A running `sidecar run`. `log` is everything that it has said so far."""

    def __init__(self, folder: Path, process: forked.AnyProcess) -> None:
        self.folder = folder
        self.process = process
        self.log: list[str] = []
        self.told: dict[str, str] = {}  # by commands, the latest of each
        self.url = ""
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stderr or ():
            self.log.append(line)
            self._lines.put(line)
        self._lines.put(None)

    def wait_until_listening(self) -> None:
        """Until it says where it listens. Fails with its output if it ends before."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.url:
            line = self._lines.get(timeout=max(0.1, deadline - time.monotonic()))
            assert line is not None, "the sidecar ended:\n" + "".join(self.log)
            if match := _LISTENING.search(line):
                self.url = match.group(1)

    # --- asking it ----------------------------------------------------------------------------------------------

    def client(self, key: str = KEY) -> openai.OpenAI:
        """The official client. Without retries of its own, which would hide what a test is about."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE_S)

    def async_client(self, key: str = KEY) -> openai.AsyncOpenAI:
        """The official client for asyncio."""
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE_S)

    def http(self) -> httpx.Client:
        """A plain client with the key."""
        headers = {"authorization": f"Bearer {KEY}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=PATIENCE_S, trust_env=False, verify=NO_TLS)

    def ask(self, model: str, text: str = "hi", **extra: Any) -> str:
        """One chat completion's text."""
        messages: Any = [{"role": "user", "content": text}]
        with self.client() as client:
            answer = client.chat.completions.create(model=model, messages=messages, **extra)
        return answer.choices[0].message.content or ""

    def status(self) -> dict[str, Any]:
        """`/-/status`."""
        answer = httpx.get(f"{self.url}/-/status", trust_env=False, verify=NO_TLS, timeout=PATIENCE_S)
        self.told["/-/status"] = answer.text
        found: dict[str, Any] = answer.json()
        return found

    def model(self, name: str) -> dict[str, Any]:
        """One model's entry in the status."""
        found: dict[str, Any] = next(model for model in self.status()["models"] if model["name"] == name)
        return found

    def state(self, name: str) -> str:
        """The state of a model's server; the condition's reason if it has none."""
        model = self.model(name)
        if model["server"]:
            return str(model["server"]["state"])
        return str(model["conditions"][0]["reason"]) if model["conditions"] else ""

    def pid(self, name: str) -> int:
        """The process id of a model's server."""
        return int(self.model(name)["server"]["pid"])

    def starts(self, name: str) -> int:
        """How often a server of the model was started."""
        return sum(f"Start {name}:" in line for line in list(self.log))

    def cli(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of the command line against it."""
        done = cli(*arguments, "--url", self.url, check=check)
        self.told[" ".join(arguments)] = f"{done.stdout}\n{done.stderr}"
        return done

    # --- changing it --------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of its output, which has ended with it."""
        self._reader.join(PATIENCE_S)
        if self.process.stderr is not None:
            self.process.stderr.close()

    def write(self, name: str, text: str) -> None:
        """Put a manifest into its directory the way an editor does: whole, by rename."""
        write(self.folder / "manifests" / name, text)

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


def write(path: Path, text: str) -> None:
    """Write a file whole, by rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def cli(*arguments: str, check: bool = True, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    return forked.call(arguments, {**os.environ, **(env or {})}, PATIENCE_S, check=check)


@contextmanager
def running(folder: Path, manifests: Mapping[str, str], env: Mapping[str, str] | None = None) -> Iterator[Sidecar]:
    """A sidecar on these manifests; at the end it must end well, leave no server behind, and have told no key."""
    for name, text in manifests.items():
        write(folder / "manifests" / name, text)
    variables = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
    process = forked.spawn(["run", str(folder / "manifests")], variables)
    sidecar = Sidecar(folder, process)
    try:
        sidecar.wait_until_listening()
        yield sidecar
        if process.poll() is None:
            pids = [model["server"]["pid"] for model in sidecar.status()["models"] if model["server"]]
            assert sidecar.stop() == 0, "".join(sidecar.log)
            assert not [pid for pid in pids if pid and alive(pid)]
    except BaseException:
        sys.stderr.write("".join(sidecar.log))
        raise
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        sidecar.close()
    said = {"log": "".join(sidecar.log), **sidecar.told, **leaks.files(folder / "state")}
    assert leaks.found(said, {KEY, *leaks.among(env or {})}) == []


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait for a condition, looking often; fail by name when it does not come true."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.02)


def stub(name: str, *flags: str, memory_mb: int = 100, mode: str = "chat", model: str = "", variant: str = "") -> str:
    """A model on the small server that can misbehave (tests/servers/http_server.py)."""
    command = ["{python}", HTTP_SERVER, "--port", "{port}", "--name", name, *flags]
    return _model(name, mode, memory_mb, command, model, variant)


def _model(name: str, mode: str, memory_mb: int, command: list[str], model: str, variant: str) -> str:
    if "min_residency" not in model:
        model += '\nmin_residency = "0s"'  # or each eviction would be waited for
    return f"""
[models.{name}]
mode = "{mode}"
{model}
[[models.{name}.variants]]
required_devices = ["cpu"]
memory_mb = {memory_mb}
command = {json.dumps(command)}
{variant}
"""


def seen(port: int) -> list[dict[str, Any]]:
    """The requests that a stub has received."""
    answer: list[dict[str, Any]] = httpx.get(f"http://127.0.0.1:{port}/_seen", trust_env=False).json()
    return answer


def stats(port: int) -> dict[str, Any]:
    """A stub's counts."""
    answer: dict[str, Any] = httpx.get(f"http://127.0.0.1:{port}/_stats", trust_env=False).json()
    return answer
