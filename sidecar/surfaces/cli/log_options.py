"""`--log-level` and `--log-format` of `sidecar run`, or the same from the environment."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click
import msgspec

from sidecar.mechanism.logs import FORMATS, LEVELS, LogOptions, Logs, hold_standard_streams, levels
from sidecar.surfaces.cli.output import NO

log = logging.getLogger("sidecar")

F = TypeVar("F", bound=Callable[..., Any])


@contextlib.contextmanager
def logged(options: LogOptions) -> Iterator[None]:
    """While the log is written so. What nobody has caught ends in it, and not beside it."""
    hold_standard_streams()
    with Logs(options):
        try:
            yield
        except (click.ClickException, click.Abort):
            raise  # of the command line, which tells them
        except Exception:
            log.critical("the sidecar failed", exc_info=True)
            raise SystemExit(NO) from None


def _levels(_: click.Context, parameter: click.Parameter, value: str) -> LogOptions:
    try:
        return levels(value)
    except ValueError as error:
        raise click.BadParameter(str(error), param=parameter) from None


def log_options(command: F) -> F:
    """Adds the options, and hands the command a `log_to`."""

    @click.option(
        "--log-level",
        default="info",
        show_default=True,
        envvar="SIDECAR_LOG_LEVEL",
        show_envvar=True,
        metavar=f"[{'|'.join(LEVELS)}][,LOGGER=LEVEL...]",
        callback=_levels,
        help="How much is logged; of single loggers by LOGGER=LEVEL, as in info,sidecar.plugins.keys=debug.",
    )
    @click.option(
        "--log-format",
        default="text",
        show_default=True,
        envvar="SIDECAR_LOG_FORMAT",
        show_envvar=True,
        type=click.Choice(FORMATS),
        help="text for people, json for programs: an object a line.",
    )
    @functools.wraps(command)
    def with_log(*args: Any, log_level: LogOptions, log_format: str, **kwargs: Any) -> Any:
        return command(*args, log_to=msgspec.structs.replace(log_level, format=log_format), **kwargs)

    return with_log  # type: ignore[return-value] # click's options are attributes of the function, its type is the same
