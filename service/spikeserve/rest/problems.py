"""Every error becomes an application/problem+json reply (RFC 9457) here, and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from spikeserve import logs
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.rest.access import BROWSER_CHALLENGE, CHALLENGE, wants_page
from spikeserve.rest.v2_errors import is_v2, v2_error

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:spikeserve:error:"


class Problem(BaseModel):
    """An error, as RFC 9457 has it."""

    type: str = Field(description="names the kind of error, for programs")
    title: str = Field(description="the kind of error, for people")
    status: int
    detail: str = Field(description="what was wrong in this request, and what to do")
    request_id: str = Field(
        description="what the log calls this request; also in the header X-Request-Id"
    )
    incident: str | None = Field(
        None, description="under which the log has the details of an internal error"
    )


DESCRIPTION: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "Any error",
        "content": {MEDIA_TYPE: {"schema": Problem.model_json_schema()}},
    }
}
"""For the description of the routes."""


def translate(error: Exception, where: str) -> ServiceError:
    """Any exception as the one type of error; what is nobody's fault but ours is logged under an id."""
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, RequestValidationError):
        return ServiceError(ErrorKind.IMPOSSIBLE, describe(error))
    if isinstance(error, HTTPException):
        return _from_framework(error, where)
    return logs.internal_error(error, where)


def _from_framework(error: HTTPException, where: str) -> ServiceError:
    """What the framework refuses before one of our routes is reached."""
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "another method")
        return ServiceError(ErrorKind.METHOD_NOT_ALLOWED, f"{where}: this route takes {allowed}")
    if error.status_code == HTTPStatus.NOT_FOUND:
        return ServiceError(
            ErrorKind.UNIMPLEMENTED, f"{where}: there is no such route; /docs has them all"
        )
    if error.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return logs.internal_error(error, where)
    return ServiceError(ErrorKind.MALFORMED, f"{where}: {error.detail}")


def describe(error: RequestValidationError | ValidationError) -> str:
    """Fields and what is wrong with them, without the values: those may be long, or not for the log."""
    parts = []
    for item in error.errors():
        place = ".".join(
            str(part) for part in item["loc"] if part not in ("query", "body", "header")
        )
        if item["type"] == "extra_forbidden":
            parts.append(f"{place}: there is no such option")
        else:
            parts.append(f"{place}: {item['msg']}" if place else str(item["msg"]))
    return "; ".join(parts)


def problem(
    error: ServiceError, request_id: str, headers: Mapping[str, str] | None = None
) -> Response:
    content = Problem(
        type=TYPE_PREFIX + error.kind.slug,
        title=error.kind.title,
        status=error.kind.http_status,
        detail=error.message,
        request_id=request_id,
        incident=error.incident,
    )
    reply = Response(
        content.model_dump_json(exclude_none=True), error.kind.http_status, media_type=MEDIA_TYPE
    )
    if error.retry_after is not None:
        reply.headers["Retry-After"] = str(math.ceil(error.retry_after))
    if error.kind is ErrorKind.TOO_LARGE:
        # What is left of the body is not wanted, so the connection cannot be used again.
        reply.headers["Connection"] = "close"
    if error.kind is ErrorKind.UNAUTHENTICATED:
        reply.headers["WWW-Authenticate"] = CHALLENGE
    reply.headers.update(headers or {})
    return reply


async def handle(request: Request, error: Exception) -> Response:
    """What the framework calls for an exception of a route, or of its own."""
    translated = translate(error, f"{request.method} {request.url.path}")
    request.state.error = translated.kind.slug
    request.state.failure = translated
    if is_v2(request.url.path):
        return v2_error(translated)
    headers = error.headers if isinstance(error, HTTPException) else None
    reply = problem(translated, request.state.request_id, headers)
    if translated.kind is ErrorKind.UNAUTHENTICATED and wants_page(request):
        reply.headers.append("WWW-Authenticate", BROWSER_CHALLENGE)
    return reply
