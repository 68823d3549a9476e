"""`sidecar calibrate` on what a sidecar has left in its state directory."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sidecar.control.measurements import Measurements
from sidecar.core.manifest import Variant
from sidecar.mechanism.loader import load
from sidecar.mechanism.source import read
from sidecar.surfaces.cli import main
from tests.support import model
from tests.support import write as write_files

NOBODY = "http://127.0.0.1:1"
TWO = """\
[models.two]
mode = "chat"
variants = [
  { required_devices = ["cpu", "nvidia"], memory_mb = 1000, command = ["serve", "{port}"] },   # one number for both
]
"""


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    """Models that take too much, too little, and just what they declare."""
    files = {
        "sidecar.toml": f'[sidecar]\nstate_dir = "{tmp_path / "state"}"\n',
        "high.toml": model("high") + "# the end\n",
        "low.toml": model("low").replace("= 100", "= 9000"),
        "right.toml": model("right"),
        "two.toml": TWO,
    }
    (tmp_path / "state").mkdir()
    folder = write_files(tmp_path / "manifests", files)
    remember(folder, {"high": {"cpu": 130}, "low": {"cpu": 1000}, "right": {"cpu": 95}, "two": {"cpu": 1200}})
    return folder


def remember(folder: Path, took: dict[str, dict[str, int]]) -> None:
    """Leave behind what a sidecar on these manifests would that saw its servers take so much."""
    declared = load(read(folder), {}).declaration
    found = Measurements(Path(declared.settings.state_dir))
    for name, by_device in took.items():
        variant: Variant = declared.models[name].variants[0]
        found.observed(name, variant, variant.required_devices, by_device)
    asyncio.run(found.save())


def calibrate(*arguments: str | Path, code: int = 0, url: str = NOBODY) -> Result:
    """Run the command where no sidecar answers."""
    result = CliRunner().invoke(main, ["calibrate", *map(str, arguments), "--url", url])
    assert result.exit_code == code, result.output
    return result


def contents(folder: Path) -> dict[str, str]:
    """All files."""
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_peaks_are_shown_beside_what_is_declared(manifests: Path) -> None:
    result = calibrate(manifests)
    rows = [line.split() for line in result.stdout.splitlines()[2:]]
    assert rows[:-1] == [
        ["high", "default", "cpu", "100", "130", "150"],
        ["low", "default", "cpu", "9000", "1000", "could", "be", "1250"],
        ["right", "default", "cpu", "100", "95"],
        ["two", "default", "cpu", "1000", "1200", "1350"],
        ["two", "default", "nvidia", "1000", "unknown"],
    ]
    assert f"no sidecar answers at {NOBODY}" in result.stderr
    assert f"reading {manifests.parent}/state/measurements.json" in result.stderr


def test_nothing_is_written_unasked(manifests: Path) -> None:
    before = contents(manifests)
    calibrate(manifests)
    calibrate(manifests, "--lower")
    assert contents(manifests) == before


def test_what_is_too_low_is_raised_in_place(manifests: Path) -> None:
    before = contents(manifests)
    result = calibrate(manifests, "--write")
    assert contents(manifests) == {
        **before,
        "high.toml": before["high.toml"].replace("memory_mb = 100", "memory_mb = 150"),
        "two.toml": before["two.toml"].replace("memory_mb = 1000", "memory_mb = { cpu = 1350, nvidia = 1000 }"),
    }
    assert f"written: {manifests}/high.toml" in result.stdout
    assert CliRunner().invoke(main, ["validate", str(manifests)]).exit_code == 0


def test_the_sidecars_own_checkout_of_a_repository_is_left_alone(manifests: Path) -> None:
    source, commit = manifests.parent / "source", "0123456789" * 4
    (source / "checkouts").mkdir(parents=True)
    (source / "live").symlink_to(f"checkouts/{commit}")
    manifests.rename(source / "checkouts" / commit)
    before = contents(source / "live")
    assert calibrate(source / "live").exit_code == 0
    for named in (source / "live", source / "checkouts" / commit):
        refused = calibrate(named, "--write", code=1).stderr
        assert "is in the sidecar's own checkout of commit 012345678901, which it would make anew" in refused
        assert "change it in a clone of the repository" in refused
    assert contents(source / "live") == before


def test_what_is_written_is_not_suggested_again(manifests: Path) -> None:
    calibrate(manifests, "--write", "--lower")
    after = contents(manifests)
    assert "nothing to write" in calibrate(manifests, "--write", "--lower").stdout
    assert contents(manifests) == after
    assert [line["suggested_mb"] for line in shown(manifests)["variants"]] == [None] * 5


def test_what_could_be_less_is_lowered_when_asked(manifests: Path) -> None:
    calibrate(manifests, "--write", "--lower", "--model", "low")
    after = contents(manifests)
    assert "memory_mb = 1250" in after["low.toml"]
    assert "memory_mb = 100\n" in after["high.toml"]


def shown(manifests: Path, *arguments: str, code: int = 0) -> Any:
    """The answer as JSON."""
    return json.loads(calibrate(manifests, "--json", *arguments, code=code).stdout)


def test_json_tells_the_same(manifests: Path) -> None:
    assert shown(manifests, "--write", "--model", "high") == {
        "variants": [
            {
                "model": "high",
                "variant": "default",
                "device": "cpu",
                "declared_mb": 100,
                "peak_mb": 130,
                "suggested_mb": 150,
            }
        ],
        "written": [f"{manifests}/high.toml"],
        "refused": [],
    }


def test_a_file_that_cannot_be_written_is_told_and_the_others_are_written(manifests: Path) -> None:
    (manifests / "high.toml").chmod(0o444)
    result = calibrate(manifests, "--write", code=1)
    assert f"not written: {manifests}/high.toml is read-only" in result.stderr
    assert f"written: {manifests}/two.toml" in result.stdout
    assert "memory_mb = 100\n" in (manifests / "high.toml").read_text()


def test_other_models_faults_do_not_matter(manifests: Path) -> None:
    write_files(manifests, {"bad.toml": model("bad", "priority = ''")})
    calibrate(manifests, "--write")
    assert "memory_mb = 150" in (manifests / "high.toml").read_text()


def test_what_was_not_measured_is_told(manifests: Path, tmp_path: Path) -> None:
    assert 'nothing was measured of a model "other"' in calibrate(manifests, "--model", "other", code=1).stderr
    changed = (manifests / "high.toml").read_text().replace('"{port}"', '"--ctx", "{port}"')
    write_files(manifests, {"high.toml": changed})
    assert "nothing was measured" in calibrate(manifests, "--write", "--model", "high", code=1).stderr
    (tmp_path / "state" / "measurements.json").write_text('{"version": 1, "variants": []}')
    assert "Nothing was measured yet." in calibrate(manifests).stdout


def test_a_sidecar_that_neither_answers_nor_has_left_anything_is_exit_3(tmp_path: Path, manifests: Path) -> None:
    file = tmp_path / "state" / "measurements.json"
    file.unlink()
    assert f"and there is no {file}" in calibrate(manifests, code=3).stderr
    result = calibrate(tmp_path / "nowhere", code=3)
    assert f"no sidecar answers at {NOBODY}" in result.stderr
    assert "no such directory" in result.stderr


def test_a_record_that_makes_no_sense_is_told_and_left(tmp_path: Path, manifests: Path) -> None:
    file = tmp_path / "state" / "measurements.json"
    file.write_text("{")
    assert f"{file} cannot be read" in calibrate(manifests, code=1).stderr
    assert file.read_text() == "{"


def test_a_faulty_sidecar_table_is_told(manifests: Path) -> None:
    write_files(manifests, {"sidecar.toml": "[sidecar]\nlisen = 1\n"})
    assert "nothing is calibrated" in calibrate(manifests, "--write", code=1).stderr


def test_wrong_usage_is_exit_2() -> None:
    calibrate("--no-such-option", code=2)
