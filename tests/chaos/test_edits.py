"""Manifests that are edited without a pause, under load: nobody but the edited models may feel it."""

from __future__ import annotations

import random
import time

import pytest

from tests.chaos.world import Traffic, accounted_for, servers
from tests.e2e.conftest import Run
from tests.e2e.harness import Sidecar, llama, stub, until

UNTOUCHED = ("one", "two", "real")
LAG_S = 5.0


class Editor:
    """Edits the other models' manifests at a rate, each time in another of the ways in which people and programs do.

    expected: by model, the alias of its last edit; none where that was a mistake, for then it depends on what was seen
    before it. lags_s: from an edit to its being in force.
    """

    def __init__(self, sidecar: Sidecar, files: dict[str, str], seed: int) -> None:
        self._sidecar = sidecar
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._files = files
        self._number = 0
        self.expected: dict[str, list[str]] = {}
        self.edited_at: dict[str, float] = {}
        self.lags_s: list[float] = []

    def edit(self, count: int, per_s: float) -> None:
        """So many edits."""
        began = time.monotonic()
        for number in range(count):
            self._edit(*self._random.choice(list(self._files.items())))
            self._look()
            time.sleep(max(0.0, began + (number + 1) / per_s - time.monotonic()))

    def _edit(self, name: str, file: str) -> None:
        self._number += 1
        alias = f"{name}-{self._number}"
        good = stub(name, model=f'aliases = ["{alias}"]\npriority = {self._number % 7}')
        path = self._sidecar.folder / "manifests" / file
        way = self._random.randrange(6)
        if way == 0:  # an editor that writes in place, and is seen half way
            path.write_text(good[: len(good) // 2])
            path.write_text(good)
        elif way == 1:  # one that moves the old file away first
            path.rename(path.with_suffix(".toml~"))
            path.write_text(good)
        elif way == 2:  # a mistake: what was good stays
            self._sidecar.write(file, good.replace("mode", "mood"))
            self.expected.pop(name, None)
            self.edited_at.pop(name, None)
            return
        elif way == 3:  # no change at all but the time stamp
            path.touch()
            return
        else:
            self._sidecar.write(file, good)
        self.expected[name] = [alias]
        self.edited_at[name] = time.monotonic()

    def _look(self) -> None:
        """Note which edits have come into force. One that was edited over in the meantime counts from the last time."""
        now = time.monotonic()
        if self._number % 5 == 0:
            for name, aliases in aliases_of(self._sidecar).items():
                if name in self.edited_at and aliases == self.expected[name]:
                    self.lags_s.append(now - self.edited_at.pop(name))


def aliases_of(sidecar: Sidecar) -> dict[str, list[str]]:
    """The aliases in force."""
    return {model["name"]: model["aliases"] for model in sidecar.status()["models"]}


def storm(run: Run, count: int, per_s: float) -> tuple[Traffic, Editor, float]:
    """Edit under load. The last return value: seconds from the last edit until all are in force."""
    others = {f"other{number}": f"model-{number + 3}.toml" for number in range(12)}
    sidecar = run(stub("one"), stub("two", "--interval", "0.01"), llama("real"), *(stub(name) for name in others))
    for name in UNTOUCHED:
        assert sidecar.ask(name)
    assert sidecar.ask("other0")
    before = servers(sidecar)
    with Traffic(lambda: sidecar.url, *UNTOUCHED, clients=2, pause_s=0.02) as traffic:
        editor = Editor(sidecar, others, seed=count)
        editor.edit(count, per_s)
        began = time.monotonic()
        until(lambda: editor.expected.items() <= aliases_of(sidecar).items(), "every edit's last state is in force", 10)
        settled_s = time.monotonic() - began
        traffic.flows(20)
        assert not traffic.failures, traffic.failures[:3]
    assert servers(sidecar) == before  # that other0 has new aliases is no reason to restart it, either
    assert all(sidecar.starts(name) == 1 for name in UNTOUCHED)
    accounted_for(sidecar)
    return traffic, editor, settled_s


def test_edits_of_other_models_fail_no_request_and_restart_nobody(run: Run) -> None:
    _, editor, settled_s = storm(run, 30, 10)
    assert settled_s < LAG_S
    assert editor.lags_s, "edits come into force while others go on"
    assert max(editor.lags_s) < LAG_S


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_five_hundred_edits_in_a_minute_fail_no_request_and_restart_nobody(run: Run) -> None:
    traffic, editor, settled_s = storm(run, 500, 500 / 60)
    assert settled_s < LAG_S
    assert editor.lags_s
    assert max(editor.lags_s) < LAG_S
    print(
        f"{traffic.answers} requests, none failed, the slowest {traffic.slowest_s * 1000:.0f} ms; "
        f"edits in force within {max(editor.lags_s):.2f} s, after the last one within {settled_s:.2f} s"
    )
