"""What a variant of a model must obey: a command that can be started on devices that exist, or a server's address."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Protocol

import msgspec

from sidecar.core.manifest import Variant
from sidecar.core.names import did_you_mean, listed
from sidecar.mechanism import origins, placeholders
from sidecar.mechanism.places import Path as Place

_UUID = re.compile(r"(GPU|MIG)-[0-9a-fA-F-]+.*")


class Fault(msgspec.Struct, frozen=True):
    """where: the path below the subject (`("variants", 0, "memory_mb")`)."""

    where: Place
    message: str


class Devices(Protocol):
    """The devices that a variant may require, by what manifests may call them."""

    @property
    def device_classes(self) -> frozenset[str]: ...

    @property
    def device_names(self) -> frozenset[str]: ...


def check_variant(variant: Variant, url: str, known: Devices) -> Iterator[Fault]:
    """url: with its placeholders filled in."""
    yield from _check_weight(variant)
    if bool(variant.command) == bool(variant.url):
        yield Fault((), "expected either a command (a server to start) or a url (a server that runs already)")
    elif variant.external:
        yield from _check_external(variant, url)
    else:
        yield from _check_command(variant)
        yield from _check_devices(variant, known)


def _check_external(variant: Variant, url: str) -> Iterator[Fault]:
    """url: with its placeholders filled in."""
    told = list(_check_placeholders(("url",), variant.url))
    unset = any(name.startswith("env.") for name in placeholders.names_in(url))  # which is told, or is elsewhere
    yield from told or ([] if unset else _check_url(url))
    for key in ("required_devices", "memory_mb", "env", "cwd", "load_timeout", "exclusive_start", "foreign_listener"):
        if getattr(variant, key):
            yield Fault((key,), "means nothing for a url variant: the sidecar does not start that server")


def _check_weight(variant: Variant) -> Iterator[Fault]:
    if variant.weight < 1:
        yield Fault(("weight",), "expected 1 or more; leave the variant out if it should get no requests")
    elif variant.weight != 1 and not variant.external:
        yield Fault(("weight",), "means nothing for a command variant: a model has one server of its own")


def _check_url(url: str) -> Iterator[Fault]:
    try:
        origins.check(url)
    except ValueError as error:
        shown = "" if set("@?#") & set(url) else f', got "{url}"'  # there may be a key in it
        yield Fault(("url",), f"{error}{shown}")


def _check_command(variant: Variant) -> Iterator[Fault]:
    if not variant.command[0].strip():
        yield Fault(("command", 0), "expected a program")
    texts: list[tuple[Place, str]] = [(("command", i), text) for i, text in enumerate(variant.command)]
    texts += [(("env", key), text) for key, text in variant.env.items()]
    texts.append((("cwd",), variant.cwd))
    for where, text in texts:
        yield from _check_placeholders(where, text)
        if "\0" in text:
            yield Fault(where, "expected no NUL character")
    for name in variant.env:
        if not name or "=" in name:
            yield Fault(("env", name), 'expected the name of a variable: not empty, and without "="')
    if not any("port" in placeholders.names_in(text) for _, text in texts):
        yield Fault(("command",), "nothing says {port}: the server must listen on the port that it is given")
    if variant.load_timeout is not None and variant.load_timeout <= 0:
        yield Fault(("load_timeout",), "expected more than 0s")


def _check_placeholders(where: Place, text: str) -> Iterator[Fault]:
    try:
        placeholders.check(text)
    except placeholders.PlaceholderError as error:
        yield Fault(where, str(error))


def _check_devices(variant: Variant, known: Devices) -> Iterator[Fault]:
    if not variant.required_devices:
        yield Fault(("required_devices",), f"is missing; known classes: {listed(known.device_classes)}")
    for position, name in enumerate(variant.required_devices):
        if not _is_device(name, known):
            names = known.device_classes | known.device_names
            hint = did_you_mean(name, names)
            yield Fault(("required_devices", position), f'unknown device "{name}"{hint}; known: {listed(names)}')
    memory = variant.memory_mb
    if isinstance(memory, int):
        if memory <= 0:
            yield Fault(
                ("memory_mb",), "expected the memory that the server takes, in MB, more than 0: it is never free"
            )
        return
    for name in memory.keys() - set(variant.required_devices):
        hint = did_you_mean(name, variant.required_devices)
        yield Fault(("memory_mb", name), f'"{name}" is not among required_devices{hint}')
    for name in dict.fromkeys(variant.required_devices):
        if memory.get(name, 0) <= 0:
            yield Fault(("memory_mb",), f'expected the MB taken on "{name}", more than 0')


def _is_device(name: str, known: Devices) -> bool:
    base, colon, index = name.rpartition(":")
    indexed = bool(colon) and index.isdecimal() and base in known.device_classes
    return name in known.device_classes or name in known.device_names or indexed or bool(_UUID.fullmatch(name))


def fill_in(variant: Variant, values: Mapping[str, str]) -> tuple[Variant, list[Fault]]:
    """The variant with what is known at load filled in, and a fault for each variable that is not set."""
    faults: list[Fault] = []

    def fill(where: Place, text: str) -> str:
        try:
            return placeholders.fill(text, values)
        except placeholders.PlaceholderError as error:
            faults.append(Fault(where, str(error)))
            return text

    filled = msgspec.structs.replace(
        variant,
        command=tuple(fill(("command", index), text) for index, text in enumerate(variant.command)),
        env={key: fill(("env", key), text) for key, text in variant.env.items()},
        cwd=fill(("cwd",), variant.cwd),
        url=fill(("url",), variant.url),
    )
    return filled, faults
