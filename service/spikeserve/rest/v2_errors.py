"""Errors of the routes under /v2, which have the Open Inference Protocol's form."""

from __future__ import annotations

import math
from typing import Any

from starlette.responses import JSONResponse, Response

from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.rest.access import CHALLENGE

V2_ERRORS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "Any error",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["error"],
                    "properties": {"error": {"type": "string"}},
                }
            }
        },
    }
}
"""For the description of the routes."""

_PREFIX = "/v2"
# Triton's clients know one status for a request that is wrong in itself.
_AS_MALFORMED = (ErrorKind.IMPOSSIBLE, ErrorKind.UNSUPPORTED_MEDIA)


def is_v2(path: str) -> bool:
    return path == _PREFIX or path.startswith(f"{_PREFIX}/")


def v2_error(error: ServiceError) -> Response:
    kind = ErrorKind.MALFORMED if error.kind in _AS_MALFORMED else error.kind
    reply = JSONResponse({"error": error.message}, kind.http_status)
    if error.kind is ErrorKind.UNAUTHENTICATED:
        reply.headers["WWW-Authenticate"] = CHALLENGE
    if error.retry_after is not None:
        reply.headers["Retry-After"] = str(math.ceil(error.retry_after))
    if kind is ErrorKind.TOO_LARGE:
        # What is left of the body is not wanted, so the connection cannot be used again.
        reply.headers["Connection"] = "close"
    return reply
