"""A large request body that is passed on while it comes, once the model is known (promise 22: memory stays bounded).

What it gives is what `with_model` makes of the whole body, however it is cut. It reads on to the end: a second model
must be found before its last byte is passed on, so that the server never has such a body whole.
"""

from __future__ import annotations

import msgspec

from sidecar.surfaces.dataplane import forms
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.scan import ObjectScan, Place

_WANTED = frozenset({b"model", b"stream"})
_decode_name = msgspec.json.Decoder(str | None).decode


class Upload:
    """Takes the pieces of one body. most_bytes: how much of it may wait here until the model is known.

    known: the model is, or there is none in the whole body. streams: as far as could be told when it became known.
    length_change: of the body, by the new name.
    """

    def __init__(self, content_type: str, most_bytes: int) -> None:
        self.known = False
        self.model: str | None = None
        self.streams = False
        self.length_change = 0
        boundary = forms.boundary_of(content_type) if forms.may_be_form(content_type) else None
        self._is_form = boundary is not None
        self._scan = ObjectScan(_WANTED) if boundary is None else forms.FormScan(boundary, _WANTED)
        self._most_bytes = most_bytes
        self._came = 0
        self._waiting: list[bytes] = []
        self._place: Place = (0, 0)
        self._name: bytes | None = None

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises ApiError: then nothing more of it may be passed on, and never its end."""
        self._came += len(data)
        certain = self._scan.feed(data)
        if certain:
            self._waiting.append(certain)
        places = self._scan.places.get(b"model", ())
        if len(places) > 1:
            raise self._twice()
        if self.known:
            return
        if places:
            self._read(places[0])
        elif self._came > self._most_bytes:
            message = f"the body is larger than {self._most_bytes} bytes before it names a model"
            raise ApiError(413, "body_too_large", message, headers=((b"connection", b"close"),))

    def finish(self) -> None:
        """Nothing more comes. Raises ApiError if the body is not complete."""
        self._scan.finish()
        self.known = True

    def rename(self, name: str | None) -> None:
        """Give the model another name, None = its own again; before anything is taken, and only if it has one."""
        if name is None:
            self._name, self.length_change = None, 0
            return
        start, end = self._place
        self._name = name.encode() if self._is_form else msgspec.json.encode(name)
        self.length_change = len(self._name) - (end - start)

    def take(self) -> bytes:
        """What may be passed on now that was not taken yet."""
        if not self.known:
            return b""
        data = self._waiting[0] if len(self._waiting) == 1 else b"".join(self._waiting)
        self._waiting.clear()
        if self._name is not None:  # what waits begins with the first byte, and has all of the old name
            data = data[: self._place[0]] + self._name + data[self._place[1] :]
            self._name = None
        return data

    def _read(self, place: Place) -> None:
        body = b"".join(self._waiting)
        self._waiting = [body]
        self.model = self._value(body[place[0] : place[1]])
        self.streams = any(body[start:end] == b"true" for start, end in self._scan.places.get(b"stream", ())[-1:])
        self._place = place
        self.known = True

    def _value(self, raw: bytes) -> str | None:
        if self._is_form:
            return forms.text(raw, "model")
        try:
            name: str | None = _decode_name(raw)
        except msgspec.ValidationError as error:
            raise ApiError(400, "invalid_type", f"the model is not as expected: {error}", param="model") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ApiError(400, "invalid_json", f"the body is not JSON: {error}", param="model") from error
        return name

    def _twice(self) -> ApiError:
        return forms.twice("model") if self._is_form else ApiError(400, "invalid_json", "the body has a key twice")
