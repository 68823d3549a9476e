"""How `sidecar events` reads a stream and writes lines."""

from __future__ import annotations

from sidecar.control.events import Event
from sidecar.surfaces.cli.events import row
from sidecar.surfaces.cli.following import Frame, frames


def test_frames_are_read_whole_and_signs_of_life_have_no_data() -> None:
    stream = ': alive\nid: 7\n\nid: 8\ndata: {"a": 1}\n\nevent: gap\ndata: {}\n\n\nid: 9\ndata: cut off'
    assert list(frames(stream.split("\n"))) == [
        Frame(id="7", name="", data=""),
        Frame(id="8", name="", data='{"a": 1}'),
        Frame(id="", name="gap", data="{}"),
    ]


def test_a_row_stays_on_its_line_and_keeps_the_terminal_whole() -> None:
    event = Event(seq=1, at=0.0, type="Exited", model="m", reason="Crashed", message="bad\n\x1b[31mred\x07\u202e end")
    time, *cells = row(event)
    assert len(time) == len("1970-01-01 00:00:00")
    assert cells == ["Exited", "m", "Crashed", "bad  [31mred   end"]


def test_a_row_tells_how_often() -> None:
    event = Event(seq=1, at=60.0, type="Exited", count=12, first_at=0.0, message="code 1")
    assert row(event)[2] == "-"
    assert row(event)[-1] == f"code 1 (12 times since {row(Event(seq=1, at=0.0, type='E'))[0]})"
