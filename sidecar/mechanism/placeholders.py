"""`{port}` and its like in commands, environments and addresses. There is no shell: text in, text out."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sidecar.core.names import did_you_mean

AT_LOAD = ("model", "state_dir", "python")
AT_START = ("port", "devices.index", "devices.uuid")

# Only what looks like a placeholder counts: JSON in an argument keeps its braces.
_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_.]*)\}")


class PlaceholderError(ValueError):
    """A placeholder that means nothing, or an environment variable that is not set."""


def names_in(text: str) -> list[str]:
    """The placeholders of a text, known or not."""
    return _PLACEHOLDER.findall(text)


def check(text: str) -> None:
    """Raise PlaceholderError if the text has a placeholder that is not known."""
    for name in names_in(text):
        if name not in AT_LOAD and name not in AT_START and not name.startswith("env."):
            known = (*AT_LOAD, *AT_START, "env.NAME")
            raise PlaceholderError(f'unknown placeholder "{{{name}}}"{did_you_mean(name, known)}')


def fill(text: str, values: Mapping[str, str]) -> str:
    """Replace the placeholders that `values` has; the others stay. For `env.NAME`, an unset name is an error."""

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name in values:
            return values[name]
        if name.startswith("env.") and "env" in values:
            raise PlaceholderError(f'environment variable {name[4:]} is not set ("{{{name}}}")')
        return match.group(0)

    return _PLACEHOLDER.sub(value, text)


class ForeignEnvironment(dict[str, str]):
    """Variables for a machine that is not this one: others may be set there, so what names them stays as written.

    Secrets need not be there either.
    """


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The values of `{env.NAME}`, for `fill`."""
    whole = {} if isinstance(variables, ForeignEnvironment) else {"env": ""}
    return whole | {f"env.{name}": value for name, value in variables.items()}
