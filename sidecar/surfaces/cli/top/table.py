"""The table of models on the screen. Only what has changed is written, so that hundreds of models cost little."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.widgets import DataTable

from sidecar.surfaces.cli.top import rows
from sidecar.surfaces.cli.top.frame import Frame
from sidecar.surfaces.cli.top.once import style
from sidecar.surfaces.cli.top.rows import Column
from sidecar.surfaces.top_api import TopModel

_PADDING = rows.GAP // 2  # on both sides of a cell


class Models(DataTable[Text]):
    """chosen: the name of the model that the cursor is on; it stays on it when the order changes."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("home,g", "scroll_top", "first", show=False),
        Binding("end,G", "scroll_bottom", "last", show=False),
    ]

    def __init__(self, *, id: str) -> None:  # noqa: A002 - textual's word
        super().__init__(id=id, cursor_type="row", cell_padding=_PADDING)
        self._columns: tuple[tuple[str, int], ...] = ()
        self._names: list[str] = []
        self._cells: dict[str, tuple[tuple[str, str], ...]] = {}

    @property
    def chosen(self) -> str:
        """ "" if there is none."""
        return self._names[self.cursor_row] if 0 <= self.cursor_row < len(self._names) else ""

    def room(self, title: str) -> int:
        """The characters of a column; 0 = there is no room for it."""
        return dict(self._columns).get(title, 0)

    def show(self, frame: Frame, models: list[TopModel], width: int) -> None:
        """These models, in this order, in so many characters."""
        longest = max((len(model.name) for model in models), default=0)
        kept = rows.columns(width - 2 * _PADDING, longest)
        titles = (column.title for column in kept)
        sizes = tuple(zip(titles, rows.sizes(kept, width - 2 * _PADDING, longest), strict=True))
        cells = {
            model.name: tuple(
                (column.cell(model, frame.rates_of(model.name)), _style(column, model)) for column in kept
            )
            for model in models
        }
        if sizes != self._columns or list(cells) != self._names:
            self._begin_anew(kept, sizes, cells)
        else:
            self._change(kept, cells)
        self._cells = cells

    def _begin_anew(
        self,
        kept: tuple[Column, ...],
        sizes: tuple[tuple[str, int], ...],
        cells: dict[str, tuple[tuple[str, str], ...]],
    ) -> None:
        chosen, scroll = self.chosen, self.scroll_offset
        self.clear(columns=True)
        for column, (title, width) in zip(kept, sizes, strict=True):
            self.add_column(Text(title, justify="right" if column.right else "left"), key=title, width=width)
        for name, found in cells.items():
            self.add_row(*(_cell(column, *cell) for column, cell in zip(kept, found, strict=True)), key=name)
        self._columns, self._names = sizes, list(cells)
        if chosen in cells:
            self.move_cursor(row=self._names.index(chosen), scroll=False)
            self.scroll_to(y=scroll.y, animate=False)

    def _change(self, kept: tuple[Column, ...], cells: dict[str, tuple[tuple[str, str], ...]]) -> None:
        for name, found in cells.items():
            before = self._cells[name]
            if before == found:
                continue
            for column, old, new in zip(kept, before, found, strict=True):
                if old != new:
                    self.update_cell(name, column.title, _cell(column, *new))


def _cell(column: Column, text: str, look: str) -> Text:
    return Text(text, look, justify="right" if column.right else "left", no_wrap=True, overflow="ellipsis")


def _style(column: Column, model: TopModel) -> str:
    return style(model.state) if column.title == "STATE" else ""
