"""Screens over the main one of `sidecar top`: a question, the keys, and what a model's server says."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import ClassVar

from rich.console import Group
from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Footer, RichLog, Static

from sidecar.core.names import printable
from sidecar.surfaces.cli.client import AnswerError, UnreachableError
from sidecar.surfaces.cli.top.link import Link

LOG_LINES_MOST = 5000

KEYS = (
    ("↑ ↓", "choose a model"),
    ("s", "start it"),
    ("x", "stop it: what is in flight finishes, the next request starts it again"),
    ("d", "drain it, or put it back into service: drained, it refuses what comes"),
    ("p", "pin it, or take that back: pinned, it is neither evicted nor stopped for being idle"),
    ("l", "what its server says"),
    ("/", "only models with this in their name or state; * and ? may stand; Esc shows all again"),
    ("o", "another order"),
    ("e", "events, or more models instead"),
    ("q", "quit"),
)
NOTES = (
    "Rates are taken over the last 10 s; requests and tokens count when they end.",
    "What is drained or pinned here stays so until taken back, or until the sidecar ends.",
)


class Question(ModalScreen[bool]):
    """Whether it is really meant."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("y", "answer(True)", "yes"),
        ("n", "answer(False)", "no"),
        ("escape", "answer(False)", "no"),
    ]

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        with Vertical(classes="box"):
            yield Static(Text(self._text))
            yield Static(Text("y yes   n no", "bold"))

    def action_answer(self, answer: bool) -> None:
        """Say so."""
        self.dismiss(answer)


class Help(ModalScreen[None]):
    """The keys."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape,question_mark,q", "leave", "back")]

    def compose(self) -> ComposeResult:
        keys = Table.grid(padding=(0, 2, 0, 0))
        keys.add_column(justify="right", style="bold", no_wrap=True)
        for key, meaning in KEYS:
            keys.add_row(key, meaning)
        with VerticalScroll(classes="box"):
            yield Static(Group(keys, Text(), *map(Text, NOTES)))

    def action_leave(self) -> None:
        """Back to the models."""
        self.dismiss()


class Log(ModalScreen[None]):
    """What a model's server says, as it comes."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape,l,q", "leave", "back")]

    def __init__(self, link: Link, model: str, interval_s: float) -> None:
        super().__init__()
        self._link = link
        self._model = model
        self._interval_s = interval_s
        self._told = ""  # what was said last about why there is nothing

    def compose(self) -> ComposeResult:
        yield Static(Text(f"{self._model}: what its server says", "bold"), id="head")
        yield RichLog(max_lines=LOG_LINES_MOST, wrap=True, id="log")
        yield Footer()

    def on_mount(self) -> None:
        """Begin to ask."""
        self.run_worker(self._follow(), exit_on_error=True)

    def action_leave(self) -> None:
        """Back to the models."""
        self.dismiss()

    async def _follow(self) -> None:
        after = ""
        while True:
            try:
                report = await self._link.log(self._model, after)
            except UnreachableError as error:
                self._say(f"{error}; waiting for it")
            except AnswerError as error:
                self._say(f"there is nothing to show: {error}")
            else:
                if not after and not report.lines:
                    self._say("it has said nothing yet")
                after = report.next
                if report.gone:
                    self._say("lines are missing here")
                for line in report.lines:
                    self._write(line.at, line.stream, line.text)
                self._told = "" if report.lines else self._told
            await asyncio.sleep(self._interval_s)

    def _write(self, at: float, stream: str, text: str) -> None:
        when = datetime.fromtimestamp(at).astimezone().strftime("%H:%M:%S")
        line = Text(f"{when} ", "dim").append(printable(text), "default not dim" if stream == "err" else "cyan not dim")
        self.query_one(RichLog).write(line)

    def _say(self, text: str) -> None:
        """Once, however often it is so."""
        if text != self._told:
            self.query_one(RichLog).write(Text(text, "yellow"))
        self._told = text
