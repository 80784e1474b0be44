"""event_camera_msgs/EventPacket, as ROS 2 serialises it (CDR), and the encodings of the events in it.

std_msgs/Header header (i32 sec, u32 nanosec, string frame_id), u32 height, u32 width, u64 seq, u64 time_base,
string encoding, bool is_bigendian, u8[] events. event_array_msgs/EventArray, its former name, is the same.

evt3     EVT 3.0 words; the stream's clock runs on from message to message
libcaer  the 8-byte words of AEDAT 3.1; time_base (ns) has the upper bits of the time
mono     u64: time since time_base in ns (32 bits, lowest), x (16), y (15), polarity (1)
trigger  no events

https://github.com/ros-event-camera/event_camera_codecs
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spiketrain.events.formats.aedat3 import TIME_BITS, WORDS, word_fields
from spiketrain.events.formats.base import EventFormatError, Sensor
from spiketrain.events.formats.evt3 import Evt3Decoder
from spiketrain.events.types import Events

MESSAGE_TYPES = ("event_camera_msgs/msg/EventPacket", "event_array_msgs/msg/EventArray")
ENCODINGS = {"evt3": 2, "libcaer": WORDS.itemsize, "mono": 8, "trigger": 1}
"""The encodings that are read, and the bytes of a word."""


class EventPacket(NamedTuple):
    sensor: Sensor | None
    time_base: int
    encoding: str
    big_endian: bool
    events: bytes


def parse(message: bytes) -> EventPacket:
    """Raises EventFormatError for a message that ends too early, is not CDR, or has events that cannot be read."""
    if len(message) < 4 or message[0] != 0 or message[1] > 1:
        raise EventFormatError(f"it begins with {message[:4]!r}, which is no plain CDR")
    cdr = _Cdr(message, "<" if message[1] else ">")
    cdr.skip("iI")
    cdr.octets()
    height, width, _, time_base = cdr.number("I"), cdr.number("I"), cdr.number("Q"), cdr.number("Q")
    encoding = cdr.octets().rstrip(b"\0").decode("ascii", "replace")
    big_endian = bool(cdr.number("B"))
    known = 0 < width <= 65536 and 0 < height <= 65536
    events = cdr.octets()
    _check(time_base, encoding, events)
    return EventPacket((width, height) if known else None, time_base, encoding, big_endian, events)


def _check(time_base: int, encoding: str, events: bytes) -> None:
    size = ENCODINGS.get(encoding)
    if size is None:
        raise EventFormatError(
            f"its events are encoded as {encoding[:40]!r}; read are {', '.join(ENCODINGS)}"
        )
    if len(events) % size:
        raise EventFormatError(
            f"it has {len(events)} bytes of {encoding}, which are no whole {size}-byte words"
        )
    if time_base >> 63:
        raise EventFormatError(f"its time_base {time_base} is no time in nanoseconds")


class _Cdr:
    def __init__(self, message: bytes, order: str) -> None:
        self._message, self._order = message, order
        self._at = 4

    def number(self, code: str) -> int:
        size = struct.calcsize(code)
        # Alignment counts from behind the four bytes of encapsulation.
        at = self._at + (4 - self._at) % size
        if at + size > len(self._message):
            raise EventFormatError(f"its {len(self._message)} bytes end too early")
        self._at = at + size
        return int(struct.unpack_from(self._order + code, self._message, at)[0])

    def skip(self, codes: str) -> None:
        for code in codes:
            self.number(code)

    def octets(self) -> bytes:
        length = self.number("I")
        if length > len(self._message) - self._at:
            raise EventFormatError(
                f"it has {len(self._message)} bytes, and in them a field that says {length}"
            )
        self._at += length
        return self._message[self._at - length : self._at]


class PacketDecoder:
    """The events of one topic's messages, in order."""

    def __init__(self) -> None:
        self._evt3 = Evt3Decoder()

    def feed(self, packets: Sequence[EventPacket]) -> Events:
        """Events of messages of one encoding and byte order."""
        match packets[0].encoding:
            case "evt3":
                words = b"".join(packet.events for packet in packets)
                if packets[0].big_endian:
                    words = np.frombuffer(words, ">u2").astype("<u2").tobytes()
                return self._evt3.feed(words)
            case "libcaer":
                return _libcaer(packets)
            case "mono":
                return _mono(packets)
        return Events.empty()


def _libcaer(packets: Sequence[EventPacket]) -> Events:
    # The words are little-endian whatever is_bigendian says: libcaer writes them so.
    words = np.frombuffer(b"".join(packet.events for packet in packets), WORDS)
    lengths = [len(packet.events) // WORDS.itemsize for packet in packets]
    t = (words["t"] & 0x7FFFFFFF).astype(np.int64)
    falls = np.flatnonzero(t[1:] - t[:-1] < -(1 << (TIME_BITS - 1))) + 1
    ends = np.cumsum(lengths)
    for at in falls.tolist():
        # A wrap counts to the end of its message: time_base has it from the next one on.
        message = int(np.searchsorted(ends, at, side="right"))
        if at > ends[message] - lengths[message]:
            t[at : ends[message]] += 1 << TIME_BITS
    t += np.repeat([packet.time_base // 1000 for packet in packets], lengths)
    return Events(t, *word_fields(words["data"]))


def _mono(packets: Sequence[EventPacket]) -> Events:
    order = ">u8" if packets[0].big_endian else "<u8"
    words: NDArray[Any] = np.frombuffer(b"".join(packet.events for packet in packets), order)
    lengths = [len(packet.events) // 8 for packet in packets]
    t = (words & 0xFFFFFFFF).astype(np.int64)
    t += np.repeat([packet.time_base % 1000 for packet in packets], lengths)
    t //= 1000
    t += np.repeat([packet.time_base // 1000 for packet in packets], lengths)
    return Events(
        t,
        ((words >> 32) & 0xFFFF).astype(np.uint16),
        ((words >> 48) & 0x7FFF).astype(np.uint16),
        (words >> 63).astype(np.uint8),
    )
