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

# To look for a client takes a task of its own, which is a good part of what a small picture costs.
_UNWATCHED_SECONDS = 0.02


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
    """The result of `work`, which is cancelled when the client leaves. The body must have been read.

    Nobody looks for the client in the first moments, in which most requests are answered.
    """
    watch = _Watch(request)
    try:
        return await work
    except asyncio.CancelledError:
        if watch.gone and not watch.task.uncancel():
            raise _gone() from None
        raise
    finally:
        watch.end()


class _Watch:
    """Cancels the running task when the request's client leaves, until it is ended."""

    def __init__(self, request: Request) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("only a task can be cancelled")
        self.task = task
        self.gone = False
        self._request = request
        self._looking: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(_UNWATCHED_SECONDS, self._look)

    def end(self) -> None:
        self._timer.cancel()
        if self._looking is not None:
            self._looking.remove_done_callback(self._left)
            self._looking.cancel()

    def _look(self) -> None:
        self._looking = asyncio.create_task(_disconnected(self._request))
        self._looking.add_done_callback(self._left)

    def _left(self, looked: asyncio.Task[None]) -> None:
        if not looked.cancelled() and looked.exception() is None:
            self.gone = True
            self.task.cancel()


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
