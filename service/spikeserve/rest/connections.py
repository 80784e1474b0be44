"""What a connection may cost before it is a request: nobody holds one by sending slowly, or nothing.

And where it is served: one that becomes a WebSocket moves to the event loop of the streams.
"""

from __future__ import annotations

import asyncio
import functools
import os
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 20.0
"""From the opening of a connection, or the first byte of a further request, to the end of the request's headers."""


class ImpatientProtocol(HttpToolsProtocol):
    """Uvicorn's own, which waits for ever for the headers of a request."""

    head_seconds = HEAD_SECONDS

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._head: asyncio.TimerHandle | None = None

    def handle_websocket_upgrade(self) -> None:
        host = getattr(self.config.app, "host", None)
        if not isinstance(host, WebSocketHost) or not host.takes(self):
            super().handle_websocket_upgrade()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._stop_waiting()
        self._head = self.loop.call_later(self.head_seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _give_up(self) -> None:
        # An answer to an earlier request may be under way; it is followed by nothing more.
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:
            self.cycle.keep_alive = False


class WebSocketHost:
    """Takes over connections from other event loops as soon as they want to be WebSockets, and serves them on its own.

    An encrypted connection stays where it is: what was agreed upon for it cannot be moved.
    """

    def __init__(self, server: uvicorn.Server, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop
        self._moving: set[asyncio.Task[None]] = set()

    def takes(self, connection: ImpatientProtocol) -> bool:
        """Whether the connection was taken: it is closed where it was, but not for the client. Called on its loop."""
        if connection.config.ssl is not None or connection.loop is self._loop:
            return False
        method = connection.scope["method"].encode()
        lines = [method, b" ", connection.url, b" HTTP/1.1\r\n"]
        for name, value in connection.headers:
            lines += [name, b": ", value, b"\r\n"]
        head = b"".join([*lines, b"\r\n"])
        try:
            ours = socket.socket(
                fileno=os.dup(connection.transport.get_extra_info("socket").fileno())
            )
        except OSError:  # too many are open
            return False
        connection.transport.abort()
        self._loop.call_soon_threadsafe(self._begin, ours, head)
        return True

    def _begin(self, connection: socket.socket, head: bytes) -> None:
        task = asyncio.create_task(self._serve(connection, head))
        self._moving.add(task)
        task.add_done_callback(self._moving.discard)

    async def _serve(self, connection: socket.socket, head: bytes) -> None:
        connection.setblocking(False)
        make = functools.partial(
            _Moved,
            head,
            config=self._server.config,
            server_state=self._server.server_state,
            app_state={},
        )
        try:
            await self._loop.connect_accepted_socket(make, connection)
        except OSError:  # the client has gone meanwhile
            connection.close()


class _Moved(ImpatientProtocol):
    """Reads first what its connection has received elsewhere."""

    def __init__(self, received: bytes, **options: Any) -> None:
        super().__init__(**options)
        self._received = received

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.data_received(self._received)
