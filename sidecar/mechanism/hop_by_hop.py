"""Headers that speak of one connection, not of the message (RFC 9110, 7.6.1); Connection itself may name more."""

from __future__ import annotations

HOP_BY_HOP = frozenset(
    (
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection"),
        *(b"te", b"trailer", b"transfer-encoding", b"upgrade"),
    )
)
