"""`[source]`: read once, with every fault at its place, and with all paths made whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.mechanism import bootstrap
from sidecar.mechanism.bootstrap import BootstrapError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "bootstrap.toml"
    path.write_text(text)
    return path


def told(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(BootstrapError) as caught:
        bootstrap.read(write(tmp_path, text), {})
    return [str(problem).removeprefix(f"{tmp_path}/bootstrap.toml") for problem in caught.value.problems]


def test_paths_begin_where_the_file_is_and_options_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("signers", "key", "secret"):
        (tmp_path / name).write_text(name)
    text = """
[source]
git = "./manifests.git"
path = "./deploy/"
verify = "signed"
allowed_signers = "signers"
ssh_key = "key"
state_dir = "~/state"
webhook_secret = { file = "secret" }
interval = "30s"
"""
    declared = bootstrap.read(write(tmp_path, text), {"ref": "release", "interval": "2m"})
    assert declared.git == str(tmp_path / "manifests.git")
    assert (declared.ref, declared.path, declared.interval) == ("release", "deploy", 120.0)
    assert (declared.allowed_signers, declared.ssh_key) == (str(tmp_path / "signers"), str(tmp_path / "key"))
    assert declared.state_dir == str(tmp_path / "home" / "state")
    assert declared.webhook_secret is not None
    assert declared.webhook_secret.file == str(tmp_path / "secret")


def test_every_fault_is_told_with_its_line(tmp_path: Path) -> None:
    text = (
        '[source]\ngit = "https://git.example/a.git"\nintervall = "1m"\nverify = "yes"\ntoken = "s3cret"\n[models.a]\n'
    )
    found = told(tmp_path, text)
    assert found[0].startswith(':6: models: unknown key "models"')
    assert any(
        one.startswith(':3: source.intervall: unknown key "intervall"; did you mean "interval"?') for one in found
    )
    assert any(one.startswith(":4: source.verify:") for one in found)
    assert any(one.startswith(":5: source.token: expected { env") for one in found)
    assert not any("s3cret" in one for one in found)


def test_what_rules_forbid_and_what_is_not_there_is_told(tmp_path: Path) -> None:
    found = told(tmp_path, '[source]\ngit = "https://me:s3cret@git.example/a.git"\nref = "-x"\n')
    assert [one.split(": ")[1] for one in found] == ["source.git", "source.ref"]
    assert not any("s3cret" in one for one in found)
    text = '[source]\ngit = "https://git.example/a"\nca_file = "nowhere"\ntoken = { env = "NO_SUCH_TOKEN" }\n'
    assert told(tmp_path, text) == [
        f":3: source.ca_file: {tmp_path}/nowhere cannot be read: No such file or directory",
        ":4: source.token: environment variable NO_SUCH_TOKEN is not set",
    ]


def test_files_that_are_no_bootstrap_are_told(tmp_path: Path) -> None:
    assert "is not TOML" in told(tmp_path, "[source\n")[0]
    assert "there is no [source] here" in told(tmp_path, "")[0]
    assert "expected a table" in told(tmp_path, "source = 1\n")[0]
    assert "git: is missing" in told(tmp_path, "[source]\n")[0]
    with pytest.raises(BootstrapError, match="cannot be read: No such file"):
        bootstrap.read(tmp_path / "none.toml", {})


def test_options_are_told_by_their_names() -> None:
    with pytest.raises(BootstrapError) as caught:
        bootstrap.from_options({"git": "https://git.example/a", "interval": "often"}, {"interval": "--interval"})
    assert str(caught.value).startswith("--interval: expected a duration")
