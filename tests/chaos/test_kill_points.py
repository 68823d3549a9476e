"""The sidecar is killed at every moment at which its state is being written down; the next one makes good of it.

Some of the moments here; every one of them by `./tests/run -m soak`.
"""

from __future__ import annotations

from pathlib import Path

import httpx
import openai
import pytest

from tests.chaos.conftest import Rivals
from tests.chaos.world import Manifests, Seen, accounted_for, doomed, marked, nothing_left, recorded, servers
from tests.e2e.harness import Sidecar, alive, running

COUNTLESS = 200  # steps that no story has
DIED = -9


class Story:
    """Start a; start b, for which a has to go; stop b; end. held: servers that nobody wants to go."""

    def __init__(self, sidecar: Sidecar) -> None:
        self.sidecar = sidecar
        self.held: dict[str, Seen] = {}
        self.going: set[str] = set()  # models that may have to go

    def tell(self) -> None:
        """All of it, or up to the sidecar's death."""
        try:
            self._tell()
        except (openai.APIConnectionError, httpx.TransportError, AssertionError):
            if self.sidecar.process.wait(20) != DIED:
                raise

    def _tell(self) -> None:
        self.sidecar.wait_until_listening()
        self._serve("a")
        self._serve("b")
        self._leave()
        httpx.post(f"{self.sidecar.url}/-/models/b/stop", trust_env=False, timeout=20).raise_for_status()
        assert self.sidecar.stop() == 0

    def _serve(self, name: str) -> None:
        self._leave()
        assert self.sidecar.ask(name)
        self.held = {name: servers(self.sidecar)[name]}

    def _leave(self) -> None:
        self.going |= self.held.keys()
        self.held = {}


def killed_at(step: int, folder: Path, manifests: Manifests) -> str:
    """Tell the story to a sidecar that dies at a step, and see how the next one goes on. "" if it has no such step."""
    trace = folder / "steps"
    trace.write_text("")
    with doomed(folder, manifests, ["tests.chaos.killed", str(step), str(trace)]) as sidecar:
        story = Story(sidecar)
        story.tell()
        died = sidecar.process.wait(20) == DIED
    steps = trace.read_text().splitlines()
    if not died:
        nothing_left(folder)
        return ""
    try:
        goes_on(story, folder, manifests)
    except BaseException as error:
        error.add_note(f"it was killed at step {steps[-1]}")
        raise
    return steps[-1]


def goes_on(story: Story, folder: Path, manifests: Manifests) -> None:
    """Fail unless a sidecar on what is left takes over what is whole, and finishes or undoes what is not."""
    left = recorded(folder)
    with running(folder, manifests) as sidecar:
        now = servers(sidecar)
        for model, server in story.held.items():
            assert now[model] == server, "a server that served was not taken over"
        for model, server in left.items():
            if alive(server.pid) and model not in story.going:
                assert now.get(model) == server, "a recorded server was not taken over"
        accounted_for(sidecar)  # what had to go has gone, or is taken over
        for name in "ba":
            assert sidecar.ask(name)
            accounted_for(sidecar)
    nothing_left(folder)


@pytest.mark.parametrize(("engine", "step"), [("stub", 13), ("llama", 12)])
def test_a_sidecar_killed_while_it_writes_is_made_good_by_the_next(
    tmp_path: Path, rivals: Rivals, engine: str, step: int
) -> None:
    assert killed_at(step, tmp_path, rivals(engine))


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", ["stub", "llama"])
def test_a_sidecar_killed_at_every_step_is_made_good_by_the_next(tmp_path: Path, rivals: Rivals, engine: str) -> None:
    manifests = rivals(engine)
    for step in range(1, COUNTLESS):
        told = killed_at(step, tmp_path, manifests)
        assert not marked(tmp_path)
        if not told:
            assert step > 20, "the story has more steps than that"
            return
        print(f"{engine}: {told}")
    raise AssertionError("the story has no end")
