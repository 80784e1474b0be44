"""Prophesee EVT 2.0: 32-bit words, little-endian. https://docs.prophesee.ai/stable/data/encoding_formats/evt2.html

bits 31-28  0 OFF event, 1 ON event: 6 bits time (lowest), 11 bits x, 11 bits y
            8 TIME_HIGH: 28 bits, the time in units of 64 microseconds
            all others carry no events and are passed over

Events before the first TIME_HIGH have no known time and are left out.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from spiketrain.events.formats.base import Contents, Format, Sensor
from spiketrain.events.formats.clock import Clock
from spiketrain.events.formats.decoder import RecordDecoder, decoded
from spiketrain.events.formats.header import prophesee_header, take_prophesee_header
from spiketrain.events.formats.source import Source
from spiketrain.events.formats.writing import checked_times, header_lines
from spiketrain.events.memory import Remembers
from spiketrain.events.types import Events, Int64s

TIME_HIGH = 8
LOW_BITS = 6
HIGH_BITS = 28
TIME_BITS = LOW_BITS + HIGH_BITS


class HighTime(Remembers):
    """The upper bits of the time, which hold from one TIME_HIGH word to the next."""

    MEMORY: ClassVar[dict[str, Any]] = {"_clock": Clock, "_base": int | None}

    def __init__(self) -> None:
        self._clock = Clock(HIGH_BITS)
        self._base: int | None = None

    def of(self, events: Int64s, highs: Int64s, values: NDArray[Any]) -> tuple[int, Int64s]:
        """The base time of the words at positions `events` [N], given the TIME_HIGH words at `highs` and their values.

        Returns how many of the first of them come before any TIME_HIGH, and the times of the others.
        """
        bases = np.empty(len(highs) + 1, np.int64)
        bases[0] = 0 if self._base is None else self._base
        np.left_shift(self._clock.extend(values), LOW_BITS, out=bases[1:])
        cuts = np.empty(len(highs) + 2, np.int64)
        cuts[0], cuts[-1] = 0, len(events)
        cuts[1:-1] = np.searchsorted(events, highs)
        unknown = int(cuts[1]) if self._base is None else 0
        if len(highs):
            self._base = int(bases[-1])
        return unknown, np.repeat(bases, np.diff(cuts))[unknown:]


class Evt2Decoder(RecordDecoder):
    title = "EVT 2.0 words"
    dtype = np.dtype("<u4")
    MEMORY: ClassVar[dict[str, Any]] = RecordDecoder.MEMORY | {"_high": HighTime}

    def __init__(self) -> None:
        super().__init__()
        self._high = HighTime()

    def decode(self, records: NDArray[Any]) -> Events:
        kind = (records >> 28).astype(np.uint8)
        highs = np.flatnonzero(kind == TIME_HIGH)
        where = np.flatnonzero(kind < 2)
        unknown, t = self._high.of(where, highs, records[highs] & np.uint32((1 << HIGH_BITS) - 1))
        where = where[unknown:]
        words = records[where]
        t += (words >> 22) & 0x3F
        return Events(
            t,
            ((words >> 11) & 0x7FF).astype(np.uint16),
            (words & 0x7FF).astype(np.uint16),
            kind[where],
        )


def encode(events: Events, sensor: Sensor | None = None) -> bytes:
    """The events as an EVT 2.0 .raw file.

    Raises ValueError for coordinates above 2047, times below 0 or of more than 34 bits (4.7 hours), and for
    gaps between events of more than half of that, which a reader would take for a wrap of the clock.
    """
    if len(events) and int(max(events.x.max(), events.y.max())) > 0x7FF:
        raise ValueError("EVT 2.0 holds coordinates to 2047; write an .npz instead")
    checked_times(events, TIME_BITS, "EVT 2.0")
    high = events.t >> LOW_BITS
    new = np.ones(len(events), np.bool_)
    new[1:] = high[1:] != high[:-1]
    at = np.arange(len(events)) + np.cumsum(new)
    words = np.empty(len(events) + int(new.sum()), "<u4")
    words[at] = (
        (events.p.astype(np.uint32) << 28)
        | ((events.t & 0x3F).astype(np.uint32) << 22)
        | (events.x.astype(np.uint32) << 11)
        | events.y
    )
    words[at[new] - 1] = np.uint32(TIME_HIGH << 28) | high[new].astype(np.uint32)
    lines = ["evt 2.0"]
    if sensor is not None:
        lines += [
            f"format EVT2;height={sensor[1]};width={sensor[0]}",
            "geometry {}x{}".format(*sensor),
        ]
    return header_lines([*lines, "end"]) + words.tobytes()


def _recognises(source: Source) -> bool:
    header = prophesee_header(source.head)
    return header is not None and header.encoding == "evt2"


def _open(source: Source) -> Contents:
    header = take_prophesee_header(source)
    return Contents(decoded(source, Evt2Decoder()), header.sensor)


EVT2 = Format("evt2", "Prophesee EVT 2.0", (".raw",), _recognises, _open)
