"""Prophesee .dat, and N-CARS: a header of `%` lines, 2 bytes (type and size of an event), then 8 bytes an event.

u32, little-endian  microseconds
u32                 14 bits x (lowest), 14 bits y, 4 bits polarity (of which the lowest counts)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spiketrain.events.formats.base import Contents, EventFormatError, Format, Sensor
from spiketrain.events.formats.clock import Clock
from spiketrain.events.formats.decoder import RecordDecoder, decoded
from spiketrain.events.formats.header import Header, prophesee_header, take_prophesee_header
from spiketrain.events.formats.source import Source
from spiketrain.events.formats.writing import checked_times, header_lines
from spiketrain.events.types import Events

EVENT_TYPES = (0x00, 0x0C)
"""Event2D (N-CARS and other old files) and EventCD: the same layout."""
EVENT_BYTES = 8


class DatDecoder(RecordDecoder):
    title = "DAT events"
    dtype = np.dtype([("t", "<u4"), ("word", "<u4")])

    def __init__(self) -> None:
        super().__init__()
        self._clock = Clock(32)

    def decode(self, records: NDArray[Any]) -> Events:
        word = records["word"]
        return Events(
            self._clock.extend(records["t"]),
            (word & 0x3FFF).astype(np.uint16),
            ((word >> 14) & 0x3FFF).astype(np.uint16),
            ((word >> 28) & 1).astype(np.uint8),
        )


def encode(events: Events, sensor: Sensor | None = None) -> bytes:
    """The events as a .dat file.

    Raises ValueError for coordinates above 16383, times below 0 or of more than 32 bits (71 minutes), and for gaps
    of more than half of that.
    """
    if len(events) and int(max(events.x.max(), events.y.max())) > 0x3FFF:
        raise ValueError("a .dat holds coordinates to 16383; write an .npz instead")
    checked_times(events, 32, "a .dat")
    records = np.empty(len(events), DatDecoder.dtype)
    records["t"] = events.t
    records["word"] = (
        events.x.astype(np.uint32)
        | (events.y.astype(np.uint32) << 14)
        | (events.p.astype(np.uint32) << 28)
    )
    lines = ["Data file containing CD events.", "Version 2"]
    if sensor is not None:
        lines += [f"Height {sensor[1]}", f"Width {sensor[0]}"]
    return header_lines(lines) + bytes([EVENT_TYPES[1], EVENT_BYTES]) + records.tobytes()


def _recognises(source: Source) -> bool:
    header = prophesee_header(source.head)
    if header is None or header.encoding is not None:
        return False
    kind = source.head[header.length : header.length + 2]
    return len(kind) == 2 and kind[0] in (*EVENT_TYPES, 0x0E, 0x28) and kind[1] == EVENT_BYTES


def _open(source: Source) -> Contents:
    header = take_prophesee_header(source)
    if header.length:
        _check(header, source.read(2))
    return Contents(decoded(source, DatDecoder()), header.sensor)


def _check(header: Header, kind: bytes) -> None:
    if header.encoding is not None:
        raise EventFormatError(f"the header says {header.encoding.upper()}, which is no DAT file")
    if header.fields.get("version", "2") in ("0", "1"):
        raise EventFormatError(
            f"this is version {header.fields['version']} of DAT, which packs coordinates otherwise; "
            "version 2 is read"
        )
    if len(kind) < 2:
        raise EventFormatError("the file ends before the type and size of its events")
    if kind[0] not in EVENT_TYPES or kind[1] != EVENT_BYTES:
        raise EventFormatError(
            f"the file holds records of type {kind[0]:#04x} with {kind[1]} bytes; read are "
            f"{EVENT_BYTES}-byte events of type 0x00 (2D) and 0x0c (CD)"
        )


DAT = Format("dat", "Prophesee DAT, N-CARS", (".dat",), _recognises, _open)
