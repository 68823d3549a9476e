"""The command line. Exit codes: 0 done; 1 the answer is no; 2 the command was used wrongly; 3 no sidecar answers."""

from __future__ import annotations

import click

from sidecar import __version__
from sidecar.surfaces.cli.calibrate import calibrate
from sidecar.surfaces.cli.events import events
from sidecar.surfaces.cli.explain import explain
from sidecar.surfaces.cli.local import plan, validate
from sidecar.surfaces.cli.plugin import plugin
from sidecar.surfaces.cli.remote import devices, reload, start, status, stop
from sidecar.surfaces.cli.run import run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sidecar")
def main() -> None:
    """Runs declared LLM servers so that they fit, and serves them behind one OpenAI-compatible endpoint.

    \b
    Exit codes: 0 done, 1 the answer is no (invalid manifests, a model that
    does not start), 2 wrong usage, 3 no sidecar answers.
    """


for command in (run, validate, plan, status, explain, events, devices, start, stop, reload, calibrate, plugin):
    main.add_command(command)

__all__ = ["main"]
