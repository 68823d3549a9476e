"""Models by hand: `start`, `stop`, `drain`, `undrain`, `pin`, `unpin`."""

from __future__ import annotations

import time
from urllib.parse import quote

import click

from sidecar.surfaces.cli.client import Remote, remote_options
from sidecar.surfaces.cli.names import model_argument
from sidecar.surfaces.cli.output import json_option, print_json


@click.command()
@model_argument
@json_option
@remote_options
def start(model: str, as_json: bool, remote: Remote) -> None:
    """Start MODEL and wait until it is ready; exit 1 with the reason if it does not come up."""
    began = time.monotonic()
    answer = _post(remote, model, "start")
    _tell(answer, f"is ready ({time.monotonic() - began:.1f} s)", as_json)


@click.command()
@model_argument
@click.option("--force", is_flag=True, help="Do not wait for requests in flight: cut them off.")
@json_option
@remote_options
def stop(model: str, force: bool, as_json: bool, remote: Remote) -> None:
    """Let MODEL's server finish what is in flight, then stop it; wait until it is gone. The next request starts it."""
    _tell(_post(remote, model, "stop", {"force": "true"} if force else {}), "is stopped", as_json)


@click.command()
@model_argument
@json_option
@remote_options
def drain(model: str, as_json: bool, remote: Remote) -> None:
    """Take MODEL out of service: finish what is in flight, refuse what comes, stop its server; wait until it is gone.

    It stays so until `sidecar undrain` or `start`, or until the sidecar starts anew.
    """
    _tell(_post(remote, model, "drain"), "is out of service", as_json)


@click.command()
@model_argument
@json_option
@remote_options
def undrain(model: str, as_json: bool, remote: Remote) -> None:
    """Put MODEL back into service; it starts when somebody asks for it."""
    _tell(_post(remote, model, "undrain"), "is in service", as_json)


@click.command()
@model_argument
@json_option
@remote_options
def pin(model: str, as_json: bool, remote: Remote) -> None:
    """Have MODEL's server neither evicted nor stopped for being idle.

    It stays so until `sidecar unpin`, or until the sidecar starts anew; `pinned = true` in its manifest lasts.
    """
    _tell(_post(remote, model, "pin"), "is pinned", as_json)


@click.command()
@model_argument
@json_option
@remote_options
def unpin(model: str, as_json: bool, remote: Remote) -> None:
    """Take the pin back. What MODEL's manifest says stays."""
    answer = _post(remote, model, "unpin")
    _tell(answer, f"is {answer['state']}", as_json)


def _post(remote: Remote, model: str, verb: str, params: dict[str, str] | None = None) -> dict[str, str]:
    answer: dict[str, str] = remote.post(f"/-/models/{quote(model, safe='/')}/{verb}", params or {})
    return answer


def _tell(answer: dict[str, str], text: str, as_json: bool) -> None:
    if as_json:
        print_json(answer)
    else:
        click.echo(f"{answer['model']} {text}" + (f": {answer['message']}" if answer["message"] else ""))
