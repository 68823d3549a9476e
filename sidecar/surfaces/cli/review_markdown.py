"""A review in GitHub-flavoured Markdown, as a comment on a pull request: what manifests say cannot break out of it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from sidecar.core.review import Review
from sidecar.surfaces.cli.review_tables import Code, Sheet, headline, notes, sheets

MOST_CHARS = 60_000  # GitHub takes 65,536 characters
MOST_ROWS = 200
MARKER = "<!-- sidecar diff -->"  # by which a workflow finds the comment again

_CLOSED = "\n\n</details>"
_MORE = "\n\n*There is more, which `sidecar diff` shows in full.*\n"
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~@-])")


def markdown(review: Review, where: str, most_chars: int = MOST_CHARS) -> str:
    """The comment. where: the machine that it is about, "" if it is about none."""
    text = "\n".join(_blocks(review, where))
    if len(text) <= most_chars:
        return text
    cut = text[: text.rindex("\n", 0, most_chars - len(_CLOSED) - len(_MORE))]
    closed = _CLOSED if cut.count("<details>") > cut.count("</details>") else ""
    return f"{cut}{closed}{_MORE}"


def _blocks(review: Review, where: str) -> Iterator[str]:
    machine = f" on {code(where)}" if where else ""
    yield MARKER
    yield f"### sidecar: {code(review.before)} → {code(review.after)}{machine}\n"
    yield f"**{prose(headline(review))}**\n"
    for sheet in sheets(review):
        yield from _folded(sheet) if sheet.folded else _open(sheet)
    for note in notes(review):
        yield f"{prose(note)}\n"


def _open(sheet: Sheet) -> Iterator[str]:
    yield f"#### {sheet.title}\n"
    yield from _table(sheet)


def _folded(sheet: Sheet) -> Iterator[str]:
    yield f"<details><summary>{sheet.title} ({len(sheet.rows)})</summary>\n"
    yield from _table(sheet)
    yield "</details>\n"


def _table(sheet: Sheet) -> Iterator[str]:
    yield "| " + " | ".join(sheet.columns) + " |"
    yield "|" + "---|" * len(sheet.columns)
    for row in sheet.rows[:MOST_ROWS]:
        yield "| " + " | ".join(code(cell) if isinstance(cell, Code) else prose(cell) for cell in row) + " |"
    if len(sheet.rows) > MOST_ROWS:
        yield f"\n*and {len(sheet.rows) - MOST_ROWS} more*"
    yield ""


def prose(text: str) -> str:
    """Text of which nothing is taken for markup, a mention or a line end."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split())).replace("\\@", "@\u200b").replace("\\-", "-")


def code(text: str) -> str:
    """A name or a value, in a table too."""
    if not text:
        return ""
    plain = " ".join(text.split()).replace("|", "\\|")
    longest = max(map(len, re.findall("`+", plain)), default=0)
    fence = "`" * (longest + 1)
    space = " " if longest else ""
    return f"{fence}{space}{plain}{space}{fence}"
