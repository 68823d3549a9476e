"""`sidecar top`: everything at a glance, as it happens."""

from __future__ import annotations

import asyncio
import sys

import click
import msgspec

from sidecar.surfaces.cli.client import AnswerError, Remote, UnreachableError, remote_options
from sidecar.surfaces.cli.following import until_nobody_reads
from sidecar.surfaces.cli.output import UNREACHABLE, fail, json_option, print_json
from sidecar.surfaces.cli.top.frame import Frame
from sidecar.surfaces.cli.top.link import Link
from sidecar.surfaces.cli.top.rows import SORTS, chosen


class Options(msgspec.Struct, frozen=True):
    """How to show it. interval_s: between two looks. what: a pattern of the models that are meant, and their order."""

    interval_s: float
    what: tuple[str, str]


@click.command()
@click.option("--once", is_flag=True, help="Print one frame and end.")
@click.option(
    "--interval", default=1.0, show_default=True, type=click.FloatRange(0.1, 60), help="Seconds between looks."
)
@click.option(
    "--filter", "pattern", default="", help="Only models with this in their name or state; * and ? may stand."
)
@click.option("--sort", default="activity", show_default=True, type=click.Choice(list(SORTS)), help="Models by what.")
@json_option
@remote_options
def top(once: bool, interval: float, pattern: str, sort: str, as_json: bool, remote: Remote) -> None:
    """Watch devices, models and events; start, stop, drain and pin models.

    With --json a frame a line, as it comes; with --once a single one. Rates are taken over the last 10 s: requests and
    their tokens count when they end.
    """
    options = Options(interval, (pattern, sort))
    if not once and not as_json and not (sys.stdout.isatty() and sys.stdin.isatty()):
        raise click.UsageError("there is no terminal; --once prints one frame, --json goes on as a program can read it")
    with until_nobody_reads():
        try:
            if once or as_json:
                asyncio.run(_print(remote, options, once=once, as_json=as_json))
            else:
                _screen(remote, options)
        except UnreachableError as error:
            fail(str(error), UNREACHABLE)
        except AnswerError as error:
            fail(str(error))


async def _print(remote: Remote, options: Options, *, once: bool, as_json: bool) -> None:
    link = Link(remote)
    try:
        if once:
            await link.frame()
            await asyncio.sleep(options.interval_s)
            _print_one(await link.frame(), options, remote.url, as_json)
        else:
            await _stream(link, options)
    finally:
        await link.close()


def _print_one(frame: Frame, options: Options, url: str, as_json: bool) -> None:
    if as_json:
        print_json(_meant(frame, options))
        return
    from sidecar.surfaces.cli.top.once import show  # here, since it takes a while, and --json does without

    show(frame, options.what, url)


async def _stream(link: Link, options: Options) -> None:
    """All frames, over restarts of the sidecar, too."""
    click.echo(msgspec.json.encode(_meant(await link.frame(), options)))
    away = False
    while True:
        await asyncio.sleep(options.interval_s)
        try:
            click.echo(msgspec.json.encode(_meant(await link.frame(), options)))
            away = False
        except UnreachableError as error:
            if not away:
                click.echo(f"{error}; waiting for it", err=True)
            away = True


def _meant(frame: Frame, options: Options) -> Frame:
    """With the models that are meant alone, in the order that is."""
    models = tuple(chosen(frame, *options.what))
    rates = {model.name: frame.rates[model.name] for model in models if model.name in frame.rates}
    return msgspec.structs.replace(frame, report=msgspec.structs.replace(frame.report, models=models), rates=rates)


def _screen(remote: Remote, options: Options) -> None:
    from sidecar.surfaces.cli.top.app import TopApp  # here, since it takes a while, and only a screen needs it

    asyncio.run(_check(remote))
    TopApp(remote, options.interval_s, options.what).run()


async def _check(remote: Remote) -> None:
    """Whether there is a sidecar to watch at all. Once there was one, the screen stays when it goes."""
    link = Link(remote)
    try:
        await link.frame()
    finally:
        await link.close()
