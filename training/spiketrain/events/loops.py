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


@compiled
def decode_evt3(words: UInt16s, state: Int64s, unknown: int, no_time: int, out: Any) -> int:
    """formats.evt3: the events of words, into columns t, x, y, p; returns how many.

    `state` is [upper time, time, y, vector base, its polarity, last raw TIME_HIGH or -1, its wraps times 4096], and is
    left as it is behind the words.
    """
    out_t, out_x, out_y, out_p = out
    high, time, y, base, polarity, last, wrapped = state
    low = np.int64(0) if time == no_time else time & 0xFFF
    n = 0
    for word in words:
        kind = word >> 12
        value = np.int64(word & 0xFFF)
        if kind == 0:
            y = value & 0x7FF
        elif kind == 2:
            if time != no_time and y != unknown:
                out_t[n], out_x[n], out_y[n], out_p[n] = time, value & 0x7FF, y, value >> 11
                n += 1
        elif kind == 3:
            base, polarity = value & 0x7FF, value >> 11
        elif kind == 4 or kind == 5:
            width = 12 if kind == 4 else 8
            if base != unknown:
                if time != no_time and y != unknown:
                    bits, x = value & ((1 << width) - 1), base
                    while bits:
                        if bits & 1 and x <= 0x7FF:
                            out_t[n], out_x[n], out_y[n], out_p[n] = time, x, y, polarity
                            n += 1
                        bits >>= 1
                        x += 1
                base = min(base + width, 0x800)
        elif kind == 6:
            low = value
            if high != no_time:
                time = high + low
        elif kind == 8:
            if last >= 0:
                if last - value > 2048:
                    wrapped += 4096
                elif value - last > 2048:
                    wrapped -= 4096
            last = value
            extended = (value + wrapped) << 12
            if extended != high:
                high, low = extended, 0
                time = high
    state[0], state[1], state[2], state[3] = high, time, y, base
    state[4], state[5], state[6] = polarity, last, wrapped
    return n
