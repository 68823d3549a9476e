"""An inference server without a model, which can misbehave in the ways that real ones do. See `--help`.

It prints `listening PORT` once it does, and `child PID` for each process that it forks.

POST on any path answers in OpenAI's form; `"stream": true` streams one word per `--interval`, `max_tokens` (or
`--chunks`) of them. The text is `NAME-0 NAME-1 ...`. Each answer has an `x-served-by: NAME` header.
GET /health and /v1/models answer as servers do.
GET /metrics answers as vLLM does, with --metrics.
GET /_seen: the requests received, bodies as UTF-8 with surrogateescape. GET /_stats: pid, children, requests, aborted
(answers that were not whole: the client left, or --close-after-chunks), active.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The flags. Times are seconds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: one that is free")
    parser.add_argument("--name", default="word")
    parser.add_argument("--chunks", type=int, default=4, help="words in an answer, unless max_tokens says otherwise")
    parser.add_argument("--interval", type=float, default=0.0, help="between the chunks of a stream")
    parser.add_argument("--head-delay", type=float, default=0.0, help="before the head of a POST's answer")
    parser.add_argument("--status", type=int, default=200, help="of the answers to POST; an error object from 400 on")
    parser.add_argument("--hang-head", action="store_true", help="never answer a POST")
    parser.add_argument("--die-after-chunks", type=int, help="os._exit in the middle of an answer")
    parser.add_argument("--close-after-chunks", type=int, help="break the connection in the middle of an answer")
    parser.add_argument("--delay-bind", type=float, default=0.0, help="before it listens")
    parser.add_argument("--unhealthy-for", type=float, default=0.0, help="GET /health answers 503; inf: always")
    parser.add_argument("--hang-health", action="store_true", help="never answer GET /health")
    parser.add_argument("--exit-after", type=float, help="end by itself; 0: before it listens")
    parser.add_argument("--exit-code", type=int, default=3, help="of --exit-after and --die-after-chunks")
    parser.add_argument("--stderr-line", action="append", default=[], help="said at the start; may be repeated")
    parser.add_argument("--print-mb", type=int, default=0, help="so much on stderr before it listens")
    parser.add_argument("--allocate-mb", type=int, default=0, help="memory that it takes before it listens")
    parser.add_argument("--load", default="", help="a file: half of it is read, and the rest when FILE.go is there")
    parser.add_argument("--leak-mb-per-s", type=float, default=0.0, help="memory that it goes on taking")
    parser.add_argument("--metrics", action="store_true", help="GET /metrics answers as vLLM does")
    parser.add_argument("--ignore-term", action="store_true", help="children inherit it")
    parser.add_argument("--fork-grandchild", action="store_true", help="a child that does nothing")
    parser.add_argument("--fork-daemon", action="store_true", help="a child that does nothing, in its own session")
    parser.add_argument("--serve-in-child", action="store_true", help="the parent only waits for the child that serves")
    return parser.parse_args(arguments)


class Server(ThreadingHTTPServer):
    """The server and what it remembers."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, flags: argparse.Namespace, children: list[int]) -> None:
        super().__init__((flags.host, flags.port), Handler)
        self.flags = flags
        self.began = time.monotonic()
        self.lock = threading.Lock()
        self.seen: list[dict[str, Any]] = []
        self.stats = {"requests": 0, "aborted": 0, "active": 0}
        self.children = children

    def count(self, what: str, step: int = 1) -> None:
        """Change a number of `/_stats`."""
        with self.lock:
            self.stats[what] += step

    def server_bind(self) -> None:
        """Bind, without asking DNS for a name of the address as HTTPServer does."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "localhost", self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a connection that the client broke is counted where it happens."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/_seen":
            self._json(200, self.server.seen)
        elif path == "/_stats":
            self._json(200, {**self.server.stats, "pid": os.getpid(), "children": self.server.children})
        elif path == "/health":
            self._health()
        elif path == "/metrics" and self.server.flags.metrics:
            self._metrics()
        elif path == "/v1/models":
            self._json(200, {"object": "list", "data": [{"id": self.server.flags.name, "object": "model"}]})
        else:
            self._json(404, {"error": {"message": f"no such path: {path}", "code": 404}})

    def do_POST(self) -> None:
        body = self._body()
        with self.server.lock:
            self.server.seen.append(
                {
                    "method": self.command,
                    "path": self.path,
                    "headers": list(self.headers.items()),
                    "body": body.decode("utf-8", "surrogateescape"),
                }
            )
        self.server.count("requests")
        self.server.count("active")
        try:
            self._answer(body)
        except ConnectionError:
            self.server.count("aborted")
            self.close_connection = True
        finally:
            self.server.count("active", -1)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that http.server gives it
        """Keep stderr for `--stderr-line`."""

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _health(self) -> None:
        flags = self.server.flags
        if flags.hang_health:
            self._wait(float("inf"))
        if time.monotonic() - self.server.began < flags.unhealthy_for:
            self._json(503, {"error": {"message": "Loading model", "code": 503}})
        else:
            self._json(200, {"status": "ok"})

    def _metrics(self) -> None:
        labels = f'engine="0",model_name="{self.server.flags.name}"'
        adapters = 'max_lora="4",running_lora_adapters="sql",waiting_lora_adapters=""'
        lines = [
            f"vllm:num_requests_running{{{labels}}} {float(self.server.stats['active'])}",
            f"vllm:num_requests_waiting{{{labels}}} 0.0",
            f"vllm:kv_cache_usage_perc{{{labels}}} 0.25",
            f'vllm:cache_config_info{{block_size="16",num_gpu_blocks="1000",{labels}}} 1.0',
            f"vllm:lora_requests_info{{{adapters}}} {time.time()}",
        ]
        self._head(200, {"content-type": "text/plain; version=0.0.4", "transfer-encoding": "chunked"})
        self._chunk("\n".join((*lines, "")).encode())
        self._chunk(b"")

    def _answer(self, body: bytes) -> None:
        flags = self.server.flags
        self._wait(float("inf") if flags.hang_head else flags.head_delay)
        if flags.status >= 400:
            self._json(flags.status, {"error": {"message": "it does not want to", "type": "server_error"}})
            return
        asked: dict[str, Any] = {}
        with contextlib.suppress(ValueError):
            asked = json.loads(body)
        words = [f"{flags.name}-{index} " for index in range(asked.get("max_tokens") or flags.chunks)]
        if asked.get("stream"):
            self._stream(asked, words)
        else:
            self._whole(asked, words)

    def _whole(self, asked: dict[str, Any], words: list[str]) -> None:
        flags = self.server.flags
        text = json.dumps(self._object(asked, "".join(words), len(words))).encode()
        if flags.die_after_chunks is not None or flags.close_after_chunks is not None:
            self._head(flags.status, {"content-type": "application/json", "content-length": str(len(text))})
            self.wfile.write(text[: len(text) // 2])
            self._break_off()
        self._json(flags.status, json.loads(text))

    def _object(self, asked: dict[str, Any], text: str, tokens: int) -> dict[str, Any]:
        common = {"id": "x-1", "model": asked.get("model", ""), "created": 1}
        usage = {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens}
        if self.path.startswith("/v1/embeddings"):
            data = [{"object": "embedding", "index": 0, "embedding": [0.25, 0.5]}]
            return {**common, "object": "list", "data": data, "usage": {"prompt_tokens": 7, "total_tokens": 7}}
        if self.path.startswith("/v1/rerank"):
            return {**common, "results": [{"index": 0, "relevance_score": 0.5}], "usage": {"total_tokens": 7}}
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        if self.path.startswith("/v1/completions"):
            return {**common, "object": "text_completion", "choices": [{**choice, "text": text}], "usage": usage}
        message = {"role": "assistant", "content": text}
        return {**common, "object": "chat.completion", "choices": [{**choice, "message": message}], "usage": usage}

    def _stream(self, asked: dict[str, Any], words: list[str]) -> None:
        flags = self.server.flags
        self._head(flags.status, {"content-type": "text/event-stream", "transfer-encoding": "chunked"})
        plain = self.path.startswith("/v1/completions")
        common = {
            "id": "x-1",
            "model": asked.get("model", ""),
            "created": 1,
            "object": "text_completion" if plain else "chat.completion.chunk",
        }
        for index, word in enumerate(words):
            if index in (flags.die_after_chunks, flags.close_after_chunks):
                self._break_off()
            self._wait(flags.interval if index else 0)
            choice = {"text": word} if plain else {"delta": {"role": "assistant", "content": word}}
            self._event({**common, "choices": [{"index": 0, "finish_reason": None, **choice}]})
        last: dict[str, Any] = {"text": ""} if plain else {"delta": {}}
        self._event({**common, "choices": [{"index": 0, "finish_reason": "stop", **last}]})
        if (asked.get("stream_options") or {}).get("include_usage"):
            usage = {"prompt_tokens": 7, "completion_tokens": len(words), "total_tokens": 7 + len(words)}
            self._event({**common, "choices": [], "usage": usage})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _break_off(self) -> None:
        """End in the middle of an answer: the whole server, or this connection alone."""
        if self.server.flags.die_after_chunks is not None:
            die(self.server.flags.exit_code)
        raise ConnectionAbortedError

    def _event(self, data: dict[str, Any]) -> None:
        self._chunk(b"data: " + json.dumps(data).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _json(self, status: int, value: Any) -> None:
        text = json.dumps(value).encode()
        self._head(status, {"content-type": "application/json", "content-length": str(len(text))})
        self.wfile.write(text)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "x-served-by": self.server.flags.name}.items():
            self.send_header(name, value)
        self.end_headers()

    def _wait(self, duration_s: float) -> None:
        """Pass the time, but raise ConnectionError as soon as the client leaves."""
        end = time.monotonic() + duration_s
        while True:
            left = end - time.monotonic()
            if left <= 0:
                return
            readable, _, _ = select.select([self.connection], [], [], min(left, 60))
            if readable and not self.connection.recv(1, socket.MSG_PEEK):
                raise ConnectionAbortedError
            if readable:  # a pipelined request: there is no telling any more whether the client leaves
                time.sleep(min(left, 0.05))


def die(code: int) -> None:
    """End at once, in the middle of whatever goes on."""
    os._exit(code)


def print_much(size_mb: int) -> None:
    """Log in numbered lines of 1 KiB."""
    for number in range(size_mb * 1024):
        sys.stderr.write(f"{number:>9} of much that nobody reads ".ljust(1023, ".") + "\n")


def leak(rate_mb_per_s: float, held: list[bytes]) -> None:
    """Take memory at a rate for as long as the process lives."""
    while True:
        held.append(b"x" * int(rate_mb_per_s * 2**20 / 10))  # written to, or it would not be resident
        time.sleep(0.1)


def fork(*, own_session: bool = False) -> int:
    """A child that does nothing until it is killed."""
    pid = os.fork()
    if pid == 0:
        if own_session:
            os.setsid()
        while True:
            signal.pause()
    print("child", pid, flush=True)
    return pid


def load(path: str) -> None:
    """Read half of the file, and the rest when somebody says so."""
    with Path(path).open("rb", buffering=0) as file:
        file.read(Path(path).stat().st_size // 2)
        while not Path(f"{path}.go").exists():
            time.sleep(0.02)
        file.read()


def main() -> None:
    """Do as the flags say."""
    flags = options()
    for line in flags.stderr_line:
        print(line, file=sys.stderr, flush=True)
    if flags.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if flags.exit_after == 0:
        sys.exit(flags.exit_code)
    children = [fork()] if flags.fork_grandchild else []
    if flags.fork_daemon:
        children.append(fork(own_session=True))
    if flags.serve_in_child and (pid := os.fork()):
        print("child", pid, flush=True)
        os.waitpid(pid, 0)
        return
    if flags.exit_after is not None:
        threading.Timer(flags.exit_after, die, (flags.exit_code,)).start()
    print_much(flags.print_mb)
    held = [b"x" * 2**20 for _ in range(flags.allocate_mb)]
    if flags.leak_mb_per_s:
        threading.Thread(target=leak, args=(flags.leak_mb_per_s, held), daemon=True).start()
    if flags.load:
        load(flags.load)
    time.sleep(flags.delay_bind)
    with Server(flags, children) as server:
        with contextlib.suppress(OSError):  # the disk that its output goes to may be full
            print("listening", server.server_address[1], flush=True)
        server.serve_forever(poll_interval=60)


if __name__ == "__main__":
    main()
