"""What soak_traffic.py is made of: the server's keys, pictures and packets of events, from their number."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from spikeserve.access.keys import KeyEntry, KeyFile, Scope, digest, new_key, write_keys
from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spiketrain.events import wire
from spiketrain.events.types import Events

SENSOR = 34
PACKET_US = 10_000
_SCOPES: tuple[Scope, ...] = ("classify", "stream", "metrics", "admin")


class Keys:
    """The server's file of keys: one that stays, and three that are renamed and replaced one after the other."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.constant = new_key()
        self._others: list[tuple[str, str]] = []
        self.changes = itertools.count(1)
        self.turn()

    @property
    def current(self) -> str:
        """The youngest but one: it has been in the file for a whole turn, so the server has seen it."""
        return self._others[-2][1] if len(self._others) > 1 else self.constant

    def turn(self) -> None:
        self._others = [*self._others[-2:], (f"guest-{next(self.changes)}", new_key())]
        given = [("constant", self.constant), *self._others]
        entries = [KeyEntry(name=name, sha256=digest(key), scopes=_SCOPES) for name, key in given]
        write_keys(self._path, KeyFile(keys=tuple(entries)))


def bomb(width: int, height: int) -> bytes:
    """A PNG file that says it is so large, without the pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (
        chunk(b"IHDR", header),
        chunk(b"IDAT", zlib.compress(bytes(1000))),
        chunk(b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def picture(seed: int) -> bytes:
    source = np.random.default_rng(seed)
    height, width = source.integers(20, 300, 2)
    kind = ("PNG", "JPEG", "WEBP", "BMP", "GIF")[seed % 5]
    file = io.BytesIO()
    shape = (height, width) if kind == "GIF" or seed % 2 else (height, width, 3)
    Image.fromarray(source.integers(0, 256, shape, np.uint8)).save(file, kind)
    return file.getvalue()


def packet(number: int) -> pb.EventMessage:
    """PACKET_US of noise, the stream's packet of this number, from 0."""
    source = np.random.default_rng(number)
    count = int(source.integers(20, 200))
    events = Events(
        np.sort(source.integers(0, PACKET_US, count)) + number * PACKET_US,
        source.integers(0, SENSOR, count).astype(np.uint16),
        source.integers(0, SENSOR, count).astype(np.uint16),
        source.integers(0, 2, count).astype(np.uint8),
    )
    payload, base_us = wire.encode(wire.Encoding.COLUMNS_V1, events)
    packet = pb.EventPacket(sequence=number + 1, base_us=base_us, payload=payload)
    return pb.EventMessage(events=packet)
