"""A program that serves nothing: it says what is asked of it, forks, ignores signals, and ends in its own way.

Prints `child PID` for each process that it forks, and `ready` when it has done everything but end.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys


def options() -> argparse.Namespace:
    """The flags, which are obeyed in this order."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--say", action="append", default=[], help="a line on stderr; may be repeated")
    parser.add_argument("--show", action="append", default=[], help="print NAME=VALUE of an environment variable")
    parser.add_argument("--ignore-term", action="store_true", help="children inherit it")
    parser.add_argument("--child", action="store_true", help="fork a child")
    parser.add_argument("--daemon", action="store_true", help="fork a child that leaves the session")
    parser.add_argument("--kill", help="end by this signal, such as SIGSEGV")
    parser.add_argument("--exit", type=int, help="end with this code")
    parser.add_argument("rest", nargs="*", help="printed as they came")
    return parser.parse_args()


def fork(*, own_session: bool) -> None:
    """A child that does nothing until it is killed."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        if own_session:
            os.setsid()
        os.close(reader)
        os.close(writer)
        while True:
            signal.pause()
    os.close(writer)
    os.read(reader, 1)  # ends when the child has left the session
    os.close(reader)
    print("child", pid, flush=True)


def main() -> None:
    """Do as the flags say, then wait."""
    flags = options()
    for line in flags.say:
        print(line, file=sys.stderr, flush=True)
    for name in flags.show:
        print(f"{name}={os.environ.get(name)}", flush=True)
    for word in flags.rest:
        print("word", word, flush=True)
    if flags.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if flags.child:
        fork(own_session=False)
    if flags.daemon:
        fork(own_session=True)
    print("ready", flush=True)
    if flags.kill:
        os.kill(os.getpid(), signal.Signals[flags.kill])
    if flags.exit is not None:
        sys.exit(flags.exit)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
