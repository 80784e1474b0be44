"""N-MNIST and N-Caltech101 .bin, and SLAYER's .bs2: 5 bytes an event, big-endian, no header.

byte 0      x
byte 1      y; 240 marks an overflow: times from here on are 2^13 microseconds later
bytes 2-4   1 bit polarity (1 = ON), 23 bits microseconds
"""

from __future__ import annotations

import numpy as np

from spiketrain.events.formats.base import EventFormatError, Format
from spiketrain.events.types import Events

RECORD = 5
OVERFLOW_Y = 240
OVERFLOW_US = 1 << 13
MAX_US = (1 << 23) - 1


def read(data: bytes, max_events: int) -> Events:
    if len(data) % RECORD:
        raise EventFormatError(
            f"{len(data)} bytes are {len(data) // RECORD} N-MNIST events of {RECORD} bytes and {len(data) % RECORD} "
            "bytes more: the file is truncated, or of another format"
        )
    if len(data) // RECORD > max_events:
        raise EventFormatError(
            f"{len(data) // RECORD} events are more than the allowed {max_events}"
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, RECORD)
    x, y, high, middle, low = (records[:, i] for i in range(RECORD))
    t = (high & 0x7F).astype(np.int64) << 16
    t |= middle.astype(np.int64) << 8
    t |= low
    events = Events(t, x.astype(np.uint16), y.astype(np.uint16), (high >> 7).astype(np.uint8))
    overflow = y == OVERFLOW_Y
    if overflow.any():
        t += np.cumsum(overflow) * OVERFLOW_US
        events = events[~overflow]
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


def _recognises(data: bytes) -> bool:
    """The format has no magic number: 16 or more whole records whose times hardly ever fall are taken for it."""
    if len(data) % RECORD or len(data) < 16 * RECORD:
        return False
    t = read(data[: RECORD * 4096], 4096).t
    return len(t) > 1 and bool((np.diff(t) >= 0).mean() > 0.99)


NMNIST = Format("n-mnist", (".bin", ".bs2"), _recognises, read)
