"""Differential fuzzing: made-up messages through a real sidecar, both ways, with h11 as the judge of what came out.

    python -m tests.conformance.fuzz --messages 100000 --seed 7

prints what it found, as entries for seeds.json, and ends with 1 if that is anything.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Literal

import msgspec

from tests.conformance.compare import wrong_with_good_requests, wrong_with_requests, wrong_with_response
from tests.conformance.generate import Made, made_request, made_response
from tests.conformance.judge import final, requests, responses
from tests.conformance.upstream import Exchange
from tests.conformance.world import Client, World, answer, post, world

SEEDS = Path(__file__).with_name("seeds.json")
AGAIN = 2  # times that what is good is sent once more
ROUNDS = 2  # without any news, after which nothing more is expected


class Seed(msgspec.Struct, frozen=True):
    """A message that taught something. data: its bytes, as Latin-1. why: what it taught."""

    kind: Literal["request", "response"]
    data: str
    good: bool = False
    why: str = ""

    @property
    def made(self) -> Made:
        """The message."""
        return Made(self.data.encode("latin-1"), self.good)


def kept_seeds() -> list[Seed]:
    """What past runs have found."""
    return msgspec.json.decode(SEEDS.read_bytes(), type=list[Seed])


def made_up(number: int) -> Seed:
    """The message of a number."""
    random = Random(number)  # noqa: S311 - it has to be the same every time
    if random.random() < 0.6:
        made = made_request(random)
        return Seed("request", made.data.decode("latin-1"), made.good)
    made = made_response(random)
    return Seed("response", made.data.decode("latin-1"), made.good)


def try_out(here: World, seed: Seed) -> str:
    """Send it, and say what is wrong with what came out; "" if nothing is."""
    here.upstream.forget()
    client = here.connect()
    try:
        return try_request(here, client, seed.made) if seed.kind == "request" else try_response(here, client, seed.made)
    except TimeoutError:
        return f"nothing more came after {client.received!r}"
    finally:
        here.leave(client)


def try_request(here: World, client: Client, made: Made) -> str:
    """A client's bytes, and what of them reaches a server that answers everything."""
    here.upstream.answer = answer()
    client.send(made.data)
    if made.good:
        _read_all(client, made.data)
    else:
        _read_what_comes(here, client)
    exchanges, errors = here.quiet(), list(here.upstream.errors)
    wrong = wrong_with_requests(made.data, exchanges, errors)
    if made.good and not wrong:
        wrong = wrong_with_good_requests(made.data, exchanges, client.received)
    return wrong or _try_again(here, client, made, len(exchanges))


def _try_again(here: World, client: Client, made: Made, seen: int) -> str:
    """The same on the same connection, which then knows the head of what was good."""
    for _ in range(AGAIN):
        if not made.good or client.ended or b"\r\nconnection: close\r\n" in client.received:
            break
        before = client.received
        client.received = b""
        client.send(made.data)
        _read_all(client, made.data)
        exchanges = here.quiet()
        new, seen = exchanges[seen:], len(exchanges)
        wrong = wrong_with_requests(made.data, new, list(here.upstream.errors))
        wrong = wrong or wrong_with_good_requests(made.data, new, client.received)
        if wrong:
            return f"the same again, after {before!r}: {wrong}"
    return ""


def try_response(here: World, client: Client, made: Made) -> str:
    """A server's bytes, and what of them its client gets."""
    here.upstream.answer = None
    client.send(post())
    asked = here.upstream.take()
    half = len(made.data) // 2 if made.data.count(b"\n") % 4 == 0 else 0
    with contextlib.suppress(OSError):  # the sidecar has seen enough
        if half:
            asked.send(made.data[:half])
            here.barrier()
        asked.send(made.data[half:])
    if made.good and _is_settled(made.data):
        wrong = _answer_again(here, client, made, asked)
        if wrong:
            return wrong
    else:
        asked.close()
    while not client.ended and not _is_settled(client.received):
        client.receive()
    return wrong_with_response(made.data, client.received, reset=client.was_reset, good=made.good)


def _answer_again(here: World, client: Client, made: Made, asked: Exchange) -> str:
    """The same on the same connection, if it is kept, which then knows the head."""
    for _ in range(AGAIN):
        while not client.ended and not _is_settled(client.received):
            client.receive()
        wrong = wrong_with_response(made.data, client.received, reset=client.was_reset, good=True)
        if wrong or client.ended:
            return wrong
        client.received = b""
        client.send(post())
        other = here.upstream.take()
        other.send(made.data)
    return ""


def _is_settled(received: bytes) -> bool:
    """Whether there is a whole answer, or something that will never be one."""
    judged = responses(final(received), eof=False)
    return judged.error not in ("no end", "no response")


def _read_all(client: Client, sent: bytes) -> None:
    """The answers to good requests, and the end of the connection where there has to be one."""
    judged = requests(sent)
    methods = [one.method for one in judged.messages]
    while not client.ended:
        answers = responses(client.received, methods, eof=False).messages
        if len(answers) == len(methods) and answers[-1].whole and not judged.closed:
            return
        client.receive()


def _read_what_comes(here: World, client: Client) -> None:
    """Until nothing comes any more."""
    client.socket.setblocking(False)
    unchanged, before = 0, (0, 0)
    while unchanged < ROUNDS and not client.ended:
        seen = len(here.quiet())
        with contextlib.suppress(BlockingIOError):
            client.receive()
        now = (seen, len(client.received))
        unchanged = unchanged + 1 if now == before else 0
        before = now


def findings(here: World, first: int, count: int, tally: Counter[str]) -> Iterator[Seed]:
    """What is wrong with the messages of some numbers. tally: how many of which kind were tried."""
    for number in range(first, first + count):
        seed = made_up(number)
        tally[f"{seed.kind}s, {'good' if seed.good else 'perhaps wrong'}"] += 1
        if why := try_out(here, seed):
            yield msgspec.structs.replace(seed, why=f"{number}: {why}")


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0, help="the first message's number")
    parser.add_argument("--most", type=int, default=20, help="findings after which it ends")
    arguments = parser.parse_args()
    tally: Counter[str] = Counter()
    began = time.monotonic()
    found = 0
    with tempfile.TemporaryDirectory() as folder, world(Path(folder), "23000-23010") as here:
        for seed in findings(here, arguments.seed, arguments.messages, tally):
            print(msgspec.json.encode(seed).decode(), flush=True)
            found += 1
            if found == arguments.most:
                break
    print(
        f"{tally.total()} messages in {time.monotonic() - began:.0f} s, {found} findings; {dict(tally)}",
        file=sys.stderr,
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
