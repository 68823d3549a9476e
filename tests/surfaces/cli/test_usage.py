"""`sidecar usage` where no sidecar runs: plugins that nobody has opened are asked, whatever they do."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sidecar.mechanism import reports
from sidecar.surfaces.cli import main
from tests.support import model, write

AWAY = ("--url", "http://127.0.0.1:9")
HEAD = '''
from plugin_sdk import Stats, UsageReport, UsageRow

class Ours(Stats):
    """Tells what a test has it tell."""

    def record(self, outcome):
        pass

'''
BY_HTTP = """
    async def report(self, query):
        answer = await self.http.get("URL")
        return UsageReport(rows=(UsageRow(group=("m",), requests=len(answer.text)),))
"""


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # so that the connection is kept, and has to be closed

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "3")
        self.end_headers()
        self.wfile.write(b"yes")

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@pytest.fixture
def url() -> Iterator[str]:
    """A server that answers with three characters."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def usage(folder: Path, report: str, *more: str) -> Result:
    """What the command says of what a plugin with this method has left."""
    settings = f'[sidecar]\nstate_dir = "{folder}/state"\nchain = ["ours"]\n'
    declared = '[plugins.ours]\nimport = "ours:Ours"\n'
    files = {"sidecar.toml": settings + declared, "m.toml": model("m"), "plugins/ours.py": HEAD + report}
    write(folder / "manifests", files)
    return CliRunner().invoke(main, ["usage", str(folder / "manifests"), *AWAY, *more])


def test_a_plugin_may_ask_others_over_http(tmp_path: Path, url: str) -> None:
    done = usage(tmp_path, BY_HTTP.replace("URL", url), "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["rows"][0]["requests"] == 3


@pytest.mark.parametrize(
    ("report", "told"),
    [
        (
            "    def report(self, query):\n        return self.books\n",
            "ours failed: AttributeError: 'Ours' object has no",
        ),
        (
            "    def __init__(self, *_, **k):\n        raise OSError('no')\n    def report(self, query):\n        0\n",
            "ours cannot be made: OSError: no",
        ),
        ("    def report(self, query):\n        return 3\n", "ours failed: TypeError: expected a UsageReport, got int"),
        (
            "    def report(self, query):\n        return UsageReport(rows=(3,))\n",
            "ours failed: TypeError: expected rows",
        ),
        (
            "    async def report(self, query):\n        raise OSError(2, 'no such thing')\n",
            "ours failed: FileNotFoundError",
        ),
        (
            "    async def report(self, query):\n        import asyncio\n        await asyncio.sleep(60)\n",
            "ours did not answer within 0.2 s",
        ),
    ],
)
def test_what_goes_wrong_in_a_plugin_is_told_in_a_line(
    tmp_path: Path, report: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "DEADLINE_S", 0.2)
    done = usage(tmp_path, report)
    assert (done.exit_code, told in done.stderr) == (1, True), done.output
    assert done.stdout == ""


def test_what_cannot_tell_is_not_asked(tmp_path: Path) -> None:
    done = usage(tmp_path, "")
    assert (done.exit_code, "no plugin in use there can report usage" in done.stderr) == (3, True), done.output
