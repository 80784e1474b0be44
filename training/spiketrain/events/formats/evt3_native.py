"""EVT 3.0 decoded by the package evt3 (MIT), four times as fast as by NumPy. It is used where it is installed.

It differs from Prophesee's own decoder in what follows a TIME_HIGH without a TIME_LOW, and in what it takes for a
wrap of the clock. Blocks in which that could matter are therefore left to NumPy, so that events are the same with and
without the package.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spiketrain.events.types import Events

_EVENT_KINDS = np.isin(np.arange(16), (0, 2, 3, 4, 5))
_evt3: Any = import_module("evt3") if find_spec("evt3") is not None else None


def decode(
    records: NDArray[Any], kind: NDArray[np.uint8], time: int, y: int, base: int, polarity: int
) -> Events | None:
    """The events of a block that begins in a known state, or None if it is to be decoded by NumPy."""
    if _evt3 is None or not len(records):
        return None
    highs = np.flatnonzero(kind == 8)
    inner = highs[:-1] if len(highs) and highs[-1] == len(kind) - 1 else highs
    values = records[highs] & 0xFFF
    high = (time >> 12) & 0xFFF
    if _EVENT_KINDS[kind[inner + 1]].any() or (
        len(values)
        and (
            int(values[0]) < high
            or int(values[-1]) - high > 0x7FF
            or bool((values[1:] < values[:-1]).any())
        )
    ):
        return None
    state = (0x8000 | high, 0x6000 | (time & 0xFFF), 0x3000 | polarity << 11 | base, y)
    decoder = _evt3.Decoder(2048, 2048)
    found = decoder.feed(np.array(state, "<u2").tobytes() + records.tobytes())
    if len(found.x) and int(found.x.max()) > 0x7FF:
        return None
    t = found.t.astype(np.int64)
    t += time >> 24 << 24
    return Events(t, found.x, found.y, found.p)
