"""The labels of this machine: what it tells by itself, what `SIDECAR_LABELS` says, and what the command line says."""

from __future__ import annotations

import platform
import socket
from collections.abc import Iterable, Mapping

from sidecar.core import nodes
from sidecar.core.nodes import Node

VARIABLE = "SIDECAR_LABELS"


class LabelError(ValueError):
    """A label that is none, or that is given twice."""


def builtin() -> dict[str, str]:
    """The labels that every node has."""
    return {"hostname": socket.gethostname(), "os": platform.system().lower(), "arch": platform.machine()}


def this_node(given: Iterable[str], environment: Mapping[str, str], known: Mapping[str, str] | None = None) -> Node:
    """The node that the labels describe. Raises LabelError.

    given: as on the command line (`gpu=h200`); they win over the environment's, and these over `known`, which are the
    built-in ones if it is None.
    """
    labels = dict(builtin() if known is None else known)
    if known is None:
        labels |= _parsed(filter(str.strip, environment.get(VARIABLE, "").split(",")), VARIABLE)
    return Node(labels | _parsed(given, "--label"))


def _parsed(texts: Iterable[str], source: str) -> dict[str, str]:
    labels: dict[str, str] = {}
    for text in texts:
        try:
            key, value = nodes.parse(text)
        except ValueError as error:
            raise LabelError(f"{source}: {error}") from None
        if labels.setdefault(key, value) != value:
            raise LabelError(f'{source}: the label "{key}" is given twice: {labels[key]} and {value}')
    return labels
