"""Events in UDP datagrams, each of which stands for itself: one that is lost takes only its own events with it.

SPIF and AEStream    u32, little-endian: polarity in bit 15, y in bits 0-14, x in bits 16-30. Bit 31 says that there is no
                     time; without it a second u32 follows, microseconds that wrap after 71 minutes.
Event Stream         u64, little-endian: microseconds; then a whole .es stream that counts from there.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from spiketrain.events.formats.base import EventFormatError
from spiketrain.events.formats.clock import Clock
from spiketrain.events.formats.es import MAGIC, EsDecoder
from spiketrain.events.types import Events

LAYOUTS = ("spif", "event-stream")

_NO_TIME = np.uint32(1 << 31)
_ES_HEADER = 20


class Datagram(NamedTuple):
    """`arrived_us` is the receiver's clock, the time of events that have none of their own."""

    payload: bytes
    arrived_us: int


class DatagramDecoder:
    """`rejected` counts the datagrams that were not of the layout; they are passed over. `timeless` says whether the
    last events had no time of their own. Raises ValueError for a layout that is not known."""

    def __init__(self, layout: str = "spif") -> None:
        if layout not in LAYOUTS:
            raise ValueError(
                f"datagrams of {layout!r} are not known; known are {', '.join(LAYOUTS)}"
            )
        self._layout = layout
        self._clock = Clock(32)
        self.rejected = 0
        self.timeless = False

    def feed(self, datagrams: Sequence[Datagram]) -> Events:
        """The events of datagrams in the order they came."""
        decode = self._words if self._layout == "spif" else self._event_stream
        parts = []
        for each in datagrams:
            try:
                parts.append(decode(each))
            except (EventFormatError, struct.error):
                self.rejected += 1
        return Events.concatenate(parts)

    def _words(self, datagram: Datagram) -> Events:
        if not datagram.payload or len(datagram.payload) % 4:
            raise EventFormatError("the datagram is no row of 4-byte words")
        words = np.frombuffer(datagram.payload, "<u4")
        timeless = bool(words[0] & _NO_TIME)
        if timeless:
            if not (words & _NO_TIME).all():
                raise EventFormatError("words with and without time in one datagram")
            t = np.full(len(words), datagram.arrived_us, np.int64)
        else:
            if len(words) % 2 or (words[::2] & _NO_TIME).any():
                raise EventFormatError("a word lacks its time")
            t, words = self._clock.extend(words[1::2]), words[::2]
        self.timeless = timeless
        return Events(
            t,
            ((words >> 16) & 0x7FFF).astype(np.uint16),
            (words & 0x7FFF).astype(np.uint16),
            ((words >> 15) & 1).astype(np.uint8),
        )

    def _event_stream(self, datagram: Datagram) -> Events:
        (base_us,) = struct.unpack_from("<Q", datagram.payload)
        stream = datagram.payload[8:]
        if (
            stream[:12] != MAGIC
            or stream[12:13] != b"\2"
            or stream[15:16] != b"\1"
            or base_us >> 60
        ):
            raise EventFormatError("the datagram has no time and stream of DVS events")
        sensor = struct.unpack_from("<HH", stream, 16)
        if max(sensor) > 1 << 15:
            raise EventFormatError("the sensor is larger than a message can say")
        decoder = EsDecoder(sensor)
        events = decoder.feed(stream[_ES_HEADER:])
        decoder.finish()
        self.timeless = False
        return Events(events.t + base_us, events.x, events.y, events.p)
