"""What `sidecar source` says of what a repository and its server have said."""

from __future__ import annotations

import msgspec
import pytest
from click.testing import CliRunner

from sidecar.core.sourcing import Attempt, Commit, HistoryReport, SourceReport
from sidecar.surfaces.cli import main
from sidecar.surfaces.cli.client import Remote

EVIL = "\x1b[2Ja.toml:1: all is\nwell"
COMMIT = Commit(id="0123456789" * 4, author=EVIL, subject=EVIL)


@pytest.mark.parametrize("command", [("source",), ("source", "history")])
def test_nothing_that_is_told_steers_the_terminal_or_begins_a_line(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {
        "/-/source": SourceReport(kind="git", place="/r", commit=COMMIT.id, state="rejected", messages=(EVIL,)),
        "/-/source/history": HistoryReport(
            commit=COMMIT.id,
            history=(Attempt(commit=COMMIT, at=0.0, trigger="interval", outcome="rejected", reasons=(EVIL,)),),
        ),
    }
    monkeypatch.setattr(Remote, "get", lambda _, path: msgspec.to_builtins(answers[path]))
    done = CliRunner().invoke(main, command)
    assert done.exit_code == (1 if len(command) == 1 else 0)
    assert "a.toml:1: all is well" in done.stdout
    assert "\x1b" not in done.stdout
