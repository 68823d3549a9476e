"""Which models a caller may use: shell-style patterns, as both `keys` and `jwt` have them."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from plugin_sdk import Reject, Request


def check_model(request: Request, patterns: Sequence[str], who: str) -> None:
    """Raise Reject(403) unless the model, by its name or the alias that was asked for, matches one of the patterns.

    Requests for no model in particular pass.
    """
    asked = [name for name in (request.model, request.requested_model) if name]
    if asked and not any(fnmatchcase(name, pattern) for name in asked for pattern in patterns):
        may = f"only {', '.join(patterns)}" if patterns else "none"
        raise Reject(
            403, f'"{who}" may not use the model "{asked[-1][:200]}": of the models, {may}', code="model_not_allowed"
        )
