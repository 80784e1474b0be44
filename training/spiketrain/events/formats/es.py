"""Event Stream 2 of a DVS: `Event Stream`, version (3 bytes), type 1, width and height (u16 each), then events.

An event is 5 bytes: time since the last one (7 bits) and polarity (lowest bit), x and y (u16 each, little-endian).
A byte 0xFF in place of an event lets 127 microseconds pass, 0xFE nothing. https://github.com/neuromorphicsystems
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from spiketrain.events.formats.base import Contents, EventFormatError, Format, Sensor
from spiketrain.events.formats.decoder import Decoder, decoded
from spiketrain.events.formats.source import Source
from spiketrain.events.types import Events, Int64s

MAGIC = b"Event Stream"
TYPES = {0: "generic", 1: "DVS", 2: "ATIS", 3: "colour"}
_HEADER = 20
_EVENT = 5
_PAUSE = 0xFE
"""Bytes from here on are no event's first byte: 0xFE and 0xFF."""
_PAUSE_US = 127


class EsDecoder(Decoder):
    def __init__(self, sensor: Sensor) -> None:
        self._sensor = sensor
        self._rest = b""
        self._t = 0
        self._fed = 0

    def feed(self, data: bytes) -> Events:
        data = self._rest + data
        self._fed += len(data) - len(self._rest)
        octets = np.frombuffer(data, np.uint8)
        pauses, end = _pauses(octets)
        starts = _event_starts(pauses, end)
        self._rest = data[end:]
        t = self._times(octets, pauses, starts)
        low = octets[starts + 1].astype(np.uint16), octets[starts + 3].astype(np.uint16)
        x = low[0] | (octets[starts + 2].astype(np.uint16) << 8)
        y = low[1] | (octets[starts + 4].astype(np.uint16) << 8)
        p = (octets[starts] & 1).astype(np.uint8)
        events = Events(t, x.astype(np.uint16, copy=False), y.astype(np.uint16, copy=False), p)
        outside = (x >= self._sensor[0]) | (y >= self._sensor[1])
        if outside.any():
            # Lengths vary, so that behind a fault nothing can be trusted.
            first = int(np.argmax(outside))
            raise EventFormatError(
                f"an event at ({x[first]}, {y[first]}) is outside the sensor of "
                f"{self._sensor[0]}x{self._sensor[1]} pixels: the file is damaged",
                first,
                events[:first],
            )
        return events

    def finish(self) -> None:
        if self._rest:
            raise EventFormatError(
                f"the recording ends with {len(self._rest)} of an event's {_EVENT} bytes: it is truncated"
            )

    def _times(self, octets: NDArray[np.uint8], pauses: Int64s, starts: Int64s) -> Int64s:
        passed = np.concatenate([[0], np.cumsum(octets[pauses] & 1, dtype=np.int64) * _PAUSE_US])
        t = np.cumsum(octets[starts] >> 1, dtype=np.int64)
        total = int(passed[-1]) + (int(t[-1]) if len(t) else 0)
        t += passed[np.searchsorted(pauses, starts)]
        t += self._t
        self._t += total
        return t


def _pauses(octets: NDArray[np.uint8]) -> tuple[Int64s, int]:
    """The positions of the bytes 0xFE and 0xFF that stand where an event would begin; and where the last whole event ends.

    Such a byte may also be part of an x or y. From an event's start on, the next pause is the first such byte at
    a multiple of 5 bytes. For every candidate that next one is found at once; then the chain is followed.
    """
    candidates = np.flatnonzero(octets >= _PAUSE)
    following = np.full(len(candidates) + 1, len(candidates))
    begins = np.append(candidates + 1, 0)
    for phase in range(_EVENT):
        of_phase = np.flatnonzero(candidates % _EVENT == phase)
        asking = np.flatnonzero(begins % _EVENT == phase)
        index = np.searchsorted(candidates[of_phase], begins[asking])
        following[asking] = np.append(of_phase, len(candidates))[index]
    steps: list[int] = following.tolist()
    chain: list[int] = []
    at = steps[-1]
    while at < len(candidates):
        chain.append(at)
        at = steps[at]
    pauses: Int64s = candidates[np.array(chain, np.int64)]
    begin = int(pauses[-1]) + 1 if len(pauses) else 0
    return pauses, len(octets) - (len(octets) - begin) % _EVENT


def _event_starts(pauses: Int64s, end: int) -> Int64s:
    """The positions of the first bytes of the whole events between the pauses."""
    begins = np.append(0, pauses + 1)
    counts = (np.append(pauses, end) - begins) // _EVENT
    before = np.cumsum(counts) - counts
    return np.repeat(begins - before * _EVENT, counts) + np.arange(int(counts.sum())) * _EVENT


def encode(events: Events, sensor: Sensor) -> bytes:
    """The events as an .es file. Raises ValueError for times that fall or begin below 0, or events off the sensor."""
    if len(events) and (not events.is_sorted() or int(events.t[0]) < 0):
        raise ValueError("an .es holds times from 0 on that never fall: sort the events first")
    if len(events) and (events.x.max() >= sensor[0] or events.y.max() >= sensor[1]):
        raise ValueError(f"there are events outside the sensor of {sensor[0]}x{sensor[1]} pixels")
    passed = np.diff(events.t, prepend=0)
    pauses = passed // _PAUSE_US
    if int(pauses.sum()) > 1 << 28:
        raise ValueError("the pauses would take more than 256 MiB: write an .npz instead")
    at = np.arange(len(events)) * _EVENT + np.cumsum(pauses)
    octets = np.full(int(pauses.sum()) + _EVENT * len(events), 0xFF, np.uint8)
    octets[at] = (passed % _PAUSE_US) << 1 | events.p
    for place, value in ((1, events.x), (3, events.y)):
        octets[at + place] = value & 0xFF
        octets[at + place + 1] = value >> 8
    return MAGIC + bytes([2, 0, 0, 1]) + struct.pack("<HH", *sensor) + octets.tobytes()


def _open(source: Source) -> Contents:
    header = source.read(_HEADER)
    if len(header) < 16 or not header.startswith(MAGIC):
        raise EventFormatError(f"the file does not begin with {MAGIC.decode()!r}, or ends there")
    version, kind = tuple(header[12:15]), header[15]
    if version[0] != 2:
        raise EventFormatError(f"this is Event Stream {'.'.join(map(str, version))}; 2 is read")
    if kind != 1:
        raise EventFormatError(
            f"the file holds {TYPES.get(kind, f'unknown ({kind})')} events; DVS events are read"
        )
    if len(header) < _HEADER:
        raise EventFormatError("the file ends within its header")
    sensor: Sensor = struct.unpack("<HH", header[16:])
    return Contents(decoded(source, EsDecoder(sensor)), sensor)


ES = Format("es", "Event Stream", (".es",), lambda source: source.head.startswith(MAGIC), _open)
