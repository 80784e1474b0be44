"""Request bodies: read no further than the limit, and no longer than the client stays."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from spikeserve.access import current_caller
from spikeserve.errors import ErrorKind, ServiceError

T = TypeVar("T")


async def read_body(request: Request, limit: int, encodings: Sequence[str] = ()) -> bytes:
    """All of the body, at most `limit` bytes, in one of these content encodings or in none.

    Raises ServiceError: TOO_LARGE, UNSUPPORTED_MEDIA, CANCELLED.
    """
    limit, name = current_caller.get().whole("max_body_bytes", limit)
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() not in ("identity", *encodings):
        raise ServiceError(
            ErrorKind.UNSUPPORTED_MEDIA,
            f"Content-Encoding {encoding!r:.60}: send the body as it is, without compression",
        )
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise _too_large(limit, name)
    body = bytearray()
    try:
        async for chunk in request.stream():
            if len(body) + len(chunk) > limit:
                raise _too_large(limit, name)
            body += chunk
    except ClientDisconnect:
        raise _gone() from None
    return bytes(body)


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client leaves. The body must have been read."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _gone()
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.wait({task, gone})


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _too_large(limit: int, name: str) -> ServiceError:
    return ServiceError(
        ErrorKind.TOO_LARGE,
        f"the body has more than {limit} bytes, the limit ({name})",
    )


def _gone() -> ServiceError:
    return ServiceError(ErrorKind.CANCELLED, "the client closed the connection before the answer")
