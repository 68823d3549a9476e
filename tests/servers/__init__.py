"""Small misbehaving programs, run as `sys.executable PATH FLAGS`. They need the standard library alone."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent

BUSY_SERVER = str(_HERE / "busy_server.py")
GIT_SERVER = str(_HERE / "git_server.py")
HTTP_SERVER = str(_HERE / "http_server.py")
PROCESS = str(_HERE / "process.py")
READER = str(_HERE / "reader.py")
RAW_SERVER = str(_HERE / "raw_server.py")
