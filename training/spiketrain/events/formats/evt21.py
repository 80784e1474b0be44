"""Prophesee EVT 2.1: 64-bit words of up to 32 events. https://docs.prophesee.ai/stable/data/encoding_formats/evt21.html

bits 63-60  0 OFF events, 1 ON events: 6 bits time (lowest), 11 bits x, 11 bits y, 32 bits: which of x to x + 31
            8 TIME_HIGH: 28 bits, the time in units of 64 microseconds, then 32 unused bits
            all others carry no events and are passed over

The two halves come in either order. GenX320 writes the lower one first (`endianness=little` in the header), IMX636
the upper one first (`endianness=legacy`); each half is little-endian. Where the header does not say, the order is the
one in which more words look like TIME_HIGH.

Written from the documentation and tested on files that the tests write: no genuine recording was to be had.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spiketrain.events.formats.base import Contents, EventFormatError, Format
from spiketrain.events.formats.decoder import RecordDecoder, decoded
from spiketrain.events.formats.evt2 import HIGH_BITS, TIME_HIGH, HighTime
from spiketrain.events.formats.header import prophesee_header, take_prophesee_header
from spiketrain.events.formats.source import Source
from spiketrain.events.native import loops
from spiketrain.events.types import Events, Int64s

_LITTLE = np.dtype([("valid", "<u4"), ("word", "<u4")])
_LEGACY = np.dtype([("word", "<u4"), ("valid", "<u4")])


# NumPy 2.0 and later.
_COUNTS_BITS = hasattr(np, "bitwise_count")


class Evt21Decoder(RecordDecoder):
    title = "EVT 2.1 words"

    def __init__(self, legacy: bool) -> None:
        super().__init__()
        self.dtype = _LEGACY if legacy else _LITTLE
        self._high = HighTime()

    def decode(self, records: NDArray[Any]) -> Events:
        words, valid = records["word"], records["valid"]
        kind = (words >> 28).astype(np.uint8)
        highs = np.flatnonzero(kind == TIME_HIGH)
        where = np.flatnonzero(kind < 2)
        unknown, t = self._high.of(where, highs, words[highs] & np.uint32((1 << HIGH_BITS) - 1))
        where = where[unknown:]
        words, kind = words[where], kind[where]
        t += (words >> 22) & 0x3F
        if (compiled := loops()) is not None:
            return _spread(compiled, t, words, valid[where].astype(np.uint32), kind)
        bits = np.unpackbits(valid[where].astype("<u4").view(np.uint8), bitorder="little")
        at = np.flatnonzero(bits)
        of = at >> 5
        x = ((words >> 11) & 0x7FF)[of] + (at & 31)
        events = Events(t[of], x.astype(np.uint16), (words & 0x7FF).astype(np.uint16)[of], kind[of])
        return events if not len(x) or int(x.max()) <= 0x7FF else events[x <= 0x7FF]


def _spread(
    compiled: Any,
    t: Int64s,
    words: NDArray[Any],
    valid: NDArray[np.uint32],
    kind: NDArray[np.uint8],
) -> Events:
    """The events of vectors, by a compiled loop."""
    count = int(np.bitwise_count(valid).sum()) if _COUNTS_BITS else 32 * len(valid)
    out_t = np.empty(count, np.int64)
    out_x, out_y = np.empty((2, count), np.uint16)
    out_p = np.empty(count, np.uint8)
    x = ((words >> 11) & 0x7FF).astype(np.uint16)
    y = (words & 0x7FF).astype(np.uint16)
    n = compiled.spread(valid, t, x, y, kind, (out_t, out_x, out_y, out_p))
    return Events(out_t[:n], out_x[:n], out_y[:n], out_p[:n])


def _recognises(source: Source) -> bool:
    header = prophesee_header(source.head)
    return header is not None and header.encoding == "evt21"


def _open(source: Source) -> Contents:
    header = take_prophesee_header(source)
    order = header.endianness
    if order not in (None, "little", "legacy"):
        raise EventFormatError(
            f"the header says endianness={order}; EVT 2.1 has little (GenX320) or legacy (IMX636)"
        )
    data = source.head[header.length :]
    legacy = order == "legacy" if order else _times(data, _LEGACY) > _times(data, _LITTLE)
    return Contents(decoded(source, Evt21Decoder(legacy)), header.sensor)


def _times(data: bytes, dtype: np.dtype[Any]) -> int:
    records = np.frombuffer(data, dtype, len(data) // 8)
    return int(np.count_nonzero((records["word"] >> 28 == TIME_HIGH) & (records["valid"] == 0)))


EVT21 = Format("evt21", "Prophesee EVT 2.1", (), _recognises, _open)
