"""All checks, in the order in which they are told."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sidecar.surfaces.doctor import declared, gpu, machine, state
from sidecar.surfaces.doctor.finding import Check

CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        "versions": machine.versions,
        "kernel": machine.kernel,
        "processes": machine.processes,
        "clock": machine.clock,
        "memory": machine.memory,
        "cgroups": machine.cgroups,
        "files": machine.files,
        "inotify": machine.inotify,
        "disk": machine.disk,
        "nvidia": gpu.nvidia,
        "amd": gpu.amd,
        "state_dir": state.state_dir,
        "sidecar": state.running,
        "listen": state.listen,
        "ports": state.ports,
        "telemetry": state.telemetry,
        "manifests": declared.manifests,
        "plugins": declared.plugins,
        "devices": declared.devices,
        "commands": declared.commands,
        "upstreams": declared.upstreams,
    }
)
