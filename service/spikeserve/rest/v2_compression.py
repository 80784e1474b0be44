"""Compressed bodies under /v2, both ways, as Triton's clients send and ask for them."""

from __future__ import annotations

import gzip
import zlib

from fastapi import Request
from starlette.responses import Response

from spikeserve.access import current_caller
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.oip.tensors import malformed
from spikeserve.rest.body import read_body

ENCODINGS = ("gzip", "deflate")

# Smaller replies fit into one packet as they are, with their headers.
_WORTH_IT = 1024
_EITHER = 32 + zlib.MAX_WBITS  # gzip, or zlib's format, which HTTP calls deflate


async def read_decompressed(request: Request, limit: int) -> bytes:
    """At most `limit` bytes, before and after. Raises ServiceError: TOO_LARGE, MALFORMED, UNSUPPORTED_MEDIA, CANCELLED."""
    body = await read_body(request, limit, ENCODINGS)
    if request.headers.get("content-encoding", "identity").lower() == "identity":
        return body
    limit, name = current_caller.get().whole("max_body_bytes", limit)
    stream = zlib.decompressobj(_EITHER)
    try:
        content = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise malformed(f"the body is not compressed as Content-Encoding says: {error}") from None
    if len(content) > limit:
        raise ServiceError(
            ErrorKind.TOO_LARGE,
            f"the body has more than {limit} bytes when decompressed, the limit ({name})",
        )
    if not stream.eof or stream.unused_data:
        raise malformed("the compressed body is cut off, or something follows it")
    return content


def compressed(request: Request, reply: Response) -> Response:
    """The reply as the client accepts it."""
    accepted = request.headers.get("accept-encoding", "").lower()
    offered = [part.strip() for part in accepted.split(",")]
    chosen = next((each for each in ENCODINGS if each in offered), None)
    body = bytes(reply.body)
    if chosen is None or len(body) < _WORTH_IT:
        return reply
    packed = gzip.compress(body, 1) if chosen == "gzip" else zlib.compress(body, 1)
    headers = {**reply.headers, "content-encoding": chosen, "vary": "Accept-Encoding"}
    del headers["content-length"]
    return Response(packed, reply.status_code, headers)
