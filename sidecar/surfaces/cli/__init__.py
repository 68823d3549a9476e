"""The command line. Exit codes: 0 done; 1 the answer is no; 2 the command was used wrongly; 3 no sidecar answers."""

from __future__ import annotations

import contextlib
import errno
import importlib
import keyword
import os
import sys
from typing import Any

import click

from sidecar import __version__

MODULES = {  # of this package, by command
    "init": "init",
    "run": "run",
    "validate": "validate",
    "plan": "plan",
    "diff": "diff",
    "status": "remote",
    "top": "top.command",
    "explain": "explain",
    "events": "events",
    "logs": "logs",
    "devices": "devices",
    "start": "models",
    "stop": "models",
    "drain": "models",
    "undrain": "models",
    "pin": "models",
    "unpin": "models",
    "reload": "remote",
    "source": "source",
    "usage": "usage",
    "calibrate": "calibrate",
    "import": "importing",
    "plugin": "plugin",
    "doctor": "doctor",
    "completion": "completion",
    "schema": "schema",
    "fmt": "fmt",
}


class Commands(click.Group):
    """Imports a command when it is asked for: all together take longer than most of them run."""

    def list_commands(self, context: click.Context) -> list[str]:
        del context
        return list(MODULES)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        del context
        if name not in MODULES:
            return None
        module = importlib.import_module(f"{__name__}.{MODULES[name]}")
        found: click.Command = getattr(module, f"{name}_" if keyword.iskeyword(name) else name)
        return found

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except OSError as error:
            if error.errno != errno.ENOSPC or error.filename is not None:
                raise
            _drop_output()
            raise click.ClickException(f"what there is to say cannot be written: {error.strerror}") from error


def _drop_output() -> None:
    """What could not be written would be tried again at the very end, and its failure be the exit code (120)."""
    with contextlib.suppress(OSError, ValueError):  # it is no file, as in tests
        out = sys.stdout.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, out)
        os.close(nowhere)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sidecar")
def main() -> None:
    """Runs declared LLM servers so that they fit, and serves them behind one OpenAI-compatible endpoint.

    \b
    Exit codes: 0 done, 1 the answer is no (invalid manifests, a model that
    does not start), 2 wrong usage, 3 no sidecar answers.
    """


__all__ = ["main"]
