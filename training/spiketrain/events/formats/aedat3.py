"""AEDAT 3.1 of cAER and DVS128 Gesture: lines that begin with `#` up to `#!END-HEADER`, then packets.

A packet is a header of 28 bytes, little-endian: u16 type, u16 source, u32 size of an event, u32 offset of its
timestamp, u32 timestamp overflows, u32 capacity, u32 number, u32 number valid; then the events. Those of type 1,
polarity, are read, from the first camera that has them unless `stream` names another source; other packets are
passed over. An event is

u32  bit 0 valid, bit 1 polarity (1 = ON), bits 2-16 y, bits 17-31 x
u32  31 bits microseconds, to which the packet's overflow count adds the upper bits

Invalid events are left out. libcaer's packets in ROS messages have the same 8 bytes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spiketrain.events.formats.base import Contents, EventFormatError, Format, Sensor
from spiketrain.events.formats.source import BLOCK, HEAD, Source
from spiketrain.events.types import Events, Int64s

MAGIC = b"#!AER-DAT3"
END = b"#!END-HEADER\r\n"
WORDS = np.dtype([("data", "<u4"), ("t", "<u4")])
TIME_BITS = 31
_POLARITY = 1
_LAST_TYPE = 0x7FFF
_PACKET = struct.Struct("<HHIIIIII")
_SOURCE = re.compile(rb"(?m)^#Source (\d+): *([A-Za-z]+)[^0-9\r\n]*(\d{3,4})?")
_SIZES: dict[bytes, Sensor] = {b"128": (128, 128), b"240": (240, 180), b"346": (346, 260)}


def word_fields(
    data: NDArray[Any],
) -> tuple[NDArray[np.uint16], NDArray[np.uint16], NDArray[np.uint8]]:
    """x, y and p of the first of an event's two words."""
    return (
        (data >> 17).astype(np.uint16),
        ((data >> 2) & 0x7FFF).astype(np.uint16),
        ((data >> 1) & 1).astype(np.uint8),
    )


def words_to_events(words: NDArray[Any], t: Int64s) -> Events:
    """Words [N] of WORDS with their times in 64 bits; those marked invalid are left out."""
    events = Events(t, *word_fields(words["data"]))
    valid = (words["data"] & 1).astype(np.bool_)
    return events if valid.all() else events[valid]


class _Packet(NamedTuple):
    kind: int
    source: int
    event_bytes: int
    time_offset: int
    overflows: int
    capacity: int
    number: int
    valid: int


def _pieces(source: Source, wanted: int | None) -> Iterator[Events]:
    packets = 0
    while header := source.read(_PACKET.size):
        if len(header) < _PACKET.size:
            raise EventFormatError(
                f"after packet {packets} there are {len(header)} of a packet header's {_PACKET.size} bytes: "
                "the recording is truncated"
            )
        packet = _Packet(*_PACKET.unpack(header))
        if packet.kind > _LAST_TYPE or not packet.event_bytes:
            raise EventFormatError(
                f"packet {packets} has type {packet.kind} and events of {packet.event_bytes} bytes, which no "
                "camera writes: the recording is damaged there"
            )
        if packet.kind == _POLARITY and wanted in (None, packet.source):
            wanted = packet.source
            yield from _events(source, packet, packets)
        elif source.skip(length := packet.event_bytes * packet.number) < length:
            raise EventFormatError(f"packet {packets} is truncated")
        packets += 1


def _events(source: Source, packet: _Packet, index: int) -> Iterator[Events]:
    if packet.event_bytes != WORDS.itemsize or packet.overflows >> TIME_BITS:
        raise EventFormatError(
            f"packet {index} has polarity events of {packet.event_bytes} bytes and {packet.overflows} overflows; "
            f"events have {WORDS.itemsize} bytes: the recording is damaged there"
        )
    left = packet.number * WORDS.itemsize
    while left:
        data = source.read(min(left, BLOCK))
        words = np.frombuffer(data, WORDS, len(data) // WORDS.itemsize)
        t = (words["t"] & 0x7FFFFFFF).astype(np.int64)
        t += packet.overflows << TIME_BITS
        yield words_to_events(words, t)
        if len(data) < min(left, BLOCK):
            raise EventFormatError(
                f"packet {index} lacks {left - len(data)} of its {packet.number * WORDS.itemsize} bytes: "
                "the recording is truncated"
            )
        left -= len(data)


def _open(source: Source) -> Contents:
    end = source.head.find(END)
    if not source.head.startswith(MAGIC + b".1") or end < 0:
        raise EventFormatError(
            f"the file has no AEDAT 3.1 header that ends with {END.strip().decode()} within {HEAD} bytes"
        )
    header = source.head[:end]
    if b"#Format: " in header and b"#Format: RAW" not in header:
        raise EventFormatError("the packets are compressed; AEDAT 3.1 is read with `#Format: RAW`")
    source.take_head(end + len(END))
    wanted = None
    if source.stream is not None:
        if not source.stream.isdecimal():
            raise EventFormatError(f"stream {source.stream!r} is no AEDAT 3.1 source number")
        wanted = int(source.stream)
    sensors = {int(number): _SIZES.get(size) for number, _, size in _SOURCE.findall(header)}
    known = sensors.get(wanted) if wanted is not None else None
    if wanted is None and len(set(sensors.values())) == 1:
        known = next(iter(sensors.values()))
    return Contents(_pieces(source, wanted), known)


AEDAT3 = Format("aedat3", "AEDAT 3.1", (), lambda source: source.head.startswith(MAGIC), _open)
