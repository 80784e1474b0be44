"""N-MNIST and N-Caltech101 .bin, and SLAYER's .bs2: 5 bytes an event, big-endian, no header.

byte 0      x
byte 1      y; 240 marks an overflow: times from here on are 2^13 microseconds later
bytes 2-4   1 bit polarity (1 = ON), 23 bits microseconds, which wrap after 8.4 s
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spiketrain.events.formats.base import Contents, Format
from spiketrain.events.formats.clock import Clock
from spiketrain.events.formats.decoder import RecordDecoder, decoded
from spiketrain.events.formats.source import Source
from spiketrain.events.types import Events

RECORD = 5
OVERFLOW_Y = 240
OVERFLOW_US = 1 << 13
TIME_BITS = 23
MAX_US = (1 << TIME_BITS) - 1


class NmnistDecoder(RecordDecoder):
    title = "N-MNIST events"
    dtype = np.dtype((np.void, RECORD))

    def __init__(self) -> None:
        super().__init__()
        self._clock = Clock(TIME_BITS, forward=True)
        self._overflows = 0

    def decode(self, records: NDArray[Any]) -> Events:
        octets = records.view(np.uint8).reshape(-1, RECORD)
        x, y, high, middle, low = (octets[:, i] for i in range(RECORD))
        overflow = y == OVERFLOW_Y
        overflows = bool(overflow.any())
        if overflows:
            added = self._overflows + np.cumsum(overflow)
            self._overflows = int(added[-1])
            kept = ~overflow
            x, y, high, middle, low = x[kept], y[kept], high[kept], middle[kept], low[kept]
        counter = (high & 0x7F).astype(np.int32) << 16
        counter |= middle.astype(np.int32) << 8
        counter |= low
        t = self._clock.extend(counter)
        if overflows:
            t += added[kept] * OVERFLOW_US
        elif self._overflows:
            t += self._overflows * OVERFLOW_US
        return Events(t, x.astype(np.uint16), y.astype(np.uint16), (high >> 7).astype(np.uint8))


def read(data: bytes) -> Events:
    """All events of a file's content. Raises EventFormatError for one that ends in the middle of a record."""
    decoder = NmnistDecoder()
    events = decoder.feed(data)
    decoder.finish()
    return events


def write(events: Events) -> bytes:
    """The events as a .bin file. Raises ValueError for a coordinate or a time that it cannot hold."""
    if len(events):
        if int(events.x.max()) > 255 or int(events.y.max()) >= OVERFLOW_Y:
            raise ValueError("a .bin file holds x to 255 and y to 239; write an .npz instead")
        if int(events.t.min()) < 0 or int(events.t.max()) > MAX_US:
            raise ValueError(f"a .bin file holds times of 0 to {MAX_US} us; write an .npz instead")
    records = np.empty((len(events), RECORD), np.uint8)
    records[:, 0] = events.x
    records[:, 1] = events.y
    records[:, 2] = (events.p << 7) | (events.t >> 16).astype(np.uint8)
    records[:, 3] = (events.t >> 8) & 0xFF
    records[:, 4] = events.t & 0xFF
    return records.tobytes()


def _recognises(source: Source) -> bool:
    """The format has no magic number: 16 or more whole records whose times hardly ever fall are taken for it."""
    size = source.size
    if size is None or size % RECORD or size < 16 * RECORD:
        return False
    head = source.head[: RECORD * 4096]
    t = NmnistDecoder().feed(head[: len(head) - len(head) % RECORD]).t
    return len(t) > 1 and bool((np.diff(t) >= 0).mean() > 0.99) and int(t[-1]) <= MAX_US


NMNIST = Format(
    "n-mnist",
    "N-MNIST, N-Caltech101",
    (".bin", ".bs2"),
    _recognises,
    lambda source: Contents(decoded(source, NmnistDecoder())),
)
