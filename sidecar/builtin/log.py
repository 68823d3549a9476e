"""A line of log for each request."""

from __future__ import annotations

import logging
import re

from plugin_sdk import Outcome, Stats, inline

_PLAIN = re.compile(r"""[^\s"'=\\]*""")


class Log(Stats):
    """Write each outcome to the log `sidecar.plugins.NAME`, as key=value pairs."""

    @inline
    def record(self, outcome: Outcome) -> None:
        """One line: what was asked, by whom, how it ended, how long it took, and the tokens."""
        if not self.log.isEnabledFor(logging.INFO):
            return
        tokens = f"{outcome.usage.input_tokens}+{outcome.usage.output_tokens}" if outcome.usage else "-"
        first = f"{outcome.first_byte_s:.3f}" if outcome.first_byte_s is not None else "-"
        self.log.info(
            "path=%s model=%s variant=%s principal=%s end=%s status=%d code=%s cold=%s duration_s=%.3f "
            "first_byte_s=%s queue_s=%.3f tokens=%s trace_id=%s",
            *map(_word, (outcome.path, outcome.model or "-", outcome.variant or "-", outcome.principal or "-")),
            *(outcome.end.value, outcome.status, _word(outcome.code or "-"), outcome.cold, outcome.duration_s),
            *(first, outcome.queue_s, tokens, outcome.trace_id or "-"),
        )


def _word(text: str) -> str:
    """The text as it is; quoted where it could be taken for several words, pairs or lines."""
    return text if _PLAIN.fullmatch(text) and text.isprintable() else ascii(text)
