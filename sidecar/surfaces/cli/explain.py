"""`sidecar explain MODEL`: why the model is where it is, what would help, and what a request would set off."""

from __future__ import annotations

from urllib.parse import quote

import click
import msgspec

from sidecar.core.explain import Story, VariantStory
from sidecar.surfaces import progress
from sidecar.surfaces.cli.client import Remote, remote_options
from sidecar.surfaces.cli.events import row
from sidecar.surfaces.cli.names import model_argument
from sidecar.surfaces.cli.output import print_json, print_table
from sidecar.surfaces.report import ModelReport, ModelStory


@click.command()
@model_argument
@click.option("--json", "as_json", is_flag=True, help="Print the story as JSON.")
@remote_options
def explain(model: str, as_json: bool, remote: Remote) -> None:
    """Tell the whole story of MODEL: its variants, why not, what would help, and what has happened to it."""
    answer = remote.get(f"/-/models/{quote(model, safe='/')}/explain")
    if as_json:
        print_json(answer)
        return
    found = msgspec.convert(answer, ModelStory)
    _show_model(found.model)
    print_table(
        "\nVariants", ("VARIANT", "VERDICT", "MB (PEAK)", "LOADS IN", "WHY"), map(_variant, found.story.variants)
    )
    for told in found.story.variants:
        if told.remedy:
            click.echo(f"  {told.name}: what would help: {told.remedy}")
    _show_request(found.story)
    if found.events:
        print_table("\nOf late", ("TIME", "TYPE", "MODEL", "REASON", "MESSAGE"), map(row, found.events))


def _show_model(model: ModelReport) -> None:
    also = f" (also {', '.join(model.aliases)})" if model.aliases else ""
    click.echo(f"{model.name}{also}: {model.state}")
    for condition in model.conditions:
        click.echo(f"  {condition.type}={condition.status.value} {condition.reason}: {condition.message}")
    if model.server is not None and model.server.loading is not None:
        click.echo(f"  loads: {progress.told(model.server.loading)}")
    if model.pinned:
        click.echo(f"  pinned by the {model.pinned}: neither evicted nor stopped for being idle")
    if model.waiting:
        click.echo(f"  {model.waiting} requests wait for it")


def _variant(told: VariantStory) -> tuple[str, ...]:
    memory = ", ".join(
        f"{declared} on {requirement}" + (f" ({told.peak_mb[requirement]})" if requirement in told.peak_mb else "")
        for requirement, declared in told.declared_mb.items()
    )
    return (told.name, told.verdict, memory, f"{told.load_s:.1f} s" if told.load_s else "", told.reason)


def _show_request(story: Story) -> None:
    click.echo()
    if story.refusal is not None:
        click.echo(f"A request now would be refused: {story.refusal.reason}: {story.refusal.message}")
    elif not story.on_request:
        click.echo("A request now would set nothing off.")
    else:
        click.echo("A request now would set off:")
        for action in story.on_request:
            click.echo(f"  {type(action).__name__} {action.model}: {action.message}")
