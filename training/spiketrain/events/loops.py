"""Loops over events that NumPy has no fast words for, compiled by numba; each says which NumPy code it equals.

All of them are in this file because the compiler's cache sees changes of the file a function is in, not of others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spiketrain.events.types import Int64s, UInt16s
from spiketrain.kernels.loops import compiled

Mask = NDArray[np.bool_]
Octets = NDArray[np.uint8]


@compiled
def supported(t: Int64s, x: UInt16s, y: UInt16s, last: Any, support_us: int, kept: Mask) -> None:
    """filters.BackgroundActivityFilter. `last` [height, width] are the times of the pixels' last events."""
    height, width = last.shape
    for i in range(len(t)):
        column, row = int(x[i]), int(y[i])
        since = t[i] - support_us
        found = False
        for near_row in range(max(row - 1, 0), min(row + 2, height)):
            for near in range(max(column - 1, 0), min(column + 2, width)):
                if last[near_row, near] >= since and (near_row != row or near != column):
                    found = True
        kept[i] = found
        last[row, column] = t[i]


@compiled
def rested(t: Int64s, x: UInt16s, y: UInt16s, last: Any, period_us: int, kept: Mask) -> None:
    """filters.RefractoryFilter. `last` [height, width] are the times of the last events that were kept."""
    for i in range(len(t)):
        row, column = int(y[i]), int(x[i])
        kept[i] = t[i] - last[row, column] >= period_us
        if kept[i]:
            last[row, column] = t[i]


@compiled
def parse_lines(text: Octets, places: Int64s, rows: Int64s) -> int:
    """formats.csv: whole lines of decimal numbers, separated by commas, into rows [lines, columns].

    `places` [fields] is the column of each field, -1 for one that is passed over. Returns how many lines were read;
    fewer than there are where something else stands in one, or a number is longer than 18 digits.
    """
    at = row = 0
    while at < len(text) and row < len(rows):
        for field in range(len(places)):
            negative = text[at] == 45 if at < len(text) else False
            if negative:
                at += 1
            begin = at
            value = np.int64(0)
            while at < len(text) and 48 <= text[at] <= 57:
                value = 10 * value + np.int64(text[at] - 48)
                at += 1
            if at == begin or at - begin > 18:
                return row
            if places[field] >= 0:
                rows[row, places[field]] = -value if negative else value
            if field < len(places) - 1:
                if at >= len(text) or text[at] != 44:
                    return row
                at += 1
        if at < len(text) and text[at] == 13:
            at += 1
        if at < len(text) and text[at] != 10:
            return row
        at += 1
        row += 1
    return row


@compiled
def spread(valid: NDArray[np.uint32], t: Int64s, x: Any, y: Any, kind: Octets, out: Any) -> int:
    """formats.evt21: the events of vectors of 32 pixels, into columns t, x, y, p; returns how many."""
    out_t, out_x, out_y, out_p = out
    n = 0
    for i in range(len(valid)):
        bits = valid[i]
        pixel = np.int64(x[i])
        while bits:
            if bits & np.uint32(1) and pixel <= 0x7FF:
                out_t[n], out_x[n], out_y[n], out_p[n] = t[i], pixel, y[i], kind[i]
                n += 1
            bits >>= np.uint32(1)
            pixel += 1
    return n
