"""The screen of `sidecar top`."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import ClassVar

from rich.cells import cell_len
from rich.text import Text
from textual import on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widgets import DataTable, Footer, Input, Static

from sidecar.surfaces.cli.client import AnswerError, Remote, UnreachableError
from sidecar.surfaces.cli.top import bars, rows
from sidecar.surfaces.cli.top.frame import Frame
from sidecar.surfaces.cli.top.link import Link
from sidecar.surfaces.cli.top.once import event_line, head
from sidecar.surfaces.cli.top.screens import Help, Log, Question
from sidecar.surfaces.cli.top.table import Models
from sidecar.surfaces.top_api import TopModel

LOW, HIGH = 16, 26  # lines of a terminal that has no room for events, and of one that has room for many


class TopApp(App[None]):
    """link: to the sidecar. what: the pattern of the models that are meant, and their order."""

    TITLE = "sidecar top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #head { height: 1; }
    #away { height: auto; background: $error; color: $text; display: none; }
    #devices { height: auto; max-height: 33%; margin: 1 0; }
    #devices Static { height: auto; }
    #models { height: 1fr; }
    #filter { display: none; height: 3; }
    #why { height: 1; }
    #events { height: auto; max-height: 9; }
    .box { width: 90%; max-width: 92; height: auto; max-height: 90%; padding: 1 2; border: round $primary;
        background: $surface; }
    .box Static { height: auto; }
    Question, Help { align: center middle; }
    Question .box { max-width: 64; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        ("s", "act('start')", "start"),
        ("x", "sure('stop')", "stop"),
        ("d", "drain", "drain"),
        ("p", "pin", "pin"),
        ("l", "log", "log"),
        ("slash", "filter", "filter"),
        ("o", "order", "order"),
        ("e", "events", "events"),
        ("question_mark", "help", "help"),
        Binding("escape", "all", "all", show=False),
        ("q", "quit", "quit"),
    ]

    def __init__(self, remote: Remote, interval_s: float, what: tuple[str, str]) -> None:
        super().__init__()
        self.link = Link(remote)
        self.frame: Frame | None = None
        self._interval_s = interval_s
        self._pattern, self._order = what
        self.look = bars.signs(sys.stdout.encoding)
        self._away_since = 0.0
        self._wants_events = True

    def compose(self) -> ComposeResult:
        """From above: the sidecar, devices, models, why the chosen one is not ready, events."""
        yield Static(id="head")
        yield Static(id="away")
        with VerticalScroll(id="devices", can_focus=False):
            yield Static(id="bars")
        yield Models(id="models")
        yield Input(self._pattern, placeholder="in the name or the state", id="filter")
        yield Static(id="why")
        yield Static(id="events")
        yield Footer()

    async def on_mount(self) -> None:
        """Begin to look."""
        self._main.query_one(Models).focus()
        self.run_worker(self._follow(), exit_on_error=True)

    async def on_unmount(self) -> None:
        """Break off what is under way."""
        await self.link.close()

    def on_resize(self) -> None:
        """There may be room for more, or for less."""
        self.show()

    @property
    def _main(self) -> Screen[object]:
        """The screen below all others."""
        return self.screen_stack[0]

    # --- looking ------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        while True:
            try:
                frame = await self.link.frame()
            except (UnreachableError, AnswerError) as error:
                frame, why = None, str(error)
            if not self._main.query("#away"):
                return  # the screen has gone meanwhile
            if frame is None:
                self._away(why)
            else:
                self.show_frame(frame)
            await asyncio.sleep(self._interval_s)

    def _away(self, why: str) -> None:
        self._away_since = self._away_since or time.monotonic()
        away = self._main.query_one("#away", Static)
        away.update(Text(f"{why}; asking again (for {time.monotonic() - self._away_since:.0f} s; below is how it was)"))
        away.display = True

    def show_frame(self, frame: Frame) -> None:
        if self._away_since or frame.restarted:
            self.notify("the sidecar has started anew" if frame.restarted else "the sidecar answers again")
        self._away_since = 0.0
        self._main.query_one("#away").display = False
        self.frame = frame
        self.show()

    def show(self) -> None:
        """Put what is known on the screen."""
        frame = self.frame
        if frame is None or not self.screen_stack:
            return
        models = rows.chosen(frame, self._pattern, self._order)
        width, height = self.size
        self._main.query_one("#head", Static).update(self._head(frame, len(models)))
        devices = Text("\n", no_wrap=True).join(bars.lines(frame.report.devices, width, self.look))
        if height >= HIGH:
            devices.append("\n").append_text(bars.legend(self.look))
        self._main.query_one("#bars", Static).update(devices)
        self._main.query_one(Models).show(frame, models, width)
        self.show_why()
        self._show_events(frame, width, height)

    @on(DataTable.RowHighlighted)
    def show_why(self) -> None:
        """Of the chosen model, if the table has no room for all of it."""
        if not self.screen_stack:
            return  # the screen has gone meanwhile
        model = self.chosen()
        why = rows.because(model) if model is not None else ""
        line = Text()
        if model is not None and cell_len(why) > self._main.query_one(Models).room("BECAUSE"):
            line.append(f"{model.name}: ", "bold").append(why)
        line.truncate(self.size.width, overflow="ellipsis")
        pane = self._main.query_one("#why", Static)
        pane.display = self.size.height >= LOW
        pane.update(line)

    def _head(self, frame: Frame, shown: int) -> Text:
        notes = [f"by {self._order}"]
        if self._pattern:
            notes.append(f'with "{self._pattern}" (Esc: all)')
        return head(frame, self.link.url, shown, notes)

    def _show_events(self, frame: Frame, width: int, height: int) -> None:
        pane = self._main.query_one("#events", Static)
        room = 8 if height >= HIGH else 3
        pane.display = self._wants_events and height >= LOW and bool(frame.events)
        lines = [event_line(event) for event in frame.events[-room:]]
        for line in lines:
            line.truncate(width, overflow="ellipsis")
        pane.update(Text("\n").join(lines))

    # --- keys ---------------------------------------------------------------------------------------------------

    def chosen(self) -> TopModel | None:
        """The model that the cursor is on."""
        name = self._main.query_one(Models).chosen
        models = self.frame.report.models if self.frame is not None else ()
        return next((model for model in models if model.name == name), None)

    def action_act(self, verb: str) -> None:
        """Do it to the chosen model, and tell what came of it; the screen goes on meanwhile."""
        model = self.chosen()
        if model is not None:
            self.notify(f"{model.name}: {verb} ...")
            self.run_worker(self._act(model.name, verb))

    def action_sure(self, verb: str) -> None:
        """The same, if it is really meant."""
        model = self.chosen()
        if model is None:
            return
        busy = f", which has {model.in_flight} requests in flight" if model.in_flight else ""

        def answered(sure: bool | None) -> None:
            if sure:
                self.run_worker(self._act(model.name, verb))

        self.push_screen(Question(f"{verb} {model.name}{busy}?"), answered)

    def action_drain(self) -> None:
        """Out of service, or back."""
        model = self.chosen()
        if model is not None and model.drained:
            self.action_act("undrain")
        else:
            self.action_sure("drain")

    def action_pin(self) -> None:
        """Pinned, or no more."""
        model = self.chosen()
        if model is not None:
            self.action_act("unpin" if model.pinned else "pin")

    def action_log(self) -> None:
        """What its server says."""
        model = self.chosen()
        if model is not None:
            self.push_screen(Log(self.link, model.name, self._interval_s))

    def action_order(self) -> None:
        """The next of the orders."""
        orders = list(rows.SORTS)
        self._order = orders[(orders.index(self._order) + 1) % len(orders)]
        self.show()

    def action_events(self) -> None:
        """With events, or with more room for models."""
        self._wants_events = not self._wants_events
        self.show()

    def action_help(self) -> None:
        """The keys."""
        self.push_screen(Help())

    def action_filter(self) -> None:
        """Ask for a pattern."""
        field = self._main.query_one("#filter", Input)
        field.display = True
        field.focus()

    def action_all(self) -> None:
        """Every model again."""
        self._main.query_one("#filter", Input).value = ""
        self._close_filter()

    @on(Input.Changed, "#filter")
    def _typed(self, event: Input.Changed) -> None:
        self._pattern = event.value
        self.show()

    @on(Input.Submitted, "#filter")
    def _close_filter(self) -> None:
        self._main.query_one("#filter").display = False
        self._main.query_one(Models).focus()

    @on(DataTable.RowSelected)
    def _entered(self) -> None:
        self.action_log()

    async def _act(self, model: str, verb: str) -> None:
        try:
            said = await self.link.act(model, verb)
        except (UnreachableError, AnswerError) as error:
            self.notify(str(error), title=f"{verb} {model}", severity="error", timeout=15)
        else:
            self.notify(said)
