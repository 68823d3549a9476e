"""Finds the few top-level members of a JSON object that matter, while the object comes in pieces (RFC 8259).

Only as much of the grammar is checked as makes their places certain: brackets, strings, and all of the top level. What
else is wrong in a nested value is for the server to judge. Nothing is decoded or kept, and long strings cost a search.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from sidecar.surfaces.dataplane.errors import ApiError

MOST_KEYS = 1000
MOST_TOKEN_BYTES = 4 * 1024  # a key, or a number, that is cut in two
MODEL = b"model"
MOST_DEPTH = 900  # of brackets; the decoder of whole bodies knows a limit of about this size

Place = tuple[int, int]  # where something starts and ends, counted from the beginning of the body

# The first quote that no backslash stands before is the end; only where one does, escapes are looked at one by one.
# Possessive throughout, so that what is cut off is found to be so in linear time.
_STRING = rb'"(?:[^"]*+(?<!\\)"|[^"\\]*+(?:\\.[^"\\]*+)*+")'
_BARE = rb'[^"\[\]{}]*+'


def _run(*parts: bytes) -> bytes:
    """Any number of those parts, with anything but strings and brackets between them."""
    return _BARE + rb"(?:(?:" + b"|".join(parts) + rb")" + _BARE + rb")*+"


def _bracketed(run: bytes) -> bytes:
    return rb"\{" + run + rb"\}|\[" + run + rb"\]"


_FLAT = _bracketed(_run(_STRING))
_skip_nested = re.compile(_run(_STRING, _bracketed(_run(_STRING, _FLAT))), re.DOTALL).match  # two levels at once
_in_string = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL).match
_key = re.compile(_STRING, re.DOTALL).match
_space = re.compile(rb"[ \t\n\r]*+").match
_word = re.compile(rb'[^ \t\n\r,:"\[\]{}]*+').match
_is_scalar = re.compile(rb"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?|true|false|null").fullmatch
_closers = {ord("{"): ord("}"), ord("["): ord("]")}


class ObjectScan:
    """Takes the pieces of one object. places: of the values of the wanted keys, each as often as it stands there.

    If the model is wanted, the same key in other case is refused: servers written in Go would take it for the model.
    """

    def __init__(self, wanted: frozenset[bytes]) -> None:
        self.places: dict[bytes, list[Place]] = {}
        self._wanted = wanted
        self._step: Callable[[ObjectScan, bytes, int], int] = ObjectScan._open  # unbound: no cycle of references
        self._rest = b""
        self._offset = 0  # of the rest, in the body
        self._key = b""  # wanted, and its value has begun
        self._start = 0
        self._keys = 0
        self._escaped = False  # the last byte so far was a backslash in a string
        self._open_brackets = bytearray()  # what closes them, the innermost last

    def feed(self, data: bytes) -> bytes:
        """The next bytes that are certain, now that these have come. Raises ApiError if it cannot be a JSON object."""
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        while at < end:
            reached = self._step(self, data, at)
            if reached == at:
                break  # more has to come
            at = reached
        self._offset += at
        self._rest = data[at:] if at < end else b""
        if len(self._rest) > MOST_TOKEN_BYTES:
            raise _invalid("a key or a number is too long")
        return data[:at] if at < end else data

    def finish(self) -> None:
        """Nothing more comes. Raises ApiError if the object is not complete."""
        if self._step is not ObjectScan._after_all:
            raise _invalid("it is cut off")

    # Steps: each takes what it can from `at` on, and gives back how far it came.

    def _open(self, data: bytes, at: int) -> int:
        at = _end_of_space(data, at)
        return self._expect(data, at, b"{", ObjectScan._first_key)

    def _first_key(self, data: bytes, at: int) -> int:
        at = _end_of_space(data, at)
        if data.startswith(b"}", at):
            self._step = ObjectScan._after_all
            return at + 1
        return self._next_key(data, at)

    def _next_key(self, data: bytes, at: int) -> int:
        at = _end_of_space(data, at)
        found = _key(data, at)
        if found is None:
            if at < len(data) and data[at] != 0x22:
                raise _invalid("a key is missing")
            return at
        self._keys += 1
        if self._keys > MOST_KEYS:
            raise _invalid(f"it has more than {MOST_KEYS} keys")
        key = _decoded(found.group())
        if key.lower() == MODEL != key and MODEL in self._wanted:
            message = f'the body has a key "{key.decode()}", which some servers take for the model'
            raise ApiError(400, "invalid_json", message, param="model")
        self._key = key if key in self._wanted else b""
        self._step = ObjectScan._colon
        return found.end()

    def _colon(self, data: bytes, at: int) -> int:
        return self._expect(data, _end_of_space(data, at), b":", ObjectScan._value)

    def _value(self, data: bytes, at: int) -> int:
        at = _end_of_space(data, at)
        if at == len(data):
            return at
        self._start = self._offset + at
        first = data[at]
        if first == 0x22:
            self._step = ObjectScan._string
            return at + 1
        if first in _closers:
            self._step = ObjectScan._nested
            self._open_brackets.append(_closers[first])
            return at + 1
        return self._scalar(data, at)

    def _scalar(self, data: bytes, at: int) -> int:
        found = _word(data, at)
        if found is None or (found.end() == len(data) and found.end() > at):
            return at
        if not _is_scalar(found.group()):
            raise _invalid("a value is missing")
        self._value_ends(found.end())
        return found.end()

    def _string(self, data: bytes, at: int) -> int:
        if self._escaped:
            self._escaped = False
            return at + 1
        quote = data.find(b'"', at)
        if quote > at and data[quote - 1] == 0x5C:
            quote = _end_of_string(data, at)
        if quote < 0 or quote == len(data):
            self._escaped = data.endswith(b"\\") and _end_of_string(data, at) < len(data)
            return len(data)
        if data[quote] == 0x5C:  # the last byte
            self._escaped = True
            return len(data)
        if self._open_brackets:
            self._step = ObjectScan._nested
        else:
            self._value_ends(quote + 1)
        return quote + 1

    def _nested(self, data: bytes, at: int) -> int:
        found = _skip_nested(data, at)
        at = found.end() if found else at
        if at == len(data):
            return at
        byte = data[at]
        if byte == 0x22:
            self._step = ObjectScan._string  # it goes on in the next piece
        elif byte in _closers:
            self._open_brackets.append(_closers[byte])
            if len(self._open_brackets) > MOST_DEPTH:
                raise _invalid("its values are nested too deep")
        elif byte != self._open_brackets.pop():
            raise _invalid("its brackets do not match")
        elif not self._open_brackets:
            self._value_ends(at + 1)
        return at + 1

    def _after_value(self, data: bytes, at: int) -> int:
        at = _end_of_space(data, at)
        if data.startswith(b",", at):
            self._step = ObjectScan._next_key
            return at + 1
        return self._expect(data, at, b"}", ObjectScan._after_all)

    def _after_all(self, data: bytes, at: int) -> int:
        at = _end_of_space(data, at)
        if at < len(data):
            raise _invalid("something follows it")
        return at

    def _expect(self, data: bytes, at: int, what: bytes, then: Callable[[ObjectScan, bytes, int], int]) -> int:
        if at == len(data):
            return at
        if not data.startswith(what, at):
            raise _invalid(f'"{what.decode()}" is missing')
        self._step = then
        return at + 1

    def _value_ends(self, at: int) -> None:
        self._step = ObjectScan._after_value
        if self._key:
            self.places.setdefault(self._key, []).append((self._start, self._offset + at))


def _end_of_space(data: bytes, at: int) -> int:
    found = _space(data, at)
    return found.end() if found else at


def _end_of_string(data: bytes, at: int) -> int:
    found = _in_string(data, at)
    return found.end() if found else at


def _decoded(key: bytes) -> bytes:
    if b"\\" not in key:
        return key[1:-1]
    try:
        return msgspec.json.decode(key, type=str).encode()
    except UnicodeDecodeError:
        return b""  # not to be read by anybody, so it is none of those that matter
    except msgspec.DecodeError as error:
        raise _invalid(str(error)) from error


def _invalid(why: str) -> ApiError:
    return ApiError(400, "invalid_json", f"the body is no JSON object: {why}")
