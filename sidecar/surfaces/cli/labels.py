"""`--label`: which machine a command is about."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from sidecar.core.nodes import Node
from sidecar.mechanism.labels import LabelError, this_node

F = TypeVar("F", bound=Callable[..., Any])


_TEXT = "A label of the node, for `nodes` of models; may be given several times."


def label_option(command: F) -> F:
    """Adds --label, and hands the command the `labels` as they were given."""
    return _option(f"{_TEXT} [env var: SIDECAR_LABELS, A=B,C=D]")(command)


def other_label_option(command: F) -> F:
    """The same for a command that is never about this machine, whose variable says nothing then."""
    return _option(_TEXT)(command)


def _option(text: str) -> Callable[[F], F]:
    return click.option("--label", "labels", metavar="KEY=VALUE", multiple=True, help=text)


def node_of(labels: tuple[str, ...], known: Mapping[str, str] | None = None) -> Node:
    """This machine with these labels, or the one that has the labels `known`; wrong ones are wrong usage (exit 2)."""
    try:
        return this_node(labels, os.environ, known)
    except LabelError as error:
        raise click.UsageError(str(error)) from None
