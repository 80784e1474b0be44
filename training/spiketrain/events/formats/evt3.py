"""Prophesee EVT 3.0: 16-bit words, little-endian. https://docs.prophesee.ai/stable/data/encoding_formats/evt3.html

bits 15-12  0 ADDR_Y        y of the events that follow (11 bits)
            2 ADDR_X        one event: polarity (1 bit), x (11 bits)
            3 VECT_BASE_X   polarity (1 bit) and x (11 bits) of the vectors that follow
            4 VECT_12       events at those of 12 pixels from x on whose bit is set; x moves on by 12
            5 VECT_8        the same with 8
            6 TIME_LOW      lower 12 bits of the time in microseconds
            8 TIME_HIGH     upper 12 bits; it wraps every 16.8 s
            all others carry no events and are passed over

A TIME_HIGH that changes the upper bits sets the lower ones to 0 until a TIME_LOW comes; one that repeats them changes
nothing. That is what Prophesee's own decoder does. Events without a known time, y or vector base, as at the beginning
of a stream that was joined in the middle, are left out, and so are those that a vector places beyond x = 2047.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spiketrain.events.formats.base import Contents, Format
from spiketrain.events.formats.clock import Clock
from spiketrain.events.formats.decoder import RecordDecoder, decoded
from spiketrain.events.formats.header import prophesee_header, take_prophesee_header
from spiketrain.events.formats.source import Source
from spiketrain.events.types import Events, Int64s

ADDR_Y, ADDR_X, VECT_BASE_X, VECT_12, VECT_8, TIME_LOW, TIME_HIGH = 0, 2, 3, 4, 5, 6, 8
MAX_X = 0x7FF
_UNKNOWN = -1
_NO_TIME = -(1 << 62)
"""Other times may be negative: an event from before the first wrap that was seen."""

_MASKS = np.arange(1 << 12)
_COUNTS = sum((_MASKS >> bit) & 1 for bit in range(12)).astype(np.uint8)
"""How many bits are set in a mask of 12."""
_STARTS = np.cumsum(_COUNTS, dtype=np.int64) - _COUNTS
_BITS = np.nonzero((_MASKS[:, None] >> np.arange(12)) & 1)[1].astype(np.uint16)
"""Which they are: those of mask m stand from _STARTS[m] on."""


class _Words(NamedTuple):
    """The words that carry events: their positions [N], and what they say."""

    at: Int64s
    words: NDArray[np.uint16]
    kind: NDArray[np.uint8]


class Evt3Decoder(RecordDecoder):
    title = "EVT 3.0 words"
    dtype = np.dtype("<u2")

    def __init__(self) -> None:
        super().__init__()
        self._clock = Clock(12)
        self._high = self._time = _NO_TIME
        self._y = self._base = _UNKNOWN
        self._base_polarity = 0

    def decode(self, records: NDArray[Any]) -> Events:
        kind = (records >> 12).astype(np.uint8)
        vectors = (kind == VECT_12) | (kind == VECT_8)
        at = np.flatnonzero((kind == ADDR_X) | vectors)
        carrying = _Words(at, records[at], kind[at])
        t = self._times(records, kind, at)
        y = self._rows(records, kind, at)
        known = (t != _NO_TIME) & (y != _UNKNOWN)
        if bool(vectors.any()):
            x, p = self._bases(records, kind, vectors, carrying)
            known &= x != _UNKNOWN
            return _spread(carrying, t, x, y, p, known)
        self._keep_base(records, np.flatnonzero(kind == VECT_BASE_X))
        words = carrying.words
        x = words & MAX_X
        p = ((words >> 11) & 1).astype(np.uint8)
        events = Events(t, x, y.astype(np.uint16), p)
        return events if known.all() else events[known]

    def _times(self, records: NDArray[Any], kind: NDArray[np.uint8], at: Int64s) -> Int64s:
        """The time in force at each position."""
        highs = kind == TIME_HIGH
        timed = highs | (kind == TIME_LOW)
        places = np.flatnonzero(timed)
        if not len(places):
            return np.full(len(at), self._time, np.int64)
        value = (records[places] & 0xFFF).astype(np.int64)
        is_high = highs[places]
        upper = self._clock.extend(value[is_high]) << 12
        high = np.concatenate([[self._high], upper])[np.cumsum(is_high)]
        # A TIME_LOW says the lower bits, a new TIME_HIGH sets them to 0, and a repeated one leaves them alone.
        new = high != np.concatenate([[self._high], high[:-1]])
        setting = np.flatnonzero(~is_high | new)
        low = np.where(is_high, 0, value)
        since = np.cumsum(~is_high | new)
        before = self._time & 0xFFF if self._time != _NO_TIME else 0
        t = np.empty(len(places) + 1, np.int64)
        t[0] = self._time
        t[1:] = np.where(
            high == _NO_TIME, _NO_TIME, high | np.concatenate([[before], low[setting]])[since]
        )
        self._high, self._time = int(high[-1]), int(t[-1])
        return t[np.cumsum(timed, dtype=np.int32)[at]]

    def _rows(self, records: NDArray[Any], kind: NDArray[np.uint8], at: Int64s) -> NDArray[Any]:
        """The y in force at each position."""
        addressed = kind == ADDR_Y
        places = np.flatnonzero(addressed)
        y = np.empty(len(places) + 1, np.int16)
        y[0] = self._y
        y[1:] = records[places] & 0x7FF
        self._y = int(y[-1])
        return y[np.cumsum(addressed, dtype=np.int32)[at]]

    def _bases(
        self,
        records: NDArray[Any],
        kind: NDArray[np.uint8],
        vectors: NDArray[np.bool_],
        carrying: _Words,
    ) -> tuple[Int64s, NDArray[np.uint8]]:
        """x of each carrying word (of a vector's first pixel) and its polarity."""
        width = np.where(carrying.kind == ADDR_X, 0, np.where(carrying.kind == VECT_12, 12, 8))
        moved = np.cumsum(width) - width
        places = np.flatnonzero(kind == VECT_BASE_X)
        words = records[places]
        base = np.concatenate([[self._base], words & MAX_X]).astype(np.int64)
        polarity = np.concatenate([[self._base_polarity], (words >> 11) & 1]).astype(np.uint8)
        # How far vectors had moved in this block before each base.
        before = np.searchsorted(carrying.at, places)
        total = int(moved[-1] + width[-1]) if len(moved) else 0
        offset = np.concatenate([[0], np.append(moved, total)[before]])
        of = np.searchsorted(places, carrying.at)
        x = np.where(base[of] == _UNKNOWN, _UNKNOWN, base[of] + moved - offset[of])
        if base[-1] != _UNKNOWN:
            # Far beyond any sensor it need not be counted on.
            self._base = min(int(base[-1]) + total - int(offset[-1]), MAX_X + 1)
        self._base_polarity = int(polarity[-1])
        single = carrying.kind == ADDR_X
        x = np.where(single, carrying.words & MAX_X, x)
        return x, np.where(single, (carrying.words >> 11) & 1, polarity[of]).astype(np.uint8)

    def _keep_base(self, records: NDArray[Any], places: Int64s) -> None:
        if len(places):
            word = int(records[places[-1]])
            self._base, self._base_polarity = word & MAX_X, (word >> 11) & 1


def _spread(
    carrying: _Words,
    t: Int64s,
    x: Int64s,
    y: NDArray[Any],
    p: NDArray[np.uint8],
    known: NDArray[np.bool_],
) -> Events:
    """One event for each bit that a vector has set."""
    masks = carrying.words & np.where(carrying.kind == VECT_8, 0xFF, 0xFFF)
    masks = np.where(carrying.kind == ADDR_X, 1, masks)
    masks[~known] = 0
    counts = _COUNTS[masks]
    of = np.repeat(np.arange(len(masks)), counts)
    ends = np.cumsum(counts, dtype=np.int64)
    rank = np.arange(len(of)) - (ends - counts)[of]
    x = x[of] + _BITS[_STARTS[masks][of] + rank]
    events = Events(t[of], x.astype(np.uint16), y.astype(np.uint16)[of], p[of])
    return events if not len(x) or int(x.max()) <= MAX_X else events[x <= MAX_X]


def _recognises(source: Source) -> bool:
    header = prophesee_header(source.head)
    return header is not None and header.encoding == "evt3"


def _open(source: Source) -> Contents:
    header = take_prophesee_header(source)
    return Contents(decoded(source, Evt3Decoder()), header.sensor)


EVT3 = Format("evt3", "Prophesee EVT 3.0", (), _recognises, _open)
