"""Fields of a request's JSON body that the manifest sets, fills in or takes out.

Only the top-level fields that are named change. The others stay as they came, byte by byte and in their order: numbers
of any length, fields that nobody knows, a key that stands there twice in an inner object. Names are compared without
regard to case, as servers in Go do: else "Temperature" would be a way around what is said of "temperature".
"""

from __future__ import annotations

from typing import Any

import msgspec

from plugin_sdk import Config, Exchange, Filter, Reject, Request, inline

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Settings(Config):
    """set: fields that always have this value. default: those that have it unless the client says otherwise (`null` is
    something that he says). strip: fields that are taken out.
    """

    set: dict[str, Any] = msgspec.field(default_factory=dict)
    default: dict[str, Any] = msgspec.field(default_factory=dict)
    strip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        named = [name.casefold() for name in (*self.set, *self.default, *self.strip)]
        if not named:
            raise ValueError("expected fields under set, default or strip")
        for name in named:
            if named.count(name) > 1:
                raise ValueError(f'"{name}" is named twice: it can be set, have a default or be stripped')
            if name == "model":
                raise ValueError('"model" decides where the request goes: use aliases, or model_name of a variant')


class Params(Filter[Settings]):
    """Set, default and strip fields of the body.

    A body that is no JSON object, such as a form, is refused: it would go past what the manifest says.
    """

    async def open(self) -> None:
        self._set = _encoded(self.config.set)
        self._default = _encoded(self.config.default)
        self._strip = {name.casefold() for name in self.config.strip}
        self._kept = {name.casefold(): name for name in self.config.set}  # as it is written; other ways go

    @inline
    def on_request(self, exchange: Exchange) -> Request | None:
        """The request with another body; None if all is as it should be. Raises Reject(400)."""
        request = exchange.request
        if not request.body and request.method in ("GET", "HEAD", "DELETE"):
            return None
        try:
            fields = _decode(request.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Reject(400, f"the body must be a JSON object: {error}", code="invalid_json") from None
        if not self._change(fields):
            return None
        return msgspec.structs.replace(request, body=msgspec.json.encode(fields))

    def _change(self, fields: dict[str, msgspec.Raw]) -> bool:
        """Whether anything of it changed."""
        changed = bool(
            self._set
        )  # even if it was that: the key may stand there twice, and servers differ in what counts
        given = {name: name.casefold() for name in fields}
        for name, folded in given.items():
            if folded in self._strip or self._kept.get(folded, name) != name:
                del fields[name]
                changed = True
        fields.update(self._set)
        for name, value in self._default.items():
            if name.casefold() not in given.values():
                fields[name] = value
                changed = True
        return changed


def _encoded(values: dict[str, Any]) -> dict[str, msgspec.Raw]:
    return {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in values.items()}
