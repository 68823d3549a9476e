"""How commands follow a stream of the sidecar's: over restarts of it, and until nobody reads any more."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import Callable, Iterable, Iterator

import click
import msgspec

from sidecar.surfaces.cli.client import Remote, UnreachableError
from sidecar.surfaces.cli.output import UNREACHABLE, fail
from sidecar.surfaces.report import KEEP_ALIVE_S

RETRY_S = 1.0


class Frame(msgspec.Struct, frozen=True):
    """One server-sent event. id: the place to go on from. data: "" for a sign of life."""

    id: str
    name: str
    data: str


def frames(lines: Iterable[str]) -> Iterator[Frame]:
    """Read a stream of server-sent events (WHATWG HTML, 9.2.6), as far as a sidecar sends them."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        elif fields:
            yield Frame(id=fields.get("id", ""), name=fields.get("event", ""), data=fields.get("data", ""))
            fields = {}


def follow(remote: Remote, path: str, asked: dict[str, str], tell: Callable[[Frame], None]) -> None:
    """Hand over each frame, for ever. Exits if no sidecar answers at all, or if it says no.

    After a break it goes on from the last frame with an id. Raises BrokenPipeError if nobody reads any more.
    """
    after, reached, away = "", False, False
    while True:
        try:
            going_on = {**asked, "follow": "true", **({"after": after} if after else {})}
            for frame in frames(remote.lines(path, going_on, 3 * KEEP_ALIVE_S)):
                reached, away, after = True, False, frame.id or after
                if not frame.data and _nobody_reads():
                    raise BrokenPipeError
                tell(frame)
        except UnreachableError as error:
            if not reached:
                fail(str(error), UNREACHABLE)
            if not away:
                click.echo(f"{error}; waiting for it", err=True)
            away = True
        time.sleep(RETRY_S)


@contextlib.contextmanager
def until_nobody_reads() -> Iterator[None]:
    """End well when the reader of our output goes away, or a person has seen enough."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain when it flushes
    except KeyboardInterrupt:
        pass  # which is how one stops to follow


def _nobody_reads() -> bool:
    """Whether stdout is a pipe whose reader has gone. Else only the next event would tell, and that may be long off."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(happened & select.POLLERR for _, happened in poll.poll(0))
