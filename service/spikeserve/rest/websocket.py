"""GET /events: a live event stream over a WebSocket, for browsers, on the same terms as over gRPC.

The client's first message is text, the terms as `POST /classify/events` has them in its query: {"open": {"model": ...,
"sensor": "34x34"}}. Events follow as binary messages: 8 bytes base time (int64, little-endian, microseconds), then
columns as spikeserve.v1 has them (spiketrain.events.wire, COLUMNS_V1). {"advance": 120000} says that no earlier event
follows, {"end": true} that nothing does. "slow" in the terms says what happens when the client does not read its answers.

The server answers in text: {"opened": ...}, one {"window": ...} for each window that closes, {"ended": ...}; or
{"error": ...}, which is a problem as the other routes have it, and closes; or {"refused": ...} for messages that it has
not taken in, with such a problem and their number.

A page cannot send headers with a WebSocket: where the server asks for a key, it offers the subprotocols "spikeserve.v1" and
"spikeserve.key." followed by the key in base64url. A page that is refused is told why in {"error": ...} rather than by a status,
which it could not see.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import time
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from spikeserve import logs
from spikeserve.access import Gate
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.metrics import Metrics
from spikeserve.refusals import Refusals
from spikeserve.requests import request_id
from spikeserve.rest.access import PROTOCOL, credentials
from spikeserve.rest.event_replies import window_reply
from spikeserve.rest.events import EventsOptions
from spikeserve.rest.problems import describe, problem, translate
from spikeserve.settings import Settings, SlowPolicy
from spikeserve.streams import (
    Outlet,
    Packet,
    Refusal,
    Session,
    StreamOptions,
    Streams,
    WindowAnswer,
)
from spiketrain.events import wire
from spiketrain.manifest import DurationWindow

T = TypeVar("T")

ROUTE = "/events"
_BASE = struct.Struct("<q")
_MOST_TEXT = 1 << 14
_FAREWELL_SECONDS = 5.0
# Close codes of RFC 6455 and its registry: policy violation, internal error, try again later.
_VIOLATION, _INTERNAL, _LATER = 1008, 1011, 1013
_CODES = {
    ErrorKind.INTERNAL: _INTERNAL,
    ErrorKind.UNAVAILABLE: _LATER,
    ErrorKind.OVER_QUOTA: _LATER,
}


def websocket_router(
    streams: Streams, metrics: Metrics, settings: Settings, refusals: Refusals, gate: Gate
) -> APIRouter:
    router = APIRouter()

    @router.websocket(ROUTE)
    async def events(websocket: WebSocket) -> None:
        call = _Call(request_id(websocket.headers.get("x-request-id")))
        began = time.perf_counter()
        failure: ServiceError | None = None
        own_page = False
        try:
            own_page = _is_of_own_page(websocket)
            with gate.admit(("stream",), credentials(websocket)):
                await _accept(websocket, call)
                await _Conversation(websocket, streams, settings, call, gate).run()
        except WebSocketDisconnect:
            pass
        except Exception as error:
            failure = translate(error, f"WebSocket {ROUTE}")
            refusals.add(ROUTE, failure, call.request_id)
            await _refuse(websocket, failure, call, own_page)
        finally:
            code = "101" if failure is None else str(failure.kind.http_status)
            metrics.request(ROUTE, code, call.model, call.version)
            logs.request_line(
                route=ROUTE,
                code=code,
                seconds=time.perf_counter() - began,
                model=call.model,
                error=None if failure is None else failure.kind.slug,
                request_id=call.request_id,
            )

    return router


@dataclass
class _Call:
    """What is known of the connection, for the log."""

    request_id: str
    model: str | None = None
    version: str | None = None


class LiveOptions(EventsOptions):
    """The terms of a stream over a WebSocket."""

    slow: SlowPolicy | None = None

    def terms(self) -> StreamOptions:
        return replace(super().terms(), slow=self.slow)


class _Conversation:
    def __init__(
        self,
        websocket: WebSocket,
        streams: Streams,
        settings: Settings,
        call: _Call,
        gate: Gate,
    ) -> None:
        self._gate = gate
        self._websocket = websocket
        self._streams = streams
        self._settings = settings
        self._call = call
        self._closed: asyncio.Task[ServiceError | None] | None = None
        self._outlet: Outlet | None = None

    async def run(self) -> None:
        """Raises ServiceError, and WebSocketDisconnect when the client has left. The stream is closed in any case."""
        terms = (await self._opening()).terms()
        stream = await self._streams.open(terms)
        encoding = wire.Encoding.COLUMNS_V1
        session = Session(stream, self._settings, self._streams.workers, (terms, encoding))
        self._call.model, self._call.version = stream.model.name, stream.model.version
        self._closed = asyncio.create_task(stream.wait_closed())
        self._outlet = outlet = self._streams.outlet(session, partial(self._send, session))
        try:
            await self._write({"opened": _opened(session)})
            while (answers := await self._next(session, outlet)) is not None:
                await self._unless_closed(outlet.send(answers))
            await self._unless_closed(outlet.send(await self._unless_closed(session.finish())))
            await self._unless_closed(outlet.flush())
            await self._write({"ended": _ended(session)})
            await self._websocket.close()
        finally:
            outlet.close()
            session.end(None)
            self._closed.cancel()

    async def _opening(self) -> LiveOptions:
        idle = self._settings.stream_idle_seconds
        try:
            async with asyncio.timeout(idle):
                message = await self._receive()
        except TimeoutError:
            raise ServiceError(
                ErrorKind.DEADLINE, f"nothing came for {idle:g} s: send `open` first"
            ) from None
        given = _said(message).get("open") if isinstance(message, str) else None
        if not isinstance(given, dict):
            raise _malformed('the first message must be {"open": {...}}, as text')
        try:
            options = LiveOptions.model_validate(given)
        except ValidationError as error:
            raise ServiceError(ErrorKind.IMPOSSIBLE, f"open: {describe(error)}") from None
        if options.format is not None or options.topic is not None:
            raise ServiceError(
                ErrorKind.IMPOSSIBLE, "open: format and topic are of recordings, not of streams"
            )
        return options

    async def _next(self, session: Session, outlet: Outlet) -> list[WindowAnswer] | None:
        """The answers to the next message; None where it was the last."""
        message = await self._unless_closed(self._receive())
        if isinstance(message, bytes):
            packet = _packet(message)
            if not await self._unless_closed(outlet.admits()):
                return []
            with self._gate.metered(session):
                return await self._unless_closed(session.feed(packet))
        said = _said(message)
        if said == {"end": True}:
            return None
        t_us = said.get("advance")
        if len(said) != 1 or type(t_us) is not int or abs(t_us) >= 1 << 63:
            raise _malformed(
                'after `open` come events, as binary messages, {"advance": MICROSECONDS} and {"end": true}'
            )
        if not await self._unless_closed(outlet.admits()):
            return []
        return await self._unless_closed(session.advance(t_us))

    async def _receive(self) -> str | bytes:
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        content: str | bytes | None = message.get("text")
        if content is None:
            content = bytes(message.get("bytes") or b"")
        if isinstance(content, str) and len(content) > _MOST_TEXT:
            raise ServiceError(
                ErrorKind.TOO_LARGE, f"a text message has more than {_MOST_TEXT} characters"
            )
        return content

    async def _send(self, session: Session, answer: WindowAnswer | Refusal) -> None:
        if isinstance(answer, Refusal):
            said = json.loads(bytes(problem(answer.error, self._call.request_id).body))
            await self._text({"refused": {"messages": answer.messages, "error": said}})
        else:
            await self._text({"window": _window(answer, session)})

    async def _write(self, content: dict[str, Any]) -> None:
        await self._unless_closed(self._text(content))

    async def _text(self, content: dict[str, Any]) -> None:
        await self._websocket.send_text(json.dumps(content))

    async def _unless_closed(self, action: Awaitable[T]) -> T:
        """The result of `action`, or the reason for which the server closed the stream meanwhile."""
        task: asyncio.Future[T] = asyncio.ensure_future(action)
        waiting: set[asyncio.Future[Any]] = {task}
        if self._closed is not None:
            waiting.add(self._closed)
        if self._outlet is not None:
            waiting.add(self._outlet.failed)
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if not task.done() and self._outlet is not None and self._outlet.failed.done():
                raise self._outlet.failed.result()
            if not task.done() and self._closed is not None:
                reason = self._closed.result()
                if reason is not None:
                    raise reason.again()
            return await task
        finally:
            task.cancel()


async def _accept(websocket: WebSocket, call: _Call) -> None:
    offered = websocket.scope.get("subprotocols") or ()
    await websocket.accept(
        subprotocol=PROTOCOL if PROTOCOL in offered else None,
        headers=[(b"x-request-id", call.request_id.encode())],
    )


def _is_of_own_page(websocket: WebSocket) -> bool:
    """Programs name no origin. Raises ServiceError for a page of another site: it could otherwise use its visitor's
    place in the network."""
    origin = websocket.headers.get("origin")
    if origin is None:
        return False
    here = websocket.headers.get("host", "")
    if urlsplit(origin).netloc.lower() != here.lower():
        raise ServiceError(
            ErrorKind.FORBIDDEN,
            f"pages of another origin may not open streams; this server is {here or 'unnamed'}",
        )
    return True


async def _refuse(websocket: WebSocket, error: ServiceError, call: _Call, own_page: bool) -> None:
    reply = problem(error, call.request_id)
    # The client may have gone, which is known only when something is sent to it; or it does not read.
    with contextlib.suppress(RuntimeError, WebSocketDisconnect, TimeoutError):
        async with asyncio.timeout(_FAREWELL_SECONDS):
            if own_page and websocket.application_state is WebSocketState.CONNECTING:
                await _accept(websocket, call)
            await _say(websocket, error, reply)


async def _say(websocket: WebSocket, error: ServiceError, reply: Response) -> None:
    if websocket.application_state is WebSocketState.CONNECTING:
        await websocket.send_denial_response(reply)
    elif websocket.application_state is WebSocketState.CONNECTED:
        said = json.dumps({"error": json.loads(bytes(reply.body))})
        await websocket.send_text(said)
        await websocket.close(_CODES.get(error.kind, _VIOLATION), error.kind.title)


def _packet(message: bytes) -> Packet:
    if len(message) < _BASE.size:
        raise _malformed(
            f"a binary message has {len(message)} bytes: {_BASE.size} of base time come first"
        )
    (base_us,) = _BASE.unpack_from(message)
    return Packet(0, wire.Encoding.COLUMNS_V1, message[_BASE.size :], base_us)


def _said(message: str | bytes) -> dict[str, Any]:
    try:
        said = json.loads(message)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise _malformed("a text message is not a JSON object")
    return said


def _opened(session: Session) -> dict[str, Any]:
    stream = session.stream
    window = stream.spec.window
    return {
        "model": stream.model.name,
        "version": stream.model.version,
        "classes": list(stream.model.manifest.classes),
        "sensor": list(stream.spec.sensor),
        "window_us": window.microseconds if isinstance(window, DurationWindow) else None,
        "decisions": stream.decision is not None,
    }


def _window(answer: WindowAnswer, session: Session) -> dict[str, Any]:
    content = window_reply(answer, session.stream.model.manifest.classes).model_dump()
    return content | {
        "latency_seconds": answer.latency_seconds,
        "drops": {
            "late_events": answer.late,
            "outside_events": answer.outside,
            "skipped_windows": answer.skipped,
            "filtered_events": answer.filtered,
            "dropped_answers": session.dropped_answers,
            "refused_messages": session.refused_messages,
        },
    }


def _ended(session: Session) -> dict[str, Any]:
    late, outside, skipped, filtered = session.stream.drops
    return {
        "windows": session.windows,
        "events": session.events,
        "drops": {
            "late_events": late,
            "outside_events": outside,
            "skipped_windows": skipped,
            "filtered_events": filtered,
            "dropped_answers": session.dropped_answers,
            "refused_messages": session.refused_messages,
        },
    }


def _malformed(message: str) -> ServiceError:
    return ServiceError(ErrorKind.MALFORMED, message)
