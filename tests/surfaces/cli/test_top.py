"""`sidecar top`: what it shows, on large and small screens, and what its keys do."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from textual.pilot import Pilot
from textual.widgets import Input

from sidecar.surfaces.cli import main
from sidecar.surfaces.cli.client import Remote
from sidecar.surfaces.cli.top import bars, rows
from sidecar.surfaces.cli.top.app import TopApp
from sidecar.surfaces.cli.top.frame import Film, Frame
from sidecar.surfaces.cli.top.screens import Help, Question
from sidecar.surfaces.cli.top.table import Models
from sidecar.surfaces.top_api import TopModel
from tests.support import until
from tests.surfaces.cli.canned import DEVICES, EVENTS, MODELS, REPORT, Canned, canned, later

NAMES = [model.name for model in MODELS]


@pytest.fixture
def sidecar() -> Iterator[Canned]:
    with canned() as found:
        yield found


def film(seconds: float = 10.0) -> Frame:
    """Two looks at the sidecar."""
    made = Film()
    made.add(REPORT, EVENTS)
    return made.add(later(REPORT, seconds))


def text(app: TopApp) -> str:
    """What is on the screen."""
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips)


def table(app: TopApp) -> list[str]:
    models = app.screen_stack[0].query_one(Models)
    return [str(models.get_row_at(row)[0]) for row in range(models.row_count)]


@asynccontextmanager
async def watching(
    sidecar: Canned,
    size: tuple[int, int] = (140, 40),
    what: tuple[str, str] = ("", "activity"),
    interval_s: float = 99.0,
) -> AsyncIterator[tuple[TopApp, Pilot[None]]]:
    app = TopApp(Remote(sidecar.url, ""), interval_s, what)
    async with app.run_test(size=size, notifications=True) as pilot:
        await until(lambda: app.frame, "it has looked")
        await pilot.pause()
        yield app, pilot


# --- frames -----------------------------------------------------------------------------------------------------


def test_rates_are_taken_over_the_window_and_begin_anew_with_another_sidecar() -> None:
    made = Film()
    assert made.add(REPORT).rates == {}
    once = made.add(later(REPORT, 2))
    assert (once.rates_of("qwen3-32b").requests, once.rates_of("qwen3-32b").tokens_out) == (3.5, 420)
    assert once.rates_of("gemma-3-27b").requests == 0
    idle = msgspec.structs.replace(later(REPORT, 2), clock=200.0)
    made.add(idle)
    assert made.add(msgspec.structs.replace(idle, clock=201.0)).rates_of("qwen3-32b").requests == 0
    other = made.add(msgspec.structs.replace(REPORT, pid=9, clock=1.0))
    assert (other.restarted, other.rates) == (True, {})


def test_a_model_that_has_just_been_declared_has_no_rates_yet() -> None:
    made = Film()
    made.add(msgspec.structs.replace(REPORT, models=()))
    assert made.add(later(REPORT)).rates_of("qwen3-32b").requests == 0


# --- devices ----------------------------------------------------------------------------------------------------


def test_a_bar_shows_every_holder_in_proportion_and_is_as_wide_as_there_is_room() -> None:
    held = DEVICES[0].holders
    assert held is not None
    plain = bars.bar(held, 40, bars.BLOCKS).plain
    assert len(plain) == 40
    assert (plain.count("█"), plain.count("▆"), plain.count("▒"), plain.count("░")) == (20, 1, 3, 7)
    assert len(bars.bar(held, 3, bars.BLOCKS).plain) == 3
    assert bars.bar(held, 0, bars.BLOCKS).plain == ""


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
def test_a_device_is_one_line_however_narrow_the_terminal(width: int) -> None:
    lines = list(bars.lines(DEVICES, width, bars.BLOCKS))
    assert len(lines) == 3
    assert all(len(line.plain) <= width for line in (lines[0], lines[2]))
    assert "█" in lines[0].plain
    assert lines[1].plain.startswith("nvidia:1  unknown: NVML: GPU is lost")
    assert ("18,759" in lines[0].plain) == (width > 20)


def test_devices_of_the_same_label_are_each_told_as_they_are() -> None:
    held = DEVICES[0].holders
    assert held is not None
    other = msgspec.structs.replace(DEVICES[0], holders=msgspec.structs.replace(held, free_mb=1234))
    first, second = bars.lines((DEVICES[0], other), 80, bars.BLOCKS)
    assert ("1,234" in first.plain, "1,234" in second.plain) == (False, True)


def test_without_unicode_the_parts_of_a_bar_are_still_told_apart() -> None:
    assert (bars.signs("ascii"), bars.signs(None), bars.signs("utf-8")) == (bars.ASCII, bars.ASCII, bars.BLOCKS)
    held = DEVICES[0].holders
    assert held is not None
    assert set(bars.bar(held, 40, bars.ASCII).plain) == set("#=x-.")


# --- models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "first"),
    [
        ("activity", "llama-3.3-70b"),
        ("name", "bge-m3"),
        ("queue", "llama-3.3-70b"),
        ("busy", "qwen3-32b"),
        ("requests", "qwen3-32b"),
        ("tokens", "qwen3-32b"),
        ("memory", "qwen3-32b"),
    ],
)
def test_models_can_be_put_in_order(order: str, first: str) -> None:
    found = [model.name for model in rows.chosen(film(), "", order)]
    assert found[0] == first
    assert sorted(found) == sorted(NAMES)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("", sorted(NAMES)),
        ("QWEN", ["qwen3-32b"]),
        ("drained", ["old-model"]),
        ("*-m*", ["bge-m3", "old-model"]),
        ("ready", ["bge-m3", "qwen3-32b"]),
        ("no such", []),
        ("[", []),
    ],
)
def test_models_are_found_by_name_and_state(pattern: str, names: list[str]) -> None:
    assert sorted(model.name for model in rows.chosen(film(), pattern, "name")) == names


def test_columns_go_one_by_one_as_the_terminal_gets_narrower() -> None:
    shown = [[column.title for column in rows.columns(width, 13)] for width in range(160, 0, -1)]
    assert len(shown[0]) == len(rows.COLUMNS)
    assert shown[-1] == ["MODEL", "STATE"]
    assert all(set(after) <= set(before) for before, after in pairwise(shown))
    assert "BECAUSE" in [column.title for column in rows.columns(80, 13)]


# --- the screen -------------------------------------------------------------------------------------------------


async def test_everything_is_on_the_screen(sidecar: Canned) -> None:
    async with watching(sidecar, (200, 40)) as (app, _):
        said = text(app)
    for part in (
        "10 busy, 3 waiting",
        "7 of 7 models",
        "42,100 ours, 6,200 others, 14,500 reserved",
        "87% 64°C 512 W",
        "unknown: NVML: GPU is lost",
        "starting 28%",
        "28%: 11,116 of 39,700 MB read, 5,100 of 18,200 MB taken, 21 of about 74 s",
        "ready, pinned",
        "stopped, drained",
        "34,600/36,000",
        "given up after 10 attempts",
        "variant q4 fits on nvidia:0",
        "q quit",
    ):
        assert part in said, said


async def test_rates_move_as_requests_end(sidecar: Canned) -> None:
    async with watching(sidecar, (160, 40), interval_s=0.1) as (app, _):
        sidecar.report = later(REPORT)
        await until(lambda: "420" in text(app), "the tokens of a second")


@pytest.mark.soak
@pytest.mark.parametrize("size", [(20, 5), (40, 12), (80, 24), (300, 100)])
async def test_it_fits_any_terminal(sidecar: Canned, size: tuple[int, int]) -> None:
    async with watching(sidecar, size) as (app, pilot):
        assert table(app)[0] == "llama-3.3-70b"
        await pilot.press("question_mark")
        await until(lambda: isinstance(app.screen, Help), "the keys are told")
        await pilot.press("escape")
        await until(lambda: not isinstance(app.screen, Help), "they are told no more")
        assert len(text(app).splitlines()) <= size[1]


async def test_a_narrow_screen_tells_why_the_chosen_model_is_not_ready_and_all_of_the_help(sidecar: Canned) -> None:
    why = "variant default needs 4,000,000 MB on cpu, which has 24,105"
    broken = TopModel(name="a-model-with-a-very-long-name", state="stopped", because=why)
    sidecar.report = msgspec.structs.replace(REPORT, models=(broken, TopModel(name="b", state="ready")))
    async with watching(sidecar, size=(100, 24), what=("", "name")) as (app, pilot):
        assert f"{broken.name}: {why}" in text(app)
        await pilot.press("down")
        await until(lambda: why not in text(app), "the other one is well")
        await pilot.resize_terminal(64, 40)
        await pilot.press("question_mark")
        end = "until taken back, or until the sidecar ends."
        await until(lambda: end in " ".join(text(app).replace("│", " ").split()), "the help is there, to its end")


async def answer(app: TopApp, pilot: Pilot[None], key: str, reply: str) -> None:
    """Press a key that asks back, and answer."""
    await pilot.press(key)
    await until(lambda: isinstance(app.screen, Question), "it asks")
    await pilot.press(reply)
    await until(lambda: not isinstance(app.screen, Question), "it has its answer")


async def test_keys_do_to_the_chosen_model_what_they_say_and_ask_before_they_stop_anything(sidecar: Canned) -> None:
    async with watching(sidecar, what=("", "name")) as (app, pilot):
        await pilot.press("s", "p")
        await answer(app, pilot, "x", "n")
        await answer(app, pilot, "d", "escape")
        await answer(app, pilot, "x", "y")
        await answer(app, pilot, "d", "y")
        await until(lambda: len(sidecar.asked) == 4, "all is asked for")
        assert sorted(sidecar.asked) == ["bge-m3/drain", "bge-m3/pin", "bge-m3/start", "bge-m3/stop"]
        await pilot.press("end", "up", "p", "up", "d")  # what is pinned or drained is put back by the same key
        await until(lambda: len(sidecar.asked) == 6, "the rest is")
        assert sorted(sidecar.asked[4:]) == ["old-model/undrain", "qwen3-32b/unpin"]


async def test_a_refusal_and_a_lack_of_logs_are_told_with_their_reasons(sidecar: Canned) -> None:
    sidecar.no, sidecar.lines = "nvidia:0 has 5 MB too little", None
    async with watching(sidecar) as (app, pilot):
        await pilot.press("s")
        await until(lambda: "5 MB too little (insufficient_memory)" in text(app), "the reason is told")
        await pilot.press("l")
        await until(lambda: "there is nothing to show: there is no such path" in text(app), "it says so")


async def test_a_filter_and_an_order_hold_until_they_are_taken_back(sidecar: Canned) -> None:
    async with watching(sidecar) as (app, pilot):
        await pilot.press("slash")
        await until(lambda: isinstance(app.focused, Input), "it can be typed")
        await pilot.press(*"GE")
        await until(lambda: table(app) == ["bge-m3", "gemma-3-27b"], "only those are shown")
        await pilot.press("enter", "o")
        assert 'by name  with "GE"' in text(app)
        await pilot.press("escape")
        await until(lambda: len(table(app)) == 7, "all are shown")
        await pilot.press("e")
        assert "RevisionApplied" not in text(app)


async def test_the_cursor_stays_on_its_model_when_the_order_changes(sidecar: Canned) -> None:
    async with watching(sidecar, what=("", "name")) as (app, pilot):
        await pilot.press("down", "down")
        before = app.chosen()
        assert before is not None
        new = TopModel(name="a-new-one", state="ready")
        sidecar.report = msgspec.structs.replace(REPORT, models=(new, *MODELS))
        app.show_frame(await app.link.frame())
        assert len(table(app)) == 8
        after = app.chosen()
        assert after is not None
        assert after.name == before.name


async def test_the_log_of_a_model_is_shown_as_it_comes(sidecar: Canned) -> None:
    async with watching(sidecar, what=("qwen", "name"), interval_s=0.1) as (app, pilot):
        await pilot.press("l")
        await until(lambda: "listening" in text(app), "its last lines")
        assert sidecar.lines is not None
        sidecar.lines.append("a line with \x1b[31mcolours")
        await until(lambda: "a line with  [31mcolours" in text(app), "the next line, without what steers terminals")
        await pilot.press("escape")
        assert "qwen3-32b" in table(app)


async def test_it_outlives_the_sidecar_and_says_so(sidecar: Canned) -> None:
    async with watching(sidecar, interval_s=0.1) as (app, pilot):
        sidecar.go()
        await until(lambda: "no sidecar answers at" in text(app), "it is missed")
        assert "below is how it was" in text(app)
        assert "qwen3-32b" in table(app)
        await pilot.press("l")  # and nothing of it breaks meanwhile
        await until(lambda: "waiting for it" in text(app), "its log is missed as well")
        await pilot.press("escape")
        sidecar.report = msgspec.structs.replace(REPORT, pid=REPORT.pid + 1, clock=0.5)
        sidecar.come()
        await until(lambda: "the sidecar has started anew" in text(app), "it is back")
        assert "no sidecar answers" not in text(app)


async def test_an_answer_that_makes_no_sense_is_told_and_asked_for_again(
    sidecar: Canned, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watching(sidecar, interval_s=0.1) as (app, _):
        monkeypatch.setattr(Canned, "get", lambda *_: (200, b'{"version": 1}'))
        await until(lambda: "does not answer as this version would" in text(app), "it is told")
        monkeypatch.undo()
        await until(lambda: "does not answer" not in text(app), "all is well again")


@pytest.mark.soak
async def test_five_hundred_models_are_shown_and_moved_through(sidecar: Canned) -> None:
    many = tuple(msgspec.structs.replace(MODELS[n % 7], name=f"model-{n:03}") for n in range(500))
    sidecar.report = msgspec.structs.replace(REPORT, models=many)
    async with watching(sidecar, what=("", "name")) as (app, pilot):
        assert len(table(app)) == 500
        began = asyncio.get_running_loop().time()
        for _ in range(2):
            sidecar.report = later(sidecar.report, 1.0)
            app.show_frame(await app.link.frame())
            await pilot.pause()
        assert (asyncio.get_running_loop().time() - began) / 2 < 2  # it is a tenth of that with nothing else to do
        await pilot.press("end")
        chosen = app.chosen()
        assert chosen is not None
        assert chosen.name == "model-499"


# --- without a screen -------------------------------------------------------------------------------------------


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["top", *arguments])


def test_one_frame_is_printed_for_people_or_for_programs(sidecar: Canned) -> None:
    said = invoke("--once", "--interval", "0.1", "--url", sidecar.url, "--filter", "qwen")
    assert said.exit_code == 0
    assert "qwen3-32b" in said.stdout
    assert "bge-m3" not in said.stdout
    assert "▒ others" in said.stdout
    assert "\x1b" not in said.stdout
    meant = ("--filter", "ge", "--sort", "name")
    frame = json.loads(invoke("--once", "--json", "--interval", "0.1", "--url", sidecar.url, *meant).stdout)
    assert [model["name"] for model in frame["report"]["models"]] == ["bge-m3", "gemma-3-27b"]
    assert set(frame["rates"]) <= {"bge-m3", "gemma-3-27b"}
    assert len(frame["events"]) == 4


def test_a_stream_of_frames_goes_on_over_a_restart(sidecar: Canned) -> None:
    command = [sys.executable, "-m", "sidecar", "top", "--json", "--interval", "0.1", "--url", sidecar.url]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        try:
            assert json.loads(program.stdout.readline())["report"]["pid"] == REPORT.pid
            sidecar.go()
            assert "waiting for it" in program.stderr.readline()
            sidecar.report = msgspec.structs.replace(REPORT, pid=REPORT.pid + 1)
            sidecar.come()
            frames = (json.loads(line) for line in program.stdout)
            assert next(frame["restarted"] for frame in frames if frame["report"]["pid"] != REPORT.pid)
        finally:
            program.kill()


def test_without_a_terminal_it_says_what_else_there_is(sidecar: Canned) -> None:
    said = invoke("--url", sidecar.url)
    assert (said.exit_code, "--once" in said.stderr) == (2, True)


def test_without_a_sidecar_it_ends_at_once() -> None:
    said = invoke("--once", "--url", "http://127.0.0.1:1")
    assert (said.exit_code, "no sidecar answers at http://127.0.0.1:1" in said.stderr) == (3, True)


def test_states_are_words_so_that_nothing_depends_on_colours() -> None:
    assert {rows.state(model) for model in MODELS} == {
        *("ready, pinned", "starting 28%", "ready", "elsewhere", "failed", "stopped", "stopped, drained")
    }
