"""What is declared: manifests, plugins, commands with the models that they name, servers elsewhere, and devices."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from sidecar.core.explain import explain
from sidecar.core.manifest import Variant
from sidecar.core.observed import Observed
from sidecar.mechanism import modelfiles
from sidecar.surfaces.doctor.finding import Finding, Patient, fail, ok, unknown, warn

MB = 2**20
AT_ONCE = 16
Declared = tuple[str, Variant]


def manifests(patient: Patient) -> Iterator[Finding]:
    """Every problem of them."""
    if patient.loaded is None:
        yield fail(
            f"{patient.root} cannot be read as manifests: {patient.unread}",
            "name their directory: sidecar doctor DIR; or look for what hangs, as a plugin that is imported may",
        )
        return
    for problem in patient.loaded.problems:
        yield fail(str(problem), "mend it; sidecar validate says the same")
    if not patient.loaded.problems:
        yield ok(f"{len(patient.declaration.models)} models in {patient.root}, without a problem")


def plugins(patient: Patient) -> Iterator[Finding]:
    """Those that cannot be loaded; and, where a sidecar runs, those that it cannot use."""
    if patient.loaded is None:
        yield _unread()
        return
    catalog = patient.loaded.catalog
    faults = {name: str(found[0]) for name, found in catalog.faults.items() if found}
    for name, why in {**faults, **(patient.running.plugins if patient.running is not None else {})}.items():
        yield fail(f"{name}: {why}", "sidecar plugin check says where; models that need it refuse requests")
    if not faults:
        yield ok(f"{len(catalog.loaded)} plugins can be loaded")


def commands(patient: Patient) -> Iterator[Finding]:
    """Whether programs can be started, and the models that they are given are there."""
    if patient.loaded is None:
        yield _unread()
        return
    found = [(name, variant) for name, variant in _variants(patient) if not variant.external]
    bad = [finding for one in found for finding in _command(patient, one)]
    yield from bad or [ok(f"{len(found)} commands can be started, and the files that they name are there")]


def upstreams(patient: Patient) -> Iterator[Finding]:
    """Whether servers that somebody else runs answer."""
    if patient.loaded is None:
        yield _unread()
        return
    found = [(name, variant) for name, variant in _variants(patient) if variant.external]
    if not found:
        yield ok("no model is served elsewhere")
        return
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from pool.map(lambda one: _upstream(one, patient.patience_s / 2), found)


def devices(patient: Patient) -> Iterator[Finding]:
    """Whether devices can be read, and each model fits some of them, if nothing else ran."""
    if patient.devices is None:
        yield unknown(f"the devices could not be read: {patient.unprobed}", "see what hangs, or failed, above")
        return
    for device in patient.devices:
        if device.unknown:
            yield fail(f"{device.label}: {device.unknown}", "nothing is placed on it until it can be read")
    observed = Observed(devices=patient.devices)
    for name in patient.declaration.models:
        story = explain(patient.declaration, observed, name, 0.0)
        misfits = [told for told in story.variants if told.verdict == "does_not_fit"]
        if misfits and len(misfits) == len(story.variants):
            yield warn(f"{name} does not fit now: {misfits[0].reason}", misfits[0].remedy)
    yield ok(f"read: {', '.join(device.label for device in patient.devices if not device.unknown)}")


def _unread() -> Finding:
    return unknown("the manifests cannot be read")


def _variants(patient: Patient) -> Iterator[Declared]:
    for name, model in patient.declaration.models.items():
        for variant in model.variants:
            yield name, variant


def _command(patient: Patient, declared: Declared) -> Iterator[Finding]:
    name, variant = declared
    where = f"{name} ({variant.name})"
    cwd = (patient.root / variant.cwd).expanduser()
    if not cwd.is_dir():
        yield fail(f"{where}: the working directory {cwd} does not exist", "make it, or correct cwd")
        return
    program = variant.command[0]
    path = str(cwd / program) if "/" in program else program
    if shutil.which(path, path=variant.env.get("PATH") or patient.environment.get("PATH")) is None:
        there = "/" in program and Path(path).exists()
        told = "may not be executed" if there else "is not found"
        yield fail(f'{where}: "{program}" {told}', f"chmod +x {path}" if there else "install it, or name its path")
    yield from _files(where, variant, cwd, {**patient.environment, **variant.env})


def _files(where: str, variant: Variant, cwd: Path, environment: dict[str, str]) -> Iterator[Finding]:
    for argument in variant.command[1:]:
        path = cwd / argument
        if Path(argument).suffix in modelfiles.SUFFIXES and not argument.startswith("-") and not path.exists():
            yield fail(f"{where}: {path} does not exist", "put it there, or correct the command")
    found = modelfiles.named(variant.command, cwd, environment)
    closed = [path for path in found if not os.access(path, os.R_OK)]
    if closed:
        yield fail(f"{where}: may not be read: {', '.join(closed)}", "give this user the right to read it")
    size_mb, declared_mb = sum(found.values()) // MB, sum(amount for _, amount in variant.needs())
    if size_mb > declared_mb:
        yield warn(
            f"{where}: its files have {size_mb:,} MB, memory_mb declares {declared_mb:,}",
            "unless the engine leaves a part of them on disk, raise memory_mb (sidecar calibrate measures it)",
        )


def _upstream(declared: Declared, patience_s: float) -> Finding:
    name, variant = declared
    url, transport = variant.url, None
    try:
        if url.startswith("unix:"):
            path, url = url.removeprefix("unix:"), "http://localhost"
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(path)
            transport = httpx.HTTPTransport(uds=path)
        with httpx.Client(transport=transport, timeout=patience_s, trust_env=False) as http:
            status = http.get(f"{url.rstrip('/')}/v1/models").status_code
    except (httpx.HTTPError, OSError) as error:
        told = str(error) or type(error).__name__
        return fail(
            f"{name} ({variant.name}): {variant.url} does not answer: {told}", "start that server, or correct url"
        )
    return ok(f"{name} ({variant.name}): {variant.url} answers ({status})")
