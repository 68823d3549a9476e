"""Runs checks side by side, each on its own: one that raises or hangs is a finding, and harms no other."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

import msgspec

from sidecar.surfaces.doctor.finding import Check, Finding, Patient, unknown


def examine(patient: Patient, checks: Mapping[str, Check]) -> list[Finding]:
    """All findings, in the order of the checks. Takes `patience_s` at most, whatever hangs."""
    told: dict[str, list[Finding]] = {}
    # Daemons, for a driver may hang in a call that nothing can break off, and the program must end all the same.
    threads = {
        name: threading.Thread(target=_run, args=(name, check, patient, told), name=f"doctor {name}", daemon=True)
        for name, check in checks.items()
    }
    for thread in threads.values():
        thread.start()
    deadline = time.monotonic() + patient.patience_s
    for thread in threads.values():
        thread.join(max(0.0, deadline - time.monotonic()))
    late = unknown(
        f"did not answer within {patient.patience_s:g} s", "look for what hangs: a driver, a disk, a name server"
    )
    return [msgspec.structs.replace(finding, check=name) for name in checks for finding in told.get(name) or [late]]


def _run(name: str, check: Check, patient: Patient, told: dict[str, list[Finding]]) -> None:
    try:
        found = list(check(patient))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told as a finding
        found = [unknown(f"could not be found out: {type(error).__name__}: {error}", "run it again with more rights")]
    told[name] = found
