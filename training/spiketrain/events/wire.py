"""Events as bytes in a message.

COLUMNS_V1, the one that is written here: 8 bytes an event, little-endian, all dt, then all x, then all yp.

    dt   u32   microseconds after the message's base time; need not be sorted
    x    u16
    yp   u16   y in the lower 15 bits, polarity in the highest (1 = ON)

EVT2, EVT3 and AEDAT3_WORDS are a camera's own words, passed on as they are (spiketrain.events.formats.evt2, evt3 and
aedat3 have their layouts). Messages may cut them anywhere. Their times have few bits and wrap; a Decoder continues
them to 64 bits, and adds the base time of the message that they are completed by.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from spiketrain.events.formats.aedat3 import TIME_BITS, WORDS, words_to_events
from spiketrain.events.formats.clock import Clock
from spiketrain.events.formats.decoder import RecordDecoder
from spiketrain.events.formats.evt2 import Evt2Decoder
from spiketrain.events.formats.evt3 import Evt3Decoder
from spiketrain.events.memory import Memory, Remembers, expect
from spiketrain.events.types import Events

MAX_SPAN_US = (1 << 32) - 1
_Y_BITS = 15
_INT64_MAX = (1 << 63) - 1


class Encoding(StrEnum):
    COLUMNS_V1 = "columns-v1"
    EVT2 = "evt2"
    EVT3 = "evt3"
    AEDAT3_WORDS = "aedat3-words"


class TooManyEventsError(ValueError):
    """A payload has more events than are allowed in one message."""


def decode(encoding: Encoding, payload: bytes, base_us: int) -> Events:
    """The events of one message that stands for itself, which those in COLUMNS_V1 do; for others there is Decoder.

    Raises ValueError for a payload of a wrong length, or times beyond 64 bits.
    """
    if encoding is not Encoding.COLUMNS_V1:
        raise _not_columns(encoding, "is read by a Decoder")
    if len(payload) % 8:
        raise ValueError(
            f"a {encoding} payload has 8 bytes an event, but this one has {len(payload)}: "
            f"{len(payload) % 8} bytes too many, or it was cut"
        )
    if not -_INT64_MAX <= base_us <= _INT64_MAX - MAX_SPAN_US:
        raise ValueError(f"base time {base_us} us leaves no room for event times in 64 bits")
    n = len(payload) // 8
    dt = np.frombuffer(payload, "<u4", n)
    x = np.frombuffer(payload, "<u2", n, 4 * n)
    yp = np.frombuffer(payload, "<u2", n, 6 * n)
    return Events(
        t=np.add(dt, base_us, dtype=np.int64),
        x=x.astype(np.uint16, copy=False),
        y=yp & np.uint16((1 << _Y_BITS) - 1),
        p=(yp >> np.uint16(_Y_BITS)).astype(np.uint8),
    )


def encode(encoding: Encoding, events: Events) -> tuple[bytes, int]:
    """The payload and its base time in microseconds, which is the earliest event's (0 without events).

    Raises ValueError for events that span more than 2^32 microseconds (71 minutes) or have y above 32767.
    """
    if encoding is not Encoding.COLUMNS_V1:
        raise _not_columns(encoding, "is what cameras write")
    if not len(events):
        return b"", 0
    base_us, last = int(events.t.min()), int(events.t.max())
    if last - base_us > MAX_SPAN_US:
        raise ValueError(
            f"events span {last - base_us} us, but one message holds at most {MAX_SPAN_US}: send several"
        )
    if int(events.y.max()) >> _Y_BITS:
        raise ValueError(
            f"y {events.y.max()} does not fit the {_Y_BITS} bits that {encoding} has for it"
        )
    yp = events.y | (events.p.astype(np.uint16) << np.uint16(_Y_BITS))
    columns = ((events.t - base_us).astype("<u4"), events.x.astype("<u2"), yp.astype("<u2"))
    return b"".join(column.tobytes() for column in columns), base_us


class _Aedat3Words(RecordDecoder):
    title = "AEDAT 3.1 events"
    dtype = WORDS
    MEMORY: ClassVar[dict[str, Any]] = RecordDecoder.MEMORY | {"_clock": Clock}

    def __init__(self) -> None:
        super().__init__()
        self._clock = Clock(TIME_BITS)

    def decode(self, records: NDArray[Any]) -> Events:
        return words_to_events(records, self._clock.extend(records["t"] & 0x7FFFFFFF))


_DECODERS: dict[Encoding, tuple[type[RecordDecoder], int]] = {
    Encoding.EVT2: (Evt2Decoder, 1 << 34),
    Encoding.EVT3: (Evt3Decoder, 1 << 24),
    Encoding.AEDAT3_WORDS: (_Aedat3Words, 1 << TIME_BITS),
}
"""What reads a camera's words, and the microseconds after which their clock begins anew."""

_PIECE = 1 << 16
_MAX_BASE_US = 1 << 61


class _Camera(Remembers):
    """The words of one encoding in one stream."""

    MEMORY: ClassVar[dict[str, Any]] = {
        "_words": RecordDecoder,
        "_last_us": int | None,
        "_shift_us": int | None,
    }

    def __init__(self, encoding: Encoding) -> None:
        self._make, self._wrap_us = _DECODERS[encoding]
        self._words = self._make()
        self._last_us: int | None = None
        self._shift_us: int | None = 0

    def feed(self, payload: memoryview) -> Events:
        events = self._words.feed(bytes(payload))
        if not len(events):
            return events
        if self._shift_us is None:
            # A new decoder counts from the first wrap on: the nearest time to the last one is taken for the right one.
            passed = (self._last_us or 0) - int(events.t[0])
            self._shift_us = round(passed / self._wrap_us) * self._wrap_us
        if self._shift_us:
            events = Events(events.t + self._shift_us, events.x, events.y, events.p)
        self._last_us = int(events.t[-1])
        return events

    def lost(self) -> None:
        self._words = self._make()
        self._shift_us = 0 if self._last_us is None else None


class Decoder(Remembers):
    """The messages of one stream to events, with what the encodings remember from one message to the next.

    A new connection is a new stream and gets a new decoder.
    """

    def __init__(self) -> None:
        self._cameras: dict[Encoding, _Camera] = {}

    def memory(self) -> Memory:
        return {str(encoding): camera.memory() for encoding, camera in self._cameras.items()}

    def remember(self, memory: Memory) -> None:
        expect(memory, set(memory) & {str(each) for each in _DECODERS})
        self._cameras = {Encoding(name): _Camera(Encoding(name)) for name in memory}
        for encoding, camera in self._cameras.items():
            camera.remember(memory[encoding])

    def feed(
        self, encoding: Encoding, payload: bytes, base_us: int = 0, max_events: int | None = None
    ) -> Events:
        """The events that this message completes; what a camera's words leave open waits for the next one.

        Raises TooManyEventsError for more than `max_events`, ValueError for a payload in columns that is cut, or a
        base time that leaves no room. The decoder is not to be used after that.
        """
        if encoding is Encoding.COLUMNS_V1:
            if max_events is not None and len(payload) > 8 * max_events:
                raise _too_many(max_events)
            return decode(encoding, payload, base_us)
        if encoding not in _DECODERS:
            raise ValueError(
                f"unknown event encoding {encoding!r}; known are {', '.join(Encoding)}"
            )
        if abs(base_us) > _MAX_BASE_US:
            raise ValueError(f"base time {base_us} us leaves no room for event times in 64 bits")
        camera = self._cameras.setdefault(encoding, _Camera(encoding))
        parts = []
        count = 0
        view = memoryview(payload)
        # Two bytes of EVT3 can be 12 events: in pieces, a small message cannot take a large memory.
        for begin in range(0, len(view), _PIECE):
            parts.append(camera.feed(view[begin : begin + _PIECE]))
            count += len(parts[-1])
            if max_events is not None and count > max_events:
                raise _too_many(max_events)
        events = Events.concatenate(parts)
        if not base_us:
            return events
        return Events(events.t + base_us, events.x, events.y, events.p)

    def lost(self) -> None:
        """Messages are missing: what is half read is given up, and words count again when they say time and row.

        The time goes on where it was; a silence of more than half of what the camera's clock can count (8.4 s for
        EVT3) is not known.
        """
        for camera in self._cameras.values():
            camera.lost()


def _not_columns(encoding: object, why: str) -> ValueError:
    known = ", ".join(Encoding)
    if encoding not in list(Encoding):
        return ValueError(f"unknown event encoding {encoding!r}; known are {known}")
    return ValueError(f"event encoding {encoding} {why}; this takes {Encoding.COLUMNS_V1} only")


def _too_many(most: int) -> TooManyEventsError:
    return TooManyEventsError(f"the payload has more than {most} events, the limit for one message")
