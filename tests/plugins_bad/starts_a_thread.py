"""Begins something when it is imported."""

from __future__ import annotations

import sys
import threading

from plugin_sdk import Outcome, Stats

if "pytest" not in sys.modules:  # a test must not be left with it
    threading.Thread(target=threading.Event().wait, name="too-early", daemon=True).start()


class StartsAThread(Stats):
    """Its thread is there before any plugin is."""

    async def record(self, outcome: Outcome) -> None:
        pass
