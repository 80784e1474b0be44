"""Events on their way to a server: packets, cut from a recording, and sent at the pace of a camera."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import NamedTuple, TypeAlias

import numpy as np

from spiketrain.events import wire
from spiketrain.events.types import Events

DEFAULT_PACKET_US = 10_000
MAX_PACKET_EVENTS = 1 << 16
MAX_SILENT = 100


class Advance(NamedTuple):
    """No event before this stream time follows."""

    time_us: int


Packet: TypeAlias = Events | Advance


def cut(
    events: Events, packet_us: int = DEFAULT_PACKET_US, max_events: int = MAX_PACKET_EVENTS
) -> Iterator[Packet]:
    """A recording as packets of at most `packet_us` of stream time and `max_events` events, in order of time.

    Between stretches of `packet_us` comes the time that was reached, so that windows close in silence too; of a long
    silence only the first MAX_SILENT stretches are told.
    """
    if not 1 <= packet_us <= wire.MAX_SPAN_US or max_events < 1:
        raise ValueError(f"packets of {packet_us} us and {max_events} events cannot be made")
    events = events.sorted()
    at, end_us = 0, int(events.t[0]) if len(events) else 0
    while at < len(events):
        silent = (int(events.t[at]) - end_us) // packet_us
        for _ in range(min(silent, MAX_SILENT)):
            end_us += packet_us
            yield Advance(end_us)
        end_us += (int(events.t[at]) - end_us) // packet_us * packet_us + packet_us
        stop = int(np.searchsorted(events.t, end_us))
        while at < stop:
            part = min(at + max_events, stop)
            yield events[at:part]
            at = part
        if at < len(events):
            yield Advance(end_us)


async def paced(packets: Iterable[Packet], speed: float) -> AsyncIterator[Packet]:
    """Packets when a camera would send them: those of each stretch of time when it is over, `speed` times as fast."""
    if speed <= 0:
        raise ValueError(f"speed {speed} must be above 0")
    loop = asyncio.get_running_loop()
    began = loop.time()
    first: int | None = None
    for packet in packets:
        time_us = packet.time_us if isinstance(packet, Advance) else int(packet.t[-1])
        first = (
            (time_us if isinstance(packet, Advance) else int(packet.t[0]))
            if first is None
            else first
        )
        await asyncio.sleep(began + (time_us - first) / 1e6 / speed - loop.time())
        yield packet
