"""What `sidecar top` and `sidecar status` look like, for the README: `python -m tests.captures` writes them.

Both are the real commands, asked of a sidecar that always says the same; tests/test_captures.py fails when what is in
examples/pictures/ is not what they show.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from sidecar.surfaces.cli.client import Remote
from sidecar.surfaces.cli.top import bars
from sidecar.surfaces.cli.top.app import TopApp
from tests.surfaces.cli.canned import REPORT, Canned, canned, later

PICTURES = Path(__file__).resolve().parents[1] / "examples" / "pictures"
SIZE = (132, 27)
STATUS_WIDTH = 132
_URL = "http://127.0.0.1:8080"


def captures() -> dict[str, str]:
    """The pictures, by the names of their files."""
    os.environ["TZ"] = "UTC"
    time.tzset()
    with canned() as sidecar:
        return {"top.svg": asyncio.run(_top(sidecar)), "status.svg": _status(sidecar)}


async def _top(sidecar: Canned) -> str:
    app = TopApp(Remote(sidecar.url, ""), 3600.0, ("", "activity"))
    app.look = bars.BLOCKS
    app.link.url = _URL
    async with app.run_test(size=SIZE) as pilot:
        while app.frame is None:
            await pilot.pause(0.01)
        sidecar.report = later(REPORT)
        app.show_frame(await app.link.frame())
        await pilot.pause()
        return _tidy(app.export_screenshot(title="sidecar top"))


def _status(sidecar: Canned) -> str:
    environment = {**os.environ, "COLUMNS": str(STATUS_WIDTH), "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    said = subprocess.run(
        [sys.executable, "-m", "sidecar", "status", "--url", sidecar.url],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    console = Console(record=True, width=STATUS_WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(f"$ sidecar status\n{said}".rstrip()))
    return _tidy(console.export_svg(title="sidecar status"))


def _tidy(svg: str) -> str:
    """Without white space at the ends of lines, and without fonts from elsewhere."""
    svg = re.sub(r"@font-face\s*\{.*?\}", "", svg, flags=re.DOTALL)
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def main() -> None:
    """Write them."""
    PICTURES.mkdir(exist_ok=True)
    for name, picture in captures().items():
        (PICTURES / name).write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
