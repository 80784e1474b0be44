"""Events that a camera sends as UDP datagrams, as packets for a stream."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from spikeserve.client.packets import MAX_PACKET_EVENTS, Advance, Packet
from spiketrain.events import wire
from spiketrain.events.datagrams import Datagram, DatagramDecoder
from spiketrain.events.types import Events

MAX_WAITING_BYTES = 8 << 20
"""Datagrams that have not been taken yet, at most; what comes then is dropped, and counted."""

_PACKET_SECONDS = 0.01
_SILENCE_SECONDS = 0.1
_SOCKET_BYTES = 4 << 20


@dataclass
class UdpCounts:
    """Datagrams that came, that were not of the layout, and that were dropped because too many waited."""

    datagrams: int = 0
    rejected: int = 0
    dropped: int = 0


class UdpSource:
    """Iterates over packets without end. `port` is the one that is bound, also where 0 was asked for.

    Events with a time of their own have the camera's. Others have that of their arrival, in microseconds since the
    source was opened, and for them the time goes on in silence too.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 3333, layout: str = "spif") -> None:
        """Raises OSError for an address that cannot be had, ValueError for a layout that is not known."""
        self._decoder = DatagramDecoder(layout)
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BYTES)
            self._socket.setblocking(False)
            self._socket.bind(address)
        except OSError:
            self._socket.close()
            raise
        self.port: int = self._socket.getsockname()[1]
        self.counts = UdpCounts()

    async def __aiter__(self) -> AsyncIterator[Packet]:
        loop = asyncio.get_running_loop()
        transport, inbox = await loop.create_datagram_endpoint(
            lambda: _Inbox(self.counts), sock=self._socket
        )
        began = False
        try:
            while True:
                timeout = _SILENCE_SECONDS if began and self._decoder.timeless else None
                came = await inbox.wait(timeout)
                if came:
                    # A few milliseconds of them in one message.
                    await asyncio.sleep(_PACKET_SECONDS)
                events = self._decoder.feed(inbox.take())
                self.counts.rejected = self._decoder.rejected
                if len(events):
                    began = True
                    for packet in _messages(events):
                        yield packet
                elif not came:
                    yield Advance(inbox.now_us())
        finally:
            transport.close()

    def close(self) -> None:
        self._socket.close()


def _messages(events: Events) -> Iterator[Events]:
    """What one message can hold at a time, in order of time: damaged clocks may be far apart."""
    events = events.sorted()
    at = 0
    while at < len(events):
        span = int(np.searchsorted(events.t, int(events.t[at]) + wire.MAX_SPAN_US, "right"))
        stop = min(at + MAX_PACKET_EVENTS, span)
        yield events[at:stop]
        at = stop


class _Inbox(asyncio.DatagramProtocol):
    def __init__(self, counts: UdpCounts) -> None:
        self._counts = counts
        self._began = time.monotonic_ns()
        self._waiting: list[Datagram] = []
        self._bytes = 0
        self._came = asyncio.Event()

    def now_us(self) -> int:
        return (time.monotonic_ns() - self._began) // 1000

    def datagram_received(self, data: bytes, address: tuple[Any, ...]) -> None:
        self._counts.datagrams += 1
        if self._bytes + len(data) > MAX_WAITING_BYTES:
            self._counts.dropped += 1
            return
        self._waiting.append(Datagram(data, self.now_us()))
        self._bytes += len(data) + 1
        self._came.set()

    async def wait(self, seconds: float | None) -> bool:
        """Whether something came."""
        try:
            async with asyncio.timeout(seconds):
                await self._came.wait()
        except TimeoutError:
            return False
        return True

    def take(self) -> list[Datagram]:
        taken, self._waiting, self._bytes = self._waiting, [], 0
        self._came.clear()
        return taken
