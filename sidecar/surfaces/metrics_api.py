"""`GET /metrics`: the metrics as Prometheus' text, or as OpenMetrics for those who ask for that by `Accept`."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping

from litestar import Response

from sidecar.core.manifest import Settings
from sidecar.mechanism.exposition import format_of, rendered
from sidecar.surfaces import guard
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.metrics.catalog import Metrics

LARGE = 64 * 1024  # characters, from which compressing is worth a thread
GZIP = 16 + zlib.MAX_WBITS
LEVEL = 1  # text of this kind gets a tenth of its size even so


def check(headers: Mapping[str, str], peer: str, settings: Settings) -> None:
    """Raise ApiError unless `[sidecar] metrics` lets the caller in. Header names in lower case."""
    if settings.metrics == "off":
        raise ApiError(404, "unknown_path", 'there are no metrics here: [sidecar] metrics = "off"')
    if settings.metrics != "open":
        guard.check(headers, peer, settings)


async def answer(metrics: Metrics, accept: str, accept_encoding: str) -> Response[bytes]:
    """All metrics. The event loop turns between pieces of the text."""
    await metrics.refresh()
    form = format_of(accept)
    pieces: list[str] = []
    for piece in rendered(metrics.families(), form):
        pieces.append(piece)
        await asyncio.sleep(0)
    text = "".join(pieces).encode("utf-8", "replace")
    headers = {"content-type": form.content_type, "cache-control": "no-store", "vary": "accept, accept-encoding"}
    if _takes_gzip(accept_encoding):
        text = _compressed(text) if len(text) < LARGE else await asyncio.to_thread(_compressed, text)
        headers["content-encoding"] = "gzip"
    return Response(text, headers=headers)


def _takes_gzip(accept_encoding: str) -> bool:
    for item in accept_encoding.lower().split(","):
        coding, _, weight = item.partition(";")
        if coding.strip() == "gzip":
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def _compressed(text: bytes) -> bytes:
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, GZIP)
    return packer.compress(text) + packer.flush()
