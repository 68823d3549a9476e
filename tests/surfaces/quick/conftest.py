"""One data plane for all of these tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from plugin_sdk import Principal
from sidecar.surfaces.dataplane.quick import Quick
from tests.surfaces.quick.harness import WAS_QUICK
from tests.surfaces.quick.plugins import DOES, KNOWN, LOG, MORE
from tests.surfaces.world import World, running


@pytest.fixture(scope="package")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    settings = 'max_body = "100kB"\nrequest_timeout = "100s"'
    folder = tmp_path_factory.mktemp("quick")
    (folder / "secret").write_text("secret")
    with running(folder, settings=settings, more=MORE.replace("SECRET", str(folder / "secret"))) as made:
        yield made


@pytest.fixture(autouse=True)
def spied(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Which requests were quick; nothing is left of the test before."""
    KNOWN.update(key=Principal("team", {"key": "first"}))
    run = Quick.run

    def noted(self: Quick, body: bytes) -> None:
        WAS_QUICK.append(self)
        run(self, body)

    monkeypatch.setattr(Quick, "run", noted)
    yield
    for one in (WAS_QUICK, LOG, DOES, KNOWN):
        one.clear()
