"""Events as bytes in a message.

COLUMNS_V1, 8 bytes an event, little-endian, column after column: all dt, then all x, then all yp.

    dt   u32   microseconds after the message's base time; need not be sorted
    x    u16
    yp   u16   y in the lower 15 bits, polarity in the highest (1 = ON)
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np

from spiketrain.events.types import Events

MAX_SPAN_US = (1 << 32) - 1
_Y_BITS = 15
_INT64_MAX = (1 << 63) - 1


class Encoding(StrEnum):
    COLUMNS_V1 = "columns-v1"


def decode(encoding: Encoding, payload: bytes, base_us: int) -> Events:
    """The events of one message. Raises ValueError for a payload of a wrong length, or times beyond 64 bits."""
    if encoding is not Encoding.COLUMNS_V1:
        raise ValueError(f"unknown event encoding {encoding!r}; known are {', '.join(Encoding)}")
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
        raise ValueError(f"unknown event encoding {encoding!r}; known are {', '.join(Encoding)}")
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
