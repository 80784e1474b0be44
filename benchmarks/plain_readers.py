"""Second readers for formats that no other installed package reads: plain loops, written from the formats' specifications.

They share no code with spiketrain.events.formats and are slow; they are there to be compared with.
"""

from __future__ import annotations

import csv
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = tuple[int, int, int, int]
"""Microseconds, x, y, polarity."""


def evt2(path: Path) -> Iterator[Row]:
    words = _after_header(path)
    high = last = wraps = 0
    known = False
    for (word,) in struct.iter_unpack("<I", words[: len(words) // 4 * 4]):
        kind = word >> 28
        if kind == 8:
            value = word & 0xFFFFFFF
            wraps += known and value < last and last - value > 1 << 27
            high, last, known = (value + (wraps << 28)) << 6, value, True
        elif kind in (0, 1) and known:
            yield high | (word >> 22 & 63), word >> 11 & 2047, word & 2047, kind


def evt21(path: Path) -> Iterator[Row]:
    """The little-endian order."""
    words = _after_header(path)
    high = None
    for valid, word in struct.iter_unpack("<II", words[: len(words) // 8 * 8]):
        kind = word >> 28
        if kind == 8:
            high = (word & 0xFFFFFFF) << 6
        elif kind in (0, 1) and high is not None:
            for bit in range(32):
                if valid >> bit & 1:
                    yield high | (word >> 22 & 63), (word >> 11 & 2047) + bit, word & 2047, kind


def evt3_words(words: bytes) -> Iterator[Row]:
    """Events once time and row are known. A new TIME_HIGH sets the lower bits to 0."""
    high = low = last = y = base = polarity = wraps = 0
    timed = placed = False
    for (word,) in struct.iter_unpack("<H", words[: len(words) // 2 * 2]):
        kind, value = word >> 12, word & 0xFFF
        if kind == 0:
            y, placed = word & 2047, True
        elif kind == 2 and timed and placed:
            yield (wraps << 24) + (high << 12) + low, word & 2047, y, word >> 11 & 1
        elif kind == 3:
            base, polarity = word & 2047, word >> 11 & 1
        elif kind in (4, 5):
            width = 12 if kind == 4 else 8
            for bit in range(width):
                if word >> bit & 1 and timed and placed:
                    yield (wraps << 24) + (high << 12) + low, base + bit, y, polarity
            base += width
        elif kind == 6:
            low = value
        elif kind == 8:
            wraps += timed and last - value > 2048
            if not timed or value != high:
                low = 0
            high = last = value
            timed = True


def aedat2(path: Path) -> Iterator[Row]:
    """A DVS128's."""
    data = path.read_bytes()
    while data.startswith(b"#"):
        data = data.partition(b"\n")[2]
    for address, t in struct.iter_unpack(">II", data):
        yield t, address >> 1 & 127, address >> 8 & 127, address & 1


def aedat3(path: Path) -> Iterator[Row]:
    data = path.read_bytes().partition(b"#!END-HEADER\r\n")[2]
    at = 0
    while at < len(data):
        kind, _, size, _, overflow, _, number, _ = struct.unpack_from("<HHIIIIII", data, at)
        at += 28
        for i in range(number if kind == 1 else 0):
            word, t = struct.unpack_from("<II", data, at + i * size)
            if word & 1:
                yield t | overflow << 31, word >> 17, word >> 2 & 32767, word >> 1 & 1
        at += number * size


def text(path: Path) -> Iterator[Row]:
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            yield int(row["t"]), int(row["x"]), int(row["y"]), int(row["p"])


def ros2(path: Path) -> Iterator[Row]:
    """Bags of event_camera_msgs, one topic: evt3, libcaer and mono."""
    (bag,) = path.glob("*.db3")
    words = b""
    for (message,) in sqlite3.connect(bag).execute("SELECT data FROM messages ORDER BY timestamp"):
        encoding, time_base, payload = _packet(message)
        if encoding == "evt3":
            words += payload
        elif encoding == "libcaer":
            last, wraps = None, 0
            for word, t in struct.iter_unpack("<II", payload):
                t &= 0x7FFFFFFF
                wraps += last is not None and last - t > 1 << 30
                last = t
                when = t + (wraps << 31) + time_base // 1000
                yield when, word >> 17, word >> 2 & 32767, word >> 1 & 1
        else:
            for (word,) in struct.iter_unpack("<Q", payload):
                when = (time_base + (word & 0xFFFFFFFF)) // 1000
                yield when, word >> 32 & 65535, word >> 48 & 32767, word >> 63
    yield from evt3_words(words)


def _packet(message: bytes) -> tuple[str, int, bytes]:
    """Encoding, time base in nanoseconds and events of a message in CDR."""
    cdr = _Cdr(message)
    cdr.skip(8)  # stamp
    cdr.octets()  # frame
    cdr.number("I"), cdr.number("I"), cdr.number("Q")  # height, width, number
    time_base = cdr.number("Q")
    encoding = cdr.octets().rstrip(b"\0").decode()
    cdr.skip(1)  # byte order
    return encoding, time_base, cdr.octets()


class _Cdr:
    def __init__(self, message: bytes) -> None:
        self._data, self._at = message[4:], 0

    def skip(self, count: int) -> None:
        self._at += count

    def number(self, code: str) -> Any:
        size = struct.calcsize(code)
        self._at += -self._at % size
        (value,) = struct.unpack_from("<" + code, self._data, self._at)
        self._at += size
        return value

    def octets(self) -> bytes:
        length = self.number("I")
        self._at += length
        return self._data[self._at - length : self._at]


def _after_header(path: Path) -> bytes:
    data = path.read_bytes()
    while data.startswith(b"%"):
        data = data.partition(b"\n")[2]
    return data
