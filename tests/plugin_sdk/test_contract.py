"""The contract of plugins: each check finds the plugin that it is about, and says what to do."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plugin_sdk import Plugin
from plugin_sdk.testing import common, contract, faults, subject
from plugin_sdk.testing.contract import checks_of, run
from plugin_sdk.testing.subject import Subject
from sidecar.mechanism.sources import Library
from tests.plugin_sdk.door import Door, discreet
from tests.plugins_bad import exits, kinds, lives, opens_a_socket, starts_a_thread
from tests.support import write

BAD: list[tuple[type[Plugin[Any]], str, str]] = [
    (starts_a_thread.StartsAThread, "importing_starts_nothing", "the thread too-early: begin such things in open()"),
    (exits.Exits, "importing_starts_nothing", "SystemExit: 3"),
    (opens_a_socket.OpensASocket, "importing_starts_nothing", "a socket: begin such things in open()"),
    (lives.IgnoresTypos, "unknown_settings_are_refused", "Anything passes over keys"),
    (lives.IgnoresTyposBelow, "unknown_settings_are_refused", "Inner passes over keys that it does not know: make it"),
    (lives.NeedsAWord, "unknown_settings_are_refused", "give contract(..., config={...})"),
    (lives.OwnInit, "closes_whatever_became_of_open", "must take *args and **kwargs"),
    (lives.CloseNeedsOpen, "closes_whatever_became_of_open", "give the fields that it uses a value before open()"),
    (lives.ClosesOnce, "closes_whatever_became_of_open", "let it do nothing when there is nothing left to close"),
    (lives.LeaksTasks, "twenty_lives_leave_nothing_behind", "20 tasks more: end in close() what open() began"),
    (lives.LeaksThreads, "twenty_lives_leave_nothing_behind", "20 threads more: end in close() what open() began"),
    (lives.LeaksFiles, "twenty_lives_leave_nothing_behind", "20 open files more: end in close() what open() began"),
    (lives.LeaksItself, "twenty_lives_leave_nothing_behind", "closed plugins are still held"),
    (lives.Hangs, "anybody_is_admitted_or_rejected", "did not end within 0.2 s: give what it waits for a timeout"),
    (lives.BlocksTheLoop, "never_holds_up_the_loop", "make it a plain `def`, which runs in a thread"),
    (lives.SwallowsCancellation, "cancellation_passes_through", "let asyncio.CancelledError pass"),
    (lives.GoesOn, "cancellation_passes_through", "goes on when it is cancelled: let asyncio.CancelledError pass"),
    (kinds.MoreThanAll, "memory_adds_up_and_ids_are_stable", "used is at most the total"),
    (kinds.BytesForMegabytes, "memory_adds_up_and_ids_are_stable", "figures are MB of 2^20 bytes"),
    (kinds.NewIds, "memory_adds_up_and_ids_are_stable", "an id must be the same at each probe"),
    (kinds.SameIds, "memory_adds_up_and_ids_are_stable", "give each one of its own"),
    (kinds.DeviceAsDict, "memory_adds_up_and_ids_are_stable", "return a DeviceStatus"),
    (kinds.LogsTheToken, "tokens_are_never_told", "the token stands in the log"),
    (kinds.PrintsTheToken, "tokens_are_never_told", "the token stands in what it prints"),
    (kinds.NamesTheToken, "tokens_are_never_told", "name the principal, or a few characters of the token's hash"),
    (kinds.RaisesKeyError, "anybody_is_admitted_or_rejected", 'raise Reject(401, "...") for whom you do not know'),
    (kinds.AdmitsNone, "anybody_is_admitted_or_rejected", "return a Principal, or raise Reject"),
    (kinds.MixesCallers, "fifty_callers_at_once_are_told_apart", "keep what is a request's in local variables"),
    (kinds.SeesPieces, "cuts_of_the_stream_do_not_matter", "Override on_event, which gets whole events"),
    (kinds.MixesStreams, "fifty_at_once_are_not_mixed_up", "exchange.state, not in self"),
    (kinds.EventAsDict, "cuts_of_the_stream_do_not_matter", "EventAsDict.on_event must return Event, not dict"),
    (kinds.NeedsTargets, "requests_go_to_a_target", "expect that there may be no targets"),
    (kinds.NamesATarget, "requests_go_to_a_target", "return one of the targets, a Target of your own, or None"),
    (kinds.HalfATarget, "requests_go_to_a_target", 'it needs "http://HOST:PORT"'),
    (kinds.ModelsAsText, "models_are_listed_and_found", "return a list with ModelInfo(name=...) for each"),
    (kinds.ModelsTwice, "models_are_listed_and_found", "each model needs one of its own"),
    (kinds.ModelsNowhere, "models_are_listed_and_found", "give the Target where it is"),
    (kinds.KnowsItsTargets, "finished_takes_any_outcome", "expect targets that are gone"),
    (kinds.NeedsUsage, "any_outcome_can_be_recorded", "expect fields that are empty or out of range"),
    (kinds.NeedsItsSink, "any_outcome_can_be_recorded", "count what cannot be written (self.metrics.count)"),
    (kinds.NeedsUsageOfEach, "several_outcomes_can_be_recorded_at_once", "expect fields that are empty"),
    (kinds.CountsServersOnce, "servers_can_be_told_of_again_and_again", "and that the same ones come again"),
    (kinds.ReportsATable, "reports_have_what_was_asked_for", "report gave a dict: return a UsageReport"),
    (kinds.ReportsAllInOne, "reports_have_what_was_asked_for", "give a value for each name in `by`"),
    (kinds.ReportsWhatItKnows, "reports_have_what_was_asked_for", 'raise Reject(400, "...") for what it cannot tell'),
    (kinds.NoEndpoints, "endpoints_are_well_formed", 'endpoints = (Endpoint("/v1/NAME", "NAME"),)'),
    (kinds.RelativePath, "endpoints_are_well_formed", "a path without query"),
    (kinds.TrustsBodies, "usage_survives_garbage", "return None for what cannot be read"),
    (kinds.TrustsRequests, "errors_stand_on_one_line", "raise Reject(400, reason)"),
    (kinds.LinesInErrors, "errors_stand_on_one_line", "encode it with msgspec.json.encode"),
    (kinds.AlwaysReady, "servers_that_fail_are_not_ready", "ready gave True for a server that answers 503"),
    (kinds.AlwaysAlive, "servers_that_fail_are_not_ready", "alive gave True for a server that answers 503"),
]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Give back what the bad plugins have taken."""
    yield
    while lives.OPEN_FILES:
        lives.OPEN_FILES.pop().close()
    lives.REMEMBERED.clear()


@pytest.mark.parametrize(("plugin", "check", "remedy"), BAD, ids=[plugin.__name__ for plugin, _, _ in BAD])
def test_each_bad_plugin_is_found_by_the_check_that_is_about_it(
    plugin: type[Plugin[Any]], check: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "DEADLINE_S", 0.2 if plugin is lives.Hangs else subject.DEADLINE_S)
    monkeypatch.setattr(common, "SETTLE_S", 0.1)  # what is left behind in these does not go away by itself
    found = run(Subject(plugin=plugin), check)
    assert remedy in found
    assert found.startswith(f"{plugin.__name__}: ")


test_a_good_plugin_passes = contract(Door, config={"word": "open-sesame"}, token="open-sesame")
test_a_good_filter_passes = contract(discreet)


def test_a_request_that_is_said_to_be_admitted_has_to_be() -> None:
    found = faults(Door, config={"word": "open-sesame"}, token="close")
    assert list(found) == ["anybody_is_admitted_or_rejected"]
    assert "give one that is admitted" in found["anybody_is_admitted_or_rejected"]


def test_pytest_tells_what_is_wrong_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(
        "from plugin_sdk import DeviceStatus, device\n"
        "from plugin_sdk.testing import contract\n\n"
        "@device('mine')\n"
        "def mine():\n"
        "    return DeviceStatus(total_mb=1, free_mb=2)\n\n"
        "test_contract = contract(mine)\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert "1 failed, 6 passed" in done.stdout
    assert "test_contract[memory_adds_up_and_ids_are_stable]" in done.stdout
    assert "mine: a device cannot have total_mb=1 free_mb=2" in done.stdout
    assert "Traceback" not in done.stdout


def test_a_file_that_was_dropped_in_is_imported_by_its_place(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    text = "from plugin_sdk import DeviceStatus, device\n@device('mine')\ndef mine():\n    return []\n"
    file.write_text(text)
    spec = importlib.util.spec_from_file_location("a_name_that_nobody_knows", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert faults(module.mine) == {}
    file.write_text(text + "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n")
    assert "begin such things in open()" in faults(module.mine)["importing_starts_nothing"]


@pytest.mark.parametrize(
    ("file", "head"),
    [
        ("mine.py", "from dataclasses import dataclass\n@dataclass\nclass Reading:\n    mb: int\n"),
        ("mine.py", "import beside_it\n"),
        ("mine/__init__.py", "from . import beside_it\n"),
        ("mine/within.py", "from . import beside_it\nfrom mine import beside_it\n"),
        ("mine/within/__init__.py", "from .. import beside_it\n"),
    ],
)
def test_what_the_sidecar_can_import_can_be_imported_to_try_it(file: str, head: str, tmp_path: Path) -> None:
    device = "from plugin_sdk import DeviceStatus, device\n@device('gpu')\ndef gpu():\n    return []\n"
    files = {file: f"from __future__ import annotations\n{head}{device}", "beside_it.py": "", "mine/beside_it.py": ""}
    if "within" in file:
        files["mine/__init__.py"] = "from .within import gpu\n"
    library = Library()
    library.read(write(tmp_path, files))
    gpu = library.versions["mine"].load().gpu
    assert run(Subject(plugin=gpu), "importing_starts_nothing") == ""


def test_the_kit_itself_needs_neither_pytest_nor_the_program() -> None:
    script = "import sys, plugin_sdk.testing; print({'pytest', 'httpx', 'sidecar'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout == "set()\n", done.stderr


def test_every_check_has_a_plugin_that_it_finds() -> None:
    assert {check for plugin, _, _ in BAD for check in checks_of(plugin)} == {check for _, check, _ in BAD}
