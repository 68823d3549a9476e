"""A small server that speaks the mode. `--hollow`: it says that it is healthy, but its completions are empty."""

from __future__ import annotations

import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle, islice
from typing import Any

WORDS = ("yes", "indeed", "so", "it", "is")


class Server(ThreadingHTTPServer):
    """hollow: nothing comes of its work."""

    hollow = False


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server

    def do_GET(self) -> None:
        self._answer({"status": "ok"} if self.path == "/health" else None)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path != "/v1/mymode/completions":
            self._answer(None)
            return
        words = [] if self.server.hollow else list(islice(cycle(WORDS), asked.get("words", 16)))
        counts = {"read": len(asked["prompt"].split()), "written": len(words)}
        if not asked.get("stream"):
            self._answer({"text": " ".join(words), "counts": counts})
            return
        self._head(200, "text/event-stream")
        for event in [*({"text": word} for word in words), {"counts": counts}]:
            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _answer(self, value: dict[str, Any] | None) -> None:
        self._head(404 if value is None else 200, "application/json")
        self.wfile.write(json.dumps(value).encode())

    def _head(self, status: int, kind: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.end_headers()  # HTTP/1.0: the end of the connection is the end of the answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--hollow", action="store_true")
    options = parser.parse_args()
    with Server(("127.0.0.1", options.port), Handler) as server:
        server.hollow = options.hollow
        server.serve_forever()


if __name__ == "__main__":
    main()
