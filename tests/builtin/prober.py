"""Run as a program: a process with the Nvidia plugin in it, told over stdin what to do, so that a test can choose the
environment that NVML's library is loaded from. Each line read is a command, each line written its answer, as JSON.

`probe`: the devices, or the error. `start`: begin a probe in a thread. `join`: the answer of that one.
`close`: close the plugin. `logs`: what was logged so far, as "LEVEL message".
The first argument is the plugin's config, as JSON.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading

import msgspec

from plugin_sdk import DeviceStatus, PluginError
from plugin_sdk.config import convert
from sidecar.builtin.nvidia import Nvidia, Settings


class Answer(msgspec.Struct):
    """What one probe gave. error: the text of the PluginError that it raised."""

    devices: list[DeviceStatus] = []
    error: str = ""


class Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.getMessage()}")


def probe(plugin: Nvidia) -> Answer:
    """One probe, its error as data."""
    try:
        return Answer(plugin.probe())
    except PluginError as error:
        return Answer(error=str(error))


def main() -> None:
    """Obey until stdin ends."""
    logged = Lines()
    logging.basicConfig(level=logging.DEBUG, handlers=[logged])
    plugin = Nvidia(convert(msgspec.json.decode(sys.argv[1]), Settings), name="nvidia")
    background: list[Answer] = []
    thread = threading.Thread(target=lambda: background.append(probe(plugin)))
    for command in sys.stdin:
        reply: object = None
        if command == "probe\n":
            reply = probe(plugin)
        elif command == "start\n":
            thread.start()
        elif command == "join\n":
            thread.join()
            reply = background.pop()
        elif command == "close\n":
            asyncio.run(plugin.close())
        elif command == "logs\n":
            reply = logged.lines
        sys.stdout.write(msgspec.json.encode(reply).decode() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
