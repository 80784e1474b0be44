"""AEDAT 2.0 of jAER: lines that begin with `#`, then 8 bytes an event, big-endian: u32 address, u32 microseconds.

DVS128  bit 0 polarity (1 = ON), bits 1-7 x, bits 8-14 y; with bit 15 set it is no event
DAVIS   bit 11 polarity, bits 12-21 x, bits 22-30 y; with bit 31 (images, IMU) or bit 10 (triggers) set it is no event

x and y are the raw fields, with the origin that the camera has. Other readers mirror, swap or invert them; see
`orientation` and `polarity` in a model's manifest. The header says which camera it was; where it does not, the
layout is DVS128's unless the format is named as aedat2-davis.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spiketrain.events.formats.base import Contents, Format, Sensor
from spiketrain.events.formats.clock import Clock
from spiketrain.events.formats.decoder import RecordDecoder, decoded
from spiketrain.events.formats.source import Source
from spiketrain.events.formats.writing import checked_times
from spiketrain.events.types import Events

MAGIC = b"#!AER-DAT2"
END = b"#End Of ASCII Header"
# A first record may begin with '#' too, but it is no line of text.
_LINE = re.compile(rb"#[\t\x20-\x7e\x80-\xff]*\r?\n")
_CHIP = re.compile(
    rb"(?im)^#[ \t]*(?:AEChip|HardwareInterface)[: ].*?(DVS128|DAVIS[A-Za-z]*(\d{3}))"
)
_DAVIS_SIZES: dict[bytes, Sensor] = {b"240": (240, 180), b"346": (346, 260), b"640": (640, 480)}


class Layout(NamedTuple):
    """Where the fields are: shift and mask of each, and the bits that mark what is no polarity event."""

    x: tuple[int, int]
    y: tuple[int, int]
    p: int
    other: int


DVS128 = Layout((1, 0x7F), (8, 0x7F), 0, 0x8000)
DAVIS = Layout((12, 0x3FF), (22, 0x1FF), 11, 0x80000400)


class Aedat2Decoder(RecordDecoder):
    title = "AEDAT 2.0 events"
    dtype = np.dtype([("address", ">u4"), ("t", ">u4")])

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self._layout = layout
        self._clock = Clock(32)

    def decode(self, records: NDArray[Any]) -> Events:
        address = records["address"].astype(np.uint32)
        t = self._clock.extend(records["t"])
        events = (address & self._layout.other) == 0
        if not events.all():
            address, t = address[events], t[events]
        (x, x_mask), (y, y_mask) = self._layout.x, self._layout.y
        return Events(
            t,
            ((address >> x) & x_mask).astype(np.uint16),
            ((address >> y) & y_mask).astype(np.uint16),
            ((address >> self._layout.p) & 1).astype(np.uint8),
        )


def encode(events: Events, sensor: Sensor | None = None) -> bytes:
    """The events as an .aedat file: DVS128's if they fit on its 128x128 pixels and no larger sensor is given, else DAVIS's.

    Raises ValueError for coordinates that do not fit DAVIS's layout either, times below 0 or of more than 32 bits
    (71 minutes), and for gaps of more than half of that.
    """
    width = int(events.x.max()) + 1 if len(events) else 0
    height = int(events.y.max()) + 1 if len(events) else 0
    small = max(width, height, *(sensor or (0, 0))) <= 128
    layout, chip = (DVS128, "DVS128") if small else (DAVIS, f"DAVIS{(sensor or (346,))[0]}")
    if width > layout.x[1] + 1 or height > layout.y[1] + 1:
        raise ValueError(
            f"AEDAT 2.0 holds x to {layout.x[1]} and y to {layout.y[1]}; write an .npz instead"
        )
    checked_times(events, 32, "AEDAT 2.0")
    records = np.empty(len(events), Aedat2Decoder.dtype)
    records["t"] = events.t
    records["address"] = (
        (events.x.astype(np.uint32) << layout.x[0])
        | (events.y.astype(np.uint32) << layout.y[0])
        | (events.p.astype(np.uint32) << layout.p)
    )
    header = f"#!AER-DAT2.0\r\n# Timestamps tick: 1 us\r\n# AEChip: {chip}\r\n{END.decode()}\r\n"
    return header.encode("ascii") + records.tobytes()


def _open(source: Source, layout: Layout | None = None) -> Contents:
    end = 0
    while match := _LINE.match(source.head, end):
        end = match.end()
        if match[0].startswith(END):
            break
    chip = _CHIP.search(source.head[:end])
    source.take_head(end)
    named = DAVIS if chip is not None and chip[1].upper() != b"DVS128" else DVS128
    layout = layout or named
    sensor = None
    if layout is DVS128:
        sensor = (128, 128)
    elif chip is not None:
        sensor = _DAVIS_SIZES.get(chip[2])
    return Contents(decoded(source, Aedat2Decoder(layout)), sensor)


AEDAT2 = Format("aedat2", "AEDAT 2.0", (), lambda source: source.head.startswith(MAGIC), _open)
AEDAT2_DVS128 = Format(
    "aedat2-dvs128",
    "AEDAT 2.0 of a DVS128",
    (),
    lambda _: False,
    lambda source: _open(source, DVS128),
)
AEDAT2_DAVIS = Format(
    "aedat2-davis", "AEDAT 2.0 of a DAVIS", (), lambda _: False, lambda source: _open(source, DAVIS)
)
