"""Serves the git repositories below a folder over HTTP: git's own http-backend, as a CGI program behind a small server.

--token: what clients must tell as the password of basic authentication. --port: 0 takes any.
"""

from __future__ import annotations

import argparse
import base64
import os
import subprocess
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def handler(root: str, token: str) -> type[BaseHTTPRequestHandler]:
    """For the repositories below `root`."""
    backend = subprocess.run(["git", "--exec-path"], capture_output=True, text=True, check=True).stdout.strip()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # heads and bodies are written one after the other

        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            if token and not self._knows():
                self._answer(401, [("www-authenticate", 'Basic realm="git"')], b"")
                return
            path, _, query = self.path.partition("?")
            variables = {
                "PATH": os.environ["PATH"],
                "GIT_PROJECT_ROOT": root,
                "GIT_HTTP_EXPORT_ALL": "1",
                "GIT_CONFIG_GLOBAL": "/dev/null",
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "REQUEST_METHOD": self.command,
                "REMOTE_ADDR": "127.0.0.1",
                "CONTENT_TYPE": self.headers.get("content-type", ""),
                "CONTENT_LENGTH": str(len(body)),
                "HTTP_CONTENT_ENCODING": self.headers.get("content-encoding", ""),
                "GIT_PROTOCOL": self.headers.get("git-protocol", ""),
            }
            answer = subprocess.run(
                [Path(backend) / "git-http-backend"], input=body, capture_output=True, env=variables, check=False
            ).stdout
            head, _, content = answer.partition(b"\r\n\r\n")
            headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in _lines(head))]
            status = next((int(value.split()[0]) for name, value in headers if name == "Status"), 200)
            self._answer(status, [pair for pair in headers if pair[0] != "Status"], content)

        def _knows(self) -> bool:
            kind, _, given = self.headers.get("authorization", "").partition(" ")
            return kind == "Basic" and base64.b64decode(given).decode().partition(":")[2] == token

        def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
            """Say nothing."""

    return Handler


def _lines(head: bytes) -> list[str]:
    return head.decode("latin-1").split("\r\n") if head else []


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", required=True)
    parser.add_argument("--token", default="")
    parser.add_argument("--port", type=int, default=0)
    given = parser.parse_args()
    server = ThreadingHTTPServer(("127.0.0.1", given.port), handler(given.root, given.token))
    print(f"listening {server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
