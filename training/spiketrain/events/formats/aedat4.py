"""AEDAT 4.0 of iniVation's dv: `#!AER-DAT4.0`, an IOHeader, then packets. https://docs.inivation.com

A packet is i32 stream, i32 size, and so many bytes: a FlatBuffers table, packed as one LZ4 or Zstandard frame or not
at all. In the table of an event stream there is a vector of events of 16 bytes: i64 microseconds (Unix time), i16 x,
i16 y, bool polarity, 3 bytes of padding. The first event stream is read unless `stream` names another by its number;
images, IMU and triggers are passed over.

Packed recordings need lz4 or zstandard: pip install "spikeserve[events]".
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, TypeAlias

import numpy as np

from spiketrain.events.formats.base import Contents, EventFormatError, Format, Sensor
from spiketrain.events.formats.flatbuffer import Table
from spiketrain.events.formats.source import Source
from spiketrain.events.types import Events

MAGIC = b"#!AER-DAT4.0\r\n"
MAX_HEADER = 1 << 24
MAX_PACKET = 1 << 26
"""Bytes of a packet, packed and unpacked: four million events."""

_EVENT = np.dtype(
    {
        "names": ["t", "x", "y", "p"],
        "formats": ["<i8", "<u2", "<u2", "u1"],
        "offsets": [0, 8, 10, 12],
        "itemsize": 16,
    }
)
_PACKET = struct.Struct("<ii")
_NODE = re.compile(
    r'<node name="[^"]*" path="[^"]*/outInfo/(\d+)/(info/)?">|</node>|<attr key="(typeIdentifier|sizeX|sizeY)"[^>]*>([^<]*)</attr>'
)

Unpack: TypeAlias = Callable[[bytes], bytes]


def _open(source: Source) -> Contents:
    if source.read(len(MAGIC)) != MAGIC:
        raise EventFormatError(f"the file does not begin with {MAGIC.strip().decode()}")
    prefix = source.read(4)
    length = struct.unpack("<I", prefix)[0] if len(prefix) == 4 else 0
    if length > MAX_HEADER:
        raise EventFormatError(
            f"the header says that it has {length} bytes; {MAX_HEADER} are allowed"
        )
    data = source.read(length)
    if len(prefix) < 4 or len(data) < length:
        raise EventFormatError("the file ends within its header")
    header = Table(prefix + data, b"IOHE")
    streams = _event_streams(header.text(2))
    if not streams:
        raise EventFormatError("the header names no stream of events (EVTS)")
    chosen = next(iter(streams)) if source.stream is None else source.stream
    if chosen not in streams:
        raise EventFormatError(
            f"there is no event stream {chosen!r}; there are {', '.join(streams)}"
        )
    table_at = header.integer(1, "q", -1)
    unpack = _unpacker(header.integer(0, "i", 0))
    begin = len(MAGIC) + 4 + length
    pieces = _pieces(source, int(chosen), unpack, begin, table_at if table_at > 0 else None)
    return Contents(pieces, streams[chosen])


def _event_streams(info: str) -> dict[str, Sensor | None]:
    """The streams of events that the header's XML names, by number, and their sensors' sizes."""
    streams: dict[str, dict[str, str]] = {}
    number = ""
    for match in _NODE.finditer(info):
        if match[1] is not None:
            number = match[1]
        elif match[3] is not None and number:
            # A converted recording may repeat what the original one said; the first counts.
            streams.setdefault(number, {}).setdefault(match[3], match[4])
    return {
        number: _size(values.get("sizeX", ""), values.get("sizeY", ""))
        for number, values in streams.items()
        if values.get("typeIdentifier") == "EVTS"
    }


def _size(width: str, height: str) -> Sensor | None:
    if not re.fullmatch(r"[1-9][0-9]{0,4}", width) or not re.fullmatch(r"[1-9][0-9]{0,4}", height):
        return None
    return int(width), int(height)


def _pieces(
    source: Source, stream: int, unpack: Unpack, at: int, end: int | None
) -> Iterator[Events]:
    """`at` is the position in the file, `end` that of the table behind the last packet, if there is one."""
    while end is None or at < end:
        header = source.read(_PACKET.size)
        if not header and end is None:
            return
        if len(header) < _PACKET.size:
            raise EventFormatError(
                f"the recording ends at byte {at + len(header)}: it is truncated"
            )
        number, size = _PACKET.unpack(header)
        if not 0 <= size <= MAX_PACKET:
            raise EventFormatError(
                f"the packet at byte {at} says that it has {size} bytes; up to {MAX_PACKET} are allowed: "
                "the recording is damaged there"
            )
        if number == stream:
            data = source.read(size)
            read = len(data)
        else:
            read = source.skip(size)
        if read < size:
            raise EventFormatError(
                f"the packet at byte {at} lacks {size - read} of its {size} bytes: the recording is truncated"
            )
        if number == stream:
            try:
                yield _events(unpack(data))
            except EventFormatError as error:
                raise EventFormatError(f"the packet at byte {at}: {error}") from None
        at += _PACKET.size + size


def _events(data: bytes) -> Events:
    at, count = Table(data, b"EVTS").vector(0, _EVENT.itemsize)
    records = np.frombuffer(data, _EVENT, count, at)
    return Events(
        records["t"].astype(np.int64),
        records["x"].astype(np.uint16),
        records["y"].astype(np.uint16),
        (records["p"] != 0).astype(np.uint8),
    )


def _unpacker(compression: int) -> Unpack:
    if compression == 0:
        return bytes
    if compression in (1, 2):
        lz4 = _library("lz4.frame", "LZ4")
        return lambda data: _unpack(lz4.LZ4FrameDecompressor(), data, lz4, (RuntimeError,))
    if compression in (3, 4):
        zstandard = _library("zstandard", "Zstandard")
        return lambda data: _unpack_zstd(zstandard, data)
    raise EventFormatError(f"the packets are packed by an unknown method ({compression})")


def _library(name: str, method: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise EventFormatError(
            f"the packets are packed by {method}, and the Python package {name.partition('.')[0]} is not "
            'installed: pip install "spikeserve[events]"'
        ) from None


def _unpack(
    decompressor: Any, data: bytes, library: Any, errors: tuple[type[Exception], ...]
) -> bytes:
    try:
        content: bytes = decompressor.decompress(data, max_length=MAX_PACKET)
    except errors as error:
        raise EventFormatError(f"it cannot be unpacked: {error}") from None
    if not decompressor.eof:
        raise EventFormatError(
            f"it is truncated, or unpacks to more than the allowed {MAX_PACKET} bytes"
        )
    return content


def _unpack_zstd(zstandard: Any, data: bytes) -> bytes:
    try:
        reader = zstandard.ZstdDecompressor(max_window_size=MAX_PACKET).stream_reader(data)
        content: bytes = reader.read(MAX_PACKET + 1)
    except zstandard.ZstdError as error:
        raise EventFormatError(f"it cannot be unpacked: {error}") from None
    if len(content) > MAX_PACKET:
        raise EventFormatError(f"it unpacks to more than the allowed {MAX_PACKET} bytes")
    return content


AEDAT4 = Format(
    "aedat4", "AEDAT 4.0", (".aedat4",), lambda source: source.head.startswith(b"#!AER-DAT4"), _open
)
