"""`--label`: which machine a command is about."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from sidecar.core.nodes import Node
from sidecar.mechanism.labels import LabelError, this_node

F = TypeVar("F", bound=Callable[..., Any])


def label_option(command: F) -> F:
    """Adds --label, and hands the command the `labels` as they were given."""
    text = "A label of the node, for `nodes` of models; may be given several times. [env var: SIDECAR_LABELS, A=B,C=D]"
    return click.option("--label", "labels", metavar="KEY=VALUE", multiple=True, help=text)(command)


def node_of(labels: tuple[str, ...], known: Mapping[str, str] | None = None) -> Node:
    """This machine with these labels, or the one that has the labels `known`; wrong ones are wrong usage (exit 2)."""
    try:
        return this_node(labels, os.environ, known)
    except LabelError as error:
        raise click.UsageError(str(error)) from None
