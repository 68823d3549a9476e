"""Finds personal data in text, also in text that is still coming. Knows nothing of requests.

A rule has two patterns: `find`, what to take out, and `begin`, what the beginning of it looks like. As long as the end
of a text looks like a beginning, it must not be given out. `begin` may be wider than it need be, which costs a little
patience; it must never be narrower. Both are bounded, and so is what is held back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import msgspec


class Rule(msgspec.Struct, frozen=True):
    """name: stands in place of what is found. check: what a pattern cannot say.

    reach: so many characters, from its first one on, tell whether something is a match, and where it ends.
    """

    name: str
    find: re.Pattern[str]
    begin: re.Pattern[str]
    reach: int
    check: Callable[[str], bool] | None = None

    def first(self, text: str, at: int) -> tuple[int, int] | None:
        """Where the first match from `at` on begins and ends."""
        while (found := self.find.search(text, at)) is not None:
            start = found.start()
            found = self.find.match(text, start, min(len(text), start + self.reach))
            end = found.end() if found and self.check is None else self._checked(text, start, found)
            if end:
                return start, end
            at = start + 1
        return None

    def _checked(self, text: str, start: int, found: re.Match[str] | None) -> int:
        """Where the longest one that begins here and passes the check ends; 0 if none does."""
        for end in range(found.end() if found else start, start, -1):
            inside_a_word = text[end - 1 : end + 1].isalnum() and end < len(text)
            if (
                not inside_a_word
                and self.find.fullmatch(text, start, end)
                and self.check
                and self.check(text[start:end])
            ):
                return end
        return 0


class Redacted(msgspec.Struct, frozen=True):
    """text: what may be given out. kinds: the names of the rules that took something out of it."""

    text: str
    kinds: tuple[str, ...] = ()


class Tail:
    """The end of a text that is still coming: what is held back of it."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self._before = ""  # the last character before what is held: some rules look back at it
        self._held = ""

    def feed(self, text: str, *, last: bool = False) -> Redacted:
        """What may be given out now that this has come. last: nothing follows, so all of it."""
        whole, at = self._before + self._held + text, len(self._before)
        out: list[str] = []
        kinds: list[str] = []
        keep = len(whole)
        while True:
            open_at = len(whole) if last else self._open_at(whole, at)
            first = min(self._matches(whole, at), key=lambda found: (found[0], -found[1]), default=None)
            if first is None or first[0] >= open_at:
                keep = open_at
                break
            start, end, kind = first
            out += [whole[at:start], f"[{kind}]"]
            kinds.append(kind)
            at = end
        out.append(whole[at:keep])
        self._before, self._held = whole[max(0, keep - 1) : keep], whole[keep:]
        return Redacted("".join(out), tuple(kinds))

    def _matches(self, text: str, at: int) -> Iterator[tuple[int, int, str]]:
        for rule in self._rules:
            if span := rule.first(text, at):
                yield (*span, rule.name)

    def _open_at(self, text: str, at: int) -> int:
        """Where the end of the text may be the beginning of something; its length if nowhere."""
        begun = (rule.begin.search(text, at) for rule in self._rules)
        return min((found.start() for found in begun if found), default=len(text))


def redacted(text: str, rules: Sequence[Rule]) -> Redacted:
    """A text that is whole."""
    return Tail(rules).feed(text, last=True)


def luhn(text: str) -> bool:
    """The check digit of card numbers (ISO/IEC 7812-1, annex B)."""
    digits = [int(char) for char in reversed(text) if char.isdigit()]
    return sum(sum(divmod(digit * (1 + place % 2), 10)) for place, digit in enumerate(digits)) % 10 == 0


def mod_97(text: str) -> bool:
    """The check digits of IBANs (ISO 13616-1, ISO/IEC 7064)."""
    packed = text.replace(" ", "")
    return int("".join(str(int(char, 36)) for char in packed[4:] + packed[:4])) % 97 == 1


def custom(name: str, pattern: str, reach: int) -> Rule:
    """A rule of the operator's own. Anything may be its beginning. Raises re.error, ValueError."""
    find = re.compile(pattern)
    if find.match(""):
        raise ValueError(f'the pattern "{name}" matches nothing at all, and so everywhere')
    return Rule(name, find, re.compile(rf"(?s:.{{1,{reach}}})\Z"), reach)


EMAIL = Rule(
    "email",
    re.compile(r"[\w.%+-]{1,64}@(?:[\w-]{1,63}\.){1,4}[\w-]{2,24}"),
    re.compile(r"[\w.%+-]{1,64}(?:@[\w.-]{0,280})?\Z"),
    reach=345,
)
PHONE = Rule(
    "phone",  # international, or as it is written in North America; other runs of digits are too often none
    re.compile(r"(?<!\w)(?:\+\(?\d(?:[ ().-]{0,2}\d){6,14}|\(?\d{3}\)?[ .-]{1,2}\d{3}[ .-]\d{4})(?!\d)", re.ASCII),
    re.compile(r"(?<!\w)[+(\d][\d ().-]{0,44}\Z", re.ASCII),
    reach=46,
)
CARD = Rule(
    "card",
    re.compile(r"(?<!\w)\d(?:[ -]?\d){12,18}", re.ASCII),
    re.compile(r"(?<!\w)\d[\d -]{0,36}\Z", re.ASCII),
    reach=37,
    check=luhn,
)
IBAN = Rule(
    "iban",
    re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?", re.ASCII),
    re.compile(r"(?<!\w)(?:[A-Z]|[A-Z]{2}\d?|[A-Z]{2}\d{2}[A-Z0-9 ]{0,40})\Z", re.ASCII),
    reach=44,
    check=mod_97,
)
RULES = {rule.name: rule for rule in (EMAIL, CARD, IBAN, PHONE)}
