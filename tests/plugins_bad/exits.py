"""Ends the program that imports it, unless that is a test."""

from __future__ import annotations

import sys

from plugin_sdk import Outcome, Stats

if "pytest" not in sys.modules:
    sys.exit(3)


class Exits(Stats):
    """Nobody ever sees it."""

    async def record(self, outcome: Outcome) -> None:
        pass
