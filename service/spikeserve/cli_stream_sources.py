"""Where `spikeserve stream` gets its events from: a recording, standard input, UDP, or the emulated camera."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import parse_qsl, urlsplit

from spikeserve.client import Advance, Packet, cut
from spikeserve.client.udp import UdpCounts, UdpSource
from spiketrain.events.demo import demo_events
from spiketrain.events.formats import open_recording
from spiketrain.events.formats.base import Sensor
from spiketrain.events.types import Events

T = TypeVar("T")

_DEMO = "demo:"
_UDP = "udp:"
_DEFAULT_UDP_PORT = 3333
_AHEAD = 16


@dataclass
class Source:
    """`packets` come as they are; those of a recording can be paced, a `live` source has a pace of its own.

    `sensor` is width and height, where the source says so; `counts` are those of UDP.
    """

    packets: Iterable[Packet] | AsyncIterator[Packet]
    sensor: Sensor | None = None
    live: bool = False
    counts: UdpCounts | None = None
    resources: ExitStack = field(default_factory=ExitStack)


def open_source(source: str, format: str | None = None, topic: str | None = None) -> Source:
    """Raises OSError, EventFormatError, ValueError."""
    if source.startswith(_DEMO):
        return Source(_demo(source))
    if source.startswith(_UDP):
        return _udp(source)
    resources = ExitStack()
    standard_input = source == "-"
    recording = resources.enter_context(
        open_recording(sys.stdin.buffer if standard_input else source, format, stream=topic)
    )
    packets: Iterable[Packet] = cut(recording)
    if standard_input:
        # Nothing that is read from a pipe may hold up what comes from the server.
        return Source(_from_thread(packets), recording.sensor, True, resources=resources)
    return Source(packets, recording.sensor, resources=resources)


def _demo(source: str) -> Iterator[Packet]:
    """The emulated camera: `demo:` without end, `demo:3141` with these digits."""
    digits = source.removeprefix(_DEMO)
    if digits and not (digits.isascii() and digits.isdecimal()):
        raise ValueError(f"{source!r}: after {_DEMO} come digits, such as {_DEMO}3141, or nothing")
    return _demo_packets([int(digit) for digit in digits] or None)


def _demo_packets(digits: list[int] | None) -> Iterator[Packet]:
    for chunk in demo_events(digits=digits):
        if len(chunk.events):
            yield chunk.events
        yield Advance(chunk.until_us)


def _udp(source: str) -> Source:
    """`udp://HOST:PORT?layout=event-stream`; host, port and layout may be left out."""
    parts = urlsplit(source if "//" in source else source.replace(_UDP, "udp://", 1))
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    layout = options.pop("layout", "spif")
    try:
        port = _DEFAULT_UDP_PORT if parts.port is None else parts.port
    except ValueError:
        port = -1
    if options or parts.path not in ("", "/") or port < 0:
        raise ValueError(
            f"{source!r}: write udp://HOST:PORT, with ?layout=event-stream behind it if it is not SPIF's"
        )
    receiver = UdpSource(parts.hostname or "127.0.0.1", port, layout)
    resources = ExitStack()
    resources.callback(receiver.close)
    return Source(aiter(receiver), live=True, counts=receiver.counts, resources=resources)


async def _from_thread(items: Iterable[T]) -> AsyncIterator[T]:
    """Items that are waited for in a thread, which ends with the program."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[T | None, BaseException | None]] = asyncio.Queue()
    room = threading.Semaphore(_AHEAD)

    def put(item: T | None, error: BaseException | None) -> None:
        room.acquire()
        loop.call_soon_threadsafe(queue.put_nowait, (item, error))

    def read() -> None:
        try:
            for item in items:
                put(item, None)
        except RuntimeError:
            return  # the loop is closed: nobody listens any more
        except BaseException as error:
            put(None, error)
        else:
            put(None, None)

    threading.Thread(target=read, name="standard input", daemon=True).start()
    while True:
        item, error = await queue.get()
        room.release()
        if error is not None:
            raise error
        if item is None:
            return
        yield item


async def each(
    packets: Iterable[Packet] | AsyncIterator[Packet], seen: Callable[[Packet], None]
) -> AsyncIterator[Packet]:
    """The packets, each told to `seen` as it goes out."""
    if isinstance(packets, AsyncIterator):
        async for packet in packets:
            seen(packet)
            yield packet
        return
    for packet in packets:
        seen(packet)
        yield packet


def reached(packet: Packet) -> int | None:
    """The stream time that is reached with a packet, where it says so."""
    if isinstance(packet, Advance):
        return packet.time_us
    if isinstance(packet, Events):
        return int(packet.t.max()) if len(packet) else None
    return None
