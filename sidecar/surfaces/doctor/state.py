"""The sidecar's own: its state directory, its ports, the one that runs, and where traces and metrics go."""

from __future__ import annotations

import fcntl
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from sidecar import __version__
from sidecar.core.manifest import PortRange
from sidecar.mechanism.metric_exports import MetricExportError, push_of
from sidecar.mechanism.procfs import listening
from sidecar.mechanism.rules import listen_address
from sidecar.mechanism.telemetry import Telemetry, TelemetryError
from sidecar.surfaces.doctor.finding import Finding, Patient, fail, ok, unknown, warn

_ENDPOINTS = {
    "OTEL_TRACES_EXPORTER": "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_METRICS_EXPORTER": "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
}
_ANY_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_DEFAULT_ENDPOINT = "http://localhost:4318"


def state_dir(patient: Patient) -> Iterator[Finding]:
    """Whether it can be written, by us and by nobody else."""
    folder = patient.state_dir
    there = folder
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        yield fail(f"{there} is not a directory", "remove it, or set [sidecar] state_dir")
        return
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        yield fail(f"{there} cannot be written: {error.strerror}", "chown it to this user, or set [sidecar] state_dir")
        return
    if folder.exists() and folder.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        yield warn(f"{folder} may be written by others", f"chmod 700 {folder}: it says which processes are ours")
    else:
        yield ok(f"{folder} can be written" + ("" if folder.exists() else ", and will be made"))


def running(patient: Patient) -> Iterator[Finding]:
    """The sidecar that runs on the state directory."""
    holder = _holder(patient.state_dir / "lock")
    found = patient.running
    if patient.refusal:
        yield unknown(f"it does not tell us: {patient.refusal}", "give --token, or SIDECAR_ADMIN_TOKEN")
        return
    if found is None:
        if holder:
            yield fail(
                f"a sidecar (pid {holder}) holds {patient.state_dir}, but none answers where the manifests say",
                "look at its log; it may listen elsewhere (listen takes effect at a restart), or hang",
            )
        else:
            yield ok("none runs on this state directory")
        return
    if found.version != __version__:
        yield warn(
            f"{found.url} is version {found.version}, this is {__version__}", "restart it: servers are taken over"
        )
    if found.errors:
        yield warn(f"{found.errors} of its {found.rounds} rounds have failed", "look at its log, and report it")
    if found.problems:
        yield fail(f"it has rejected manifests: {found.problems[0]}", "sidecar status lists all; mend them")
    if not (found.errors or found.problems):
        yield ok(f"{found.url} answers, version {found.version}")


def listen(patient: Patient) -> Iterator[Finding]:
    """Whether the address can be had."""
    address = patient.settings.listen
    host, port = listen_address(address)
    if patient.running is not None or patient.refusal:
        yield ok(f"{address} is the running sidecar's")
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError:
            yield fail(
                f"{address}: this user may not listen on port {port}",
                "use a port from 1024 up, or CAP_NET_BIND_SERVICE",
            )
        except OSError as error:
            yield fail(f"{address}: {error.strerror}", "end what listens there (ss -ltnp), or set [sidecar] listen")
        else:
            yield ok(f"{address} is free")


def ports(patient: Patient) -> Iterator[Finding]:
    """Whether there are ports for servers."""
    allowed = PortRange.parse(patient.settings.ports)
    heard = listening()
    free = sum(1 for port in range(allowed.first, allowed.last + 1) if port not in heard)
    managed = sum(
        any(not variant.external for variant in model.variants) for model in patient.declaration.models.values()
    )
    told = f"{free} of {allowed.last - allowed.first + 1} ports in {patient.settings.ports} are free"
    if free == 0 and managed:
        yield fail(told, "end what listens there (ss -ltnp), or set [sidecar] ports")
    elif allowed.last - allowed.first + 1 < managed:
        yield warn(f"{told}, for {managed} models that are started", "widen [sidecar] ports")
    else:
        yield ok(told)
    local = _ephemeral(patient.places.proc)
    if local is not None and allowed.first <= local[1] and local[0] <= allowed.last:
        yield warn(
            f"[sidecar] ports overlap those that the system gives to connections ({local[0]}-{local[1]})",
            f"sysctl net.ipv4.ip_local_reserved_ports={patient.settings.ports}, or ports below {local[0]}",
        )


def telemetry(patient: Patient) -> Iterator[Finding]:
    """Whether there is somebody where traces and metrics are sent."""
    try:
        Telemetry.from_environment().close(0.0)
        push_of(patient.environment)
    except (TelemetryError, MetricExportError) as error:
        yield fail(str(error), "correct the variable: sidecar run refuses to start with it")
        return
    disabled = patient.environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    wanted = [
        patient.environment.get(own) or patient.environment.get(_ANY_ENDPOINT) or _DEFAULT_ENDPOINT
        for exporter, own in _ENDPOINTS.items()
        if "otlp" in patient.environment.get(exporter, "") and not disabled
    ]
    if not wanted:
        yield ok("nothing is sent anywhere")
    for endpoint in dict.fromkeys(wanted):
        yield _reachable(endpoint, patient.patience_s / 2)


def _reachable(endpoint: str, patience_s: float) -> Finding:
    url = urlsplit(endpoint)
    try:
        with socket.create_connection(
            (url.hostname or "", url.port or (443 if url.scheme == "https" else 80)), patience_s
        ):
            return ok(f"{endpoint} can be reached")
    except (OSError, ValueError) as error:
        return warn(
            f"{endpoint} cannot be reached: {error}", "start the collector, or correct OTEL_EXPORTER_OTLP_ENDPOINT"
        )


def _holder(lock: Path) -> str:
    """Who holds the lock of the state directory; "" if nobody does."""
    try:
        with lock.open("r+", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "?"
    except OSError:
        pass  # there is none, or it is not for us: state_dir tells
    return ""


def _ephemeral(proc: Path) -> tuple[int, int] | None:
    """The ports that the system gives to connections, unless the range's first one is kept out of them."""
    folder = proc / "sys" / "net" / "ipv4"
    try:
        first, last = (folder / "ip_local_port_range").read_text().split()
        reserved = (folder / "ip_local_reserved_ports").read_text().strip()
    except OSError:
        return None
    return None if reserved else (int(first), int(last))
