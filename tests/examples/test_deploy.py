"""The examples for running it for good are right, each by the tool that knows its kind, and their times fit."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from sidecar.core.manifest import Declaration
from sidecar.mechanism import loader, source
from tests.support import write

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "examples" / "deploy"
UNIT = (DEPLOY / "systemd" / "sidecar.service").read_text(encoding="utf-8")
SOCKET = (DEPLOY / "systemd" / "sidecar.socket").read_text(encoding="utf-8")
DOCKERFILE = DEPLOY / "docker" / "Dockerfile"
COMPOSE: Any = yaml.safe_load((DEPLOY / "docker" / "compose.yaml").read_text(encoding="utf-8"))
PODS = [DEPLOY / "kubernetes" / name for name in ("configmap.yaml", "git-sync.yaml")]
PROGRAMS = Path(sysconfig.get_path("scripts"))
KUBERNETES = ("1.33", "1.37")


def tool(*command: str | Path) -> tuple[int, str]:
    """The exit code, and all that it says."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def declared(root: Path, files: dict[str, str]) -> Declaration:
    """What manifests declare; they must have no fault."""
    loaded = loader.load(source.read(write(root, files)), {})
    assert [str(problem) for problem in loaded.problems] == []
    return loaded.declaration


def longest_end_s(declaration: Declaration) -> float:
    """How long the sidecar may take to end."""
    stops = [variant.stop_timeout for model in declaration.models.values() for variant in model.variants]
    return declaration.settings.drain_timeout + max(stops)


def value(text: str, key: str) -> str:
    """What a unit says of a key."""
    (found,) = re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)
    return str(found)


# --- systemd ----------------------------------------------------------------------------------------------------


def units(folder: Path, unit: str = UNIT, socket: str = SOCKET) -> list[Path]:
    """The units with the program where it is on this machine."""
    here = unit.replace("/opt/sidecar/bin/sidecar", str(PROGRAMS / "sidecar"))
    write(folder, {"sidecar.service": here, "sidecar.socket": socket})
    return [folder / "sidecar.service", folder / "sidecar.socket"]


def test_systemd_knows_every_line_of_the_units(tmp_path: Path) -> None:
    assert tool("systemd-analyze", "verify", *units(tmp_path)) == (0, "")
    bad = units(tmp_path / "bad", UNIT.replace("WatchdogSec=30", "WatchdogSec=soon"))
    assert "sidecar.service:" in tool("systemd-analyze", "verify", *bad)[1]


def test_the_unit_is_hardened_and_leaves_gpus_in_sight(tmp_path: Path) -> None:
    unit, _ = units(tmp_path)
    assert tool("systemd-analyze", "security", "--offline=true", "--threshold=40", unit)[0] == 0
    bare = re.sub(r"^(No|Protect|Restrict|Capa|Lock|Device|System).*\n", "", UNIT, flags=re.MULTILINE)
    unit, _ = units(tmp_path / "bare", bare)
    assert tool("systemd-analyze", "security", "--offline=true", "--threshold=40", unit)[0] == 1
    assert "PrivateDevices=" not in UNIT
    assert UNIT.count("DeviceAllow=char-nvidia* rw\n") == 1


def test_the_unit_the_socket_and_the_manifest_fit_together(tmp_path: Path) -> None:
    manifest = (DEPLOY / "systemd" / "sidecar.toml").read_text(encoding="utf-8")
    declaration = declared(tmp_path, {"sidecar.toml": manifest})
    assert value(UNIT, "Requires") == "sidecar.socket"  # whoever stops the socket stops both
    assert value(SOCKET, "ListenStream") == declaration.settings.listen
    assert declaration.settings.state_dir == f"/var/lib/{value(UNIT, 'StateDirectory')}"
    assert (value(UNIT, "KillMode"), declaration.settings.on_exit) == ("process", "keep")
    assert int(value(UNIT, "TimeoutStopSec")) > longest_end_s(declaration)


# --- Docker -----------------------------------------------------------------------------------------------------


def test_hadolint_finds_no_fault_with_the_dockerfile(tmp_path: Path) -> None:
    assert tool(PROGRAMS / "hadolint", DOCKERFILE) == (0, "")
    bad = write(tmp_path, {"Dockerfile": DOCKERFILE.read_text().replace("USER 0:0", "USER root\nMAINTAINER me")})
    assert tool(PROGRAMS / "hadolint", bad / "Dockerfile")[0] == 1


def test_what_the_dockerfile_copies_is_enough_to_build_the_program(tmp_path: Path) -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    first = text.split("FROM ")[1]
    copied = [name for line in re.findall(r"^COPY (.*)$", first, re.MULTILINE) for name in line.split()[:-1]]
    ignored = (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text(encoding="utf-8")
    for name in [*copied, "constraints.txt"]:
        assert f"!{name}\n" in ignored
    for name in copied:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel"], cwd=tmp_path, check=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert "sidecar/mechanism/manifests.md" in zipfile.ZipFile(wheel).namelist()


def test_the_compose_file_is_one(tmp_path: Path) -> None:
    check = (sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec")
    text = (DEPLOY / "docker" / "compose.yaml").read_text(encoding="utf-8")
    bad = write(tmp_path, {"compose.yaml": text.replace("restart:", "restrat:", 1)}) / "compose.yaml"
    code, told = tool(*check, DEPLOY / "docker" / "compose.yaml", bad)
    assert code == 1
    assert "restrat" in told
    assert str(DEPLOY) not in told


def test_the_container_has_what_its_manifests_need(tmp_path: Path) -> None:
    service = COMPOSE["services"]["sidecar"]
    assert (DEPLOY / "docker" / service["build"]["context"]).resolve() == ROOT
    assert (ROOT / service["build"]["dockerfile"]) == DOCKERFILE
    manifest = (DEPLOY / "docker" / "manifests" / "sidecar.toml").read_text(encoding="utf-8")
    (secret,) = service["secrets"]
    assert f'"/run/secrets/{secret}"' in manifest
    token = write(tmp_path, {"token": "x"}) / "token"
    declaration = declared(tmp_path / "manifests", {"all.toml": manifest.replace(f"/run/secrets/{secret}", str(token))})
    assert f"state:{declaration.settings.state_dir}" in service["volumes"]
    port = declaration.settings.listen.rpartition(":")[2]
    assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
    for said in (f"VOLUME {declaration.settings.state_dir}\n", f"EXPOSE {port}\n", f"127.0.0.1:{port}/-/healthy"):
        assert said in DOCKERFILE.read_text(encoding="utf-8")
    assert int(service["stop_grace_period"].removesuffix("s")) > longest_end_s(declaration)


# --- Kubernetes -------------------------------------------------------------------------------------------------


def resources(path: Path) -> dict[str, Any]:
    """What a file holds, by kind."""
    return {one["kind"]: one for one in yaml.safe_load_all(path.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("path", PODS, ids=lambda path: path.stem)
def test_kubernetes_knows_every_field(path: Path) -> None:
    for version in KUBERNETES:
        for resource in resources(path).values():
            kubernetes_validate.validate(resource, version, strict=True)
    pod = resources(path)["Deployment"]
    pod["spec"]["template"]["spec"]["initContainers"][-1]["restartPolicies"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, KUBERNETES[0], strict=True)


@pytest.mark.parametrize("path", PODS, ids=lambda path: path.stem)
def test_the_pod_drains_in_time_and_asks_what_is_there(path: Path, tmp_path: Path) -> None:
    configured = resources(PODS[0])
    declaration = declared(tmp_path, _with_keys(configured["ConfigMap"]["data"], configured["Secret"], tmp_path))
    spec = resources(path)["Deployment"]["spec"]["template"]["spec"]
    sidecar = spec["initContainers"][-1]
    assert sidecar["restartPolicy"] == "Always"
    wait_s = sidecar["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] > wait_s + longest_end_s(declaration)
    probes = {kind: sidecar[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")}
    assert probes == {
        "startup": {"path": "/-/ready", "port": "http"},
        "readiness": {"path": "/-/ready", "port": "http"},
        "liveness": {"path": "/-/healthy", "port": "http"},
    }
    (port,) = sidecar["ports"]
    assert declaration.settings.listen == f"0.0.0.0:{port['containerPort']}"
    mounts = {mount["mountPath"] for mount in sidecar["volumeMounts"]}
    assert declaration.settings.state_dir in mounts
    folder = sidecar.get("args", ["run", "/etc/sidecar/manifests"])[1]
    assert any(folder.startswith(mount) for mount in mounts)


def _with_keys(data: dict[str, str], secret: Any, root: Path) -> dict[str, str]:
    keys = write(root / "keys", secret["stringData"]) / "keys"
    return {name: text.replace("/etc/sidecar/keys/keys", str(keys)) for name, text in data.items()}


def test_every_file_is_explained() -> None:
    text = (DEPLOY / "README.md").read_text(encoding="utf-8")
    for path in DEPLOY.rglob("*"):
        if path.is_file() and path.name != "README.md":
            assert f"`{path.relative_to(DEPLOY).as_posix().partition('/')[2]}`" in text, path
