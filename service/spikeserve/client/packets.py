"""Events on their way to a server: packets, cut from a recording, and sent at the pace of a camera."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import NamedTuple, TypeAlias

import numpy as np

from spiketrain.events import wire
from spiketrain.events.formats.header import prophesee_header
from spiketrain.events.formats.source import AnySource, Source
from spiketrain.events.types import Events

DEFAULT_PACKET_US = 10_000
MAX_PACKET_EVENTS = 1 << 16
MAX_SILENT = 100


class Advance(NamedTuple):
    """No event before this stream time follows."""

    time_us: int


class Words(NamedTuple):
    """A camera's own words as they came, cut anywhere: the server goes on decoding where the last packet ended.

    Their times are the camera's, continued across the wraps of its clock, plus `base_us`.
    """

    encoding: wire.Encoding
    payload: bytes
    base_us: int = 0


Packet: TypeAlias = Events | Words | Advance


def cut(
    events: Events | Iterable[Events],
    packet_us: int = DEFAULT_PACKET_US,
    max_events: int = MAX_PACKET_EVENTS,
) -> Iterator[Packet]:
    """A recording, whole or in chunks, as packets of at most `packet_us` of stream time and `max_events` events.

    They are in order of time, each chunk by itself. Between stretches of `packet_us` comes the time that was reached, so
    that windows close in silence too; of a long silence only the first MAX_SILENT stretches are told.
    """
    if not 1 <= packet_us <= wire.MAX_SPAN_US or max_events < 1:
        raise ValueError(f"packets of {packet_us} us and {max_events} events cannot be made")
    end_us: int | None = None
    for chunk in (events,) if isinstance(events, Events) else events:
        chunk = chunk.sorted()
        at = 0
        while at < len(chunk):
            first = int(chunk.t[at])
            if end_us is None:
                end_us = first + packet_us
            elif first >= end_us:
                yield Advance(end_us)
                silent = (first - end_us) // packet_us
                for k in range(1, min(silent, MAX_SILENT) + 1):
                    yield Advance(end_us + k * packet_us)
                end_us += (silent + 1) * packet_us
            stop = int(np.searchsorted(chunk.t, end_us))
            while at < stop:
                part = min(at + max_events, stop)
                # Only an event from before the last packet can be this early, and no message holds more time.
                span = int(np.searchsorted(chunk.t, int(chunk.t[at]) + wire.MAX_SPAN_US, "right"))
                part = min(part, span)
                yield chunk[at:part]
                at = part


def cut_words(source: AnySource, packet_bytes: int = MAX_PACKET_EVENTS) -> Iterator[Words]:
    """A Prophesee .raw file in EVT 2.0 or 3.0 as packets of its words, without decoding them.

    Raises OSError if it cannot be opened, ValueError for a file of another kind.
    """
    opened = Source(source)
    try:
        header = prophesee_header(opened.head)
        encoding = {"evt2": wire.Encoding.EVT2, "evt3": wire.Encoding.EVT3}.get(
            (header and header.encoding) or ""
        )
        if header is None or encoding is None:
            raise ValueError("only .raw files whose header says EVT2 or EVT3 can be sent as words")
        opened.take_head(header.length)
        for block in opened.blocks(packet_bytes):
            yield Words(encoding, block)
    finally:
        opened.close()


async def paced(packets: Iterable[Packet], speed: float) -> AsyncIterator[Packet]:
    """Packets when a camera would send them: those of each stretch of time when it is over, `speed` times as fast.

    Raises ValueError for words, whose time is not known before they are decoded.
    """
    if speed <= 0:
        raise ValueError(f"speed {speed} must be above 0")
    loop = asyncio.get_running_loop()
    began = loop.time()
    first: int | None = None
    for packet in packets:
        if isinstance(packet, Words):
            raise ValueError(
                "words cannot be paced: read the recording's events, or send as fast as possible"
            )
        time_us = packet.time_us if isinstance(packet, Advance) else int(packet.t[-1])
        if first is None:
            first = time_us if isinstance(packet, Advance) else int(packet.t[0])
        await asyncio.sleep(began + (time_us - first) / 1e6 / speed - loop.time())
        yield packet
