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

from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spiketrain.events.formats import evt3_native
from spiketrain.events.formats.base import Contents, Format
from spiketrain.events.formats.clock import Clock
from spiketrain.events.formats.decoder import RecordDecoder, decoded
from spiketrain.events.formats.header import prophesee_header, take_prophesee_header
from spiketrain.events.formats.source import Source
from spiketrain.events.native import loops
from spiketrain.events.types import Events, Int64s

ADDR_Y, ADDR_X, VECT_BASE_X, VECT_12, VECT_8, TIME_LOW, TIME_HIGH = 0, 2, 3, 4, 5, 6, 8
MAX_X = 0x7FF
_UNKNOWN = 0xFFFF
"""An x or y that has not been said yet."""
_NO_TIME = -(1 << 62)
"""Other times may be negative: an event from before the first wrap that was seen."""

_MASKS = np.arange(1 << 12)
_COUNTS = ((_MASKS[:, None] >> np.arange(12)) & 1).sum(axis=1).astype(np.intp)
"""How many bits are set in a mask of 12."""
_STARTS = np.cumsum(_COUNTS) - _COUNTS
_BITS = np.nonzero((_MASKS[:, None] >> np.arange(12)) & 1)[1].astype(np.uint16)
"""Which they are: those of mask m stand from _STARTS[m] on."""


class _Vectors(NamedTuple):
    """The words VECT_12 and VECT_8: where they are among the carrying words [V], and what they say."""

    which: Int64s
    x: NDArray[np.uint16]
    p: NDArray[np.uint8]
    masks: NDArray[np.uint16]


class Evt3Decoder(RecordDecoder):
    title = "EVT 3.0 words"
    dtype = np.dtype("<u2")
    block = 1 << 16
    MEMORY: ClassVar[dict[str, Any]] = RecordDecoder.MEMORY | {
        "_clock": Clock,
        "_high": int,
        "_time": int,
        "_y": int,
        "_base": int,
        "_base_polarity": int,
    }

    def __init__(self) -> None:
        super().__init__()
        self._clock = Clock(12)
        self._high = self._time = _NO_TIME
        self._y = self._base = _UNKNOWN
        self._base_polarity = 0

    def decode(self, records: NDArray[Any]) -> Events:
        if (compiled := loops()) is not None:
            return self._decode_compiled(compiled, records)
        kind = (records >> 12).astype(np.uint8)
        vector = (kind == VECT_12) | (kind == VECT_8)
        unsure = self._time == _NO_TIME or self._y == _UNKNOWN
        if not unsure and (self._base <= MAX_X or not vector.any()):
            state = self._time, self._y, self._base & MAX_X, self._base_polarity
            if (found := evt3_native.decode(records, kind, *state)) is not None:
                self._pass_over(records, kind)
                return found
        at = np.flatnonzero((kind == ADDR_X) | vector)
        t = self._times(records, kind, at)
        y = self._rows(records, kind, at)
        words = records[at]
        x = words & MAX_X
        p = ((words >> 11) & 1).astype(np.uint8)
        vectors = self._vectors(records, kind, vector, at)
        if vectors is None:
            events = Events(t, x.astype(np.uint16, copy=False), y, p)
            return events[(t != _NO_TIME) & (y != _UNKNOWN)] if unsure else events
        x[vectors.which], p[vectors.which] = vectors.x, vectors.p
        return _spread(vectors, Events(t, x.astype(np.uint16, copy=False), y, p))

    def _decode_compiled(self, compiled: Any, records: NDArray[Any]) -> Events:
        """As below, in one loop over the words."""
        state = np.array(
            [self._high, self._time, self._y, self._base, self._base_polarity, *self._clock.state]
        )
        # A vector has 12 events at most.
        kind = records >> 12
        most = int(np.count_nonzero(kind == ADDR_X))
        most += 12 * int(np.count_nonzero((kind == VECT_12) | (kind == VECT_8)))
        t = np.empty(most, np.int64)
        x, y = np.empty(most, np.uint16), np.empty(most, np.uint16)
        p = np.empty(most, np.uint8)
        n = compiled.decode_evt3(records, state, _UNKNOWN, _NO_TIME, (t, x, y, p))
        self._high, self._time, self._y, self._base, self._base_polarity = state[:5].tolist()
        self._clock.state = int(state[5]), int(state[6])
        return Events(t[:n], x[:n], y[:n], p[:n])

    def _pass_over(self, records: NDArray[Any], kind: NDArray[np.uint8]) -> None:
        """The state behind these words, when their events are already decoded and their TIME_HIGH never fall."""
        kinds = kind.tobytes()
        low_at, high_at = kinds.rfind(TIME_LOW), kinds.rfind(TIME_HIGH)
        low = self._time & 0xFFF if low_at < 0 else int(records[low_at]) & 0xFFF
        if high_at >= 0:
            before = kinds.rfind(TIME_HIGH, 0, max(low_at, 0))
            then = int(records[before]) & 0xFFF if before >= 0 else (self._high >> 12) & 0xFFF
            last = records[high_at : high_at + 1] & 0xFFF
            if high_at > low_at and int(last[0]) != then:
                low = 0
            self._high = int(self._clock.extend(last)[0]) << 12
        self._time = self._high + low
        if (row := kinds.rfind(ADDR_Y)) >= 0:
            self._y = int(records[row]) & 0x7FF
        if (base := kinds.rfind(VECT_BASE_X)) >= 0:
            word = int(records[base])
            self._base, self._base_polarity = word & MAX_X, (word >> 11) & 1
        moved = 12 * kinds.count(VECT_12, base + 1) + 8 * kinds.count(VECT_8, base + 1)
        if self._base != _UNKNOWN:
            self._base = min(self._base + moved, MAX_X + 1)

    def _times(self, records: NDArray[Any], kind: NDArray[np.uint8], at: Int64s) -> Int64s:
        """The time in force at each position."""
        is_timed = (kind == TIME_HIGH) | (kind == TIME_LOW)
        places = np.flatnonzero(is_timed)
        if not len(places):
            return np.full(len(at), self._time, np.int64)
        value = records[places] & 0xFFF
        is_high = kind[places] == TIME_HIGH
        high = np.empty(int(np.count_nonzero(is_high)) + 1, np.int64)
        high[0] = self._high
        np.left_shift(self._clock.extend(value[is_high]), 12, out=high[1:])
        # A TIME_LOW says the lower bits, a new TIME_HIGH sets them to 0, and a repeated one leaves them alone.
        sets = ~is_high
        sets[is_high] = high[1:] != high[:-1]
        low = np.empty(int(np.count_nonzero(sets)) + 1, np.int64)
        low[0] = 0 if self._time == _NO_TIME else self._time & 0xFFF
        low[1:] = np.where(is_high[sets], 0, value[sets])
        t = np.empty(len(places) + 1, np.int64)
        t[0] = self._time
        upper = high[np.cumsum(is_high, dtype=np.int32)]
        np.add(upper, low[np.cumsum(sets, dtype=np.int32)], out=t[1:])
        if self._high == _NO_TIME:
            t[1:][upper == _NO_TIME] = _NO_TIME
        self._high, self._time = int(high[-1]), int(t[-1])
        return t[np.cumsum(is_timed, dtype=np.int32)[at]]

    def _rows(
        self, records: NDArray[Any], kind: NDArray[np.uint8], at: Int64s
    ) -> NDArray[np.uint16]:
        """The y in force at each position."""
        is_row = kind == ADDR_Y
        places = np.flatnonzero(is_row)
        y = np.empty(len(places) + 1, np.uint16)
        y[0] = self._y
        y[1:] = records[places] & 0x7FF
        self._y = int(y[-1])
        return y[np.cumsum(is_row, dtype=np.int32)[at]]

    def _vectors(
        self,
        records: NDArray[Any],
        kind: NDArray[np.uint8],
        vector: NDArray[np.bool_],
        at: Int64s,
    ) -> _Vectors | None:
        """None if there are none."""
        is_base = kind == VECT_BASE_X
        places, bases = np.flatnonzero(vector), np.flatnonzero(is_base)
        base = np.concatenate([[self._base], records[bases] & MAX_X]).astype(np.int64)
        polarity = np.concatenate([[self._base_polarity], (records[bases] >> 11) & 1]).astype(
            np.uint8
        )
        is_eight = kind[places] == VECT_8
        width = np.where(is_eight, 8, 12)
        moved = np.concatenate([[0], np.cumsum(width)])
        # By how much x had moved on in this block before each base; from there on it counts from the base.
        before = np.concatenate([[0], moved[np.searchsorted(places, bases)]])
        of = np.cumsum(is_base, dtype=np.int32)[places]
        known = base[of] != _UNKNOWN
        x = base[of] + moved[:-1] - before[of]
        if base[-1] != _UNKNOWN:
            # Beyond any sensor it need not be counted on.
            self._base = min(int(base[-1] + moved[-1] - before[-1]), MAX_X + 1)
        self._base_polarity = int(polarity[-1])
        if not len(places):
            return None
        allowed = np.where(is_eight, 0xFF, 0xFFF).astype(np.uint16)
        masks = np.bitwise_and(records[places], allowed).astype(np.uint16)
        masks[~known] = 0
        return _Vectors(
            np.flatnonzero(vector[at]),
            np.minimum(x, MAX_X + 1).astype(np.uint16),
            polarity[of],
            masks,
        )


def _spread(vectors: _Vectors, words: Events) -> Events:
    """One event for each word, but for each vector one for each bit that it has set."""
    counts = np.ones(len(words), np.intp)
    counts[vectors.which] = _COUNTS[vectors.masks]
    counts[(words.t == _NO_TIME) | (words.y == _UNKNOWN)] = 0
    each = counts[vectors.which]
    firsts = np.cumsum(counts) - counts
    events = words[np.repeat(np.arange(len(words)), counts)]
    rank = np.arange(int(each.sum())) - np.repeat(np.cumsum(each) - each, each)
    bits = _BITS[np.repeat(_STARTS[vectors.masks], each) + rank]
    events.x[np.repeat(firsts[vectors.which], each) + rank] += bits
    inside = events.x <= MAX_X
    return events if inside.all() else events[inside]


def _recognises(source: Source) -> bool:
    header = prophesee_header(source.head)
    return header is not None and header.encoding == "evt3"


def _open(source: Source) -> Contents:
    header = take_prophesee_header(source)
    return Contents(decoded(source, Evt3Decoder()), header.sensor)


EVT3 = Format("evt3", "Prophesee EVT 3.0", (), _recognises, _open)
