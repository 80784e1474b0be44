"""Convolutions of spikes as matrix products in a processor's tiles.

Windows of a map are copied into a panel, row by row, and multiplied with all channels' weights while the panel is in
the cache. Weights of 16 bits are two parts of 8 bits, 256 high + low; their sums are put together as integers, so nothing
is lost until the one sum is rounded to float32, and it is the same whatever is in the batch.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spikeserve.engine.cpu import amx
from spikeserve.engine.cpu.amx import (
    COLUMNS,
    DEPTH,
    LINE,
    ROWS,
    TILE,
    clear_lines,
    configure,
    copy_lines,
    load_4,
    load_5,
    load_6,
    load_7,
    multiply_0,
    multiply_1,
    multiply_2,
    multiply_3,
    release,
    scaled_one,
    scaled_two,
    store_0,
    store_1,
    store_2,
    store_3,
    zero_0,
    zero_1,
    zero_2,
    zero_3,
)
from spikeserve.engine.cpu.plan import Product
from spiketrain.kernels.loops import compiled

Array = NDArray[Any]

_PAIR = 2 * ROWS
_PAIR_BYTES = 2 * TILE

# Bytes of a panel: a quarter of the weights, which are read once for each panel, but between these.
_LEAST_PANEL, _MOST_PANEL = 48 << 10, 1 << 20

# Bytes of weights from which on threads take a part of the channels each, not of the positions.
_MANY_WEIGHTS = 1 << 19


@compiled
def _unfold(
    values: Array, geometry: Array, width: int, positions: int, first: int, count: int, panel: Array
) -> None:
    """`count` windows from `first` on as rows of the panel; what is beyond the map is zero."""
    height_in, width_in, channels = values.shape[1:]
    kernel_h, kernel_w = geometry[6], geometry[7]
    source, target = values.ctypes.data, panel.ctypes.data
    lines = channels // LINE if channels % LINE == 0 else 0
    row, position = first // positions, first % positions
    y, x = position // width, position % width
    for i in range(count):
        top, left = y * geometry[0] - geometry[2], x * geometry[1] - geometry[3]
        for dy in range(kernel_h):
            line = top + dy * geometry[4]
            start = source + (row * height_in + line) * width_in * channels
            for dx in range(kernel_w):
                column = left + dx * geometry[5]
                inside = 0 <= line < height_in and 0 <= column < width_in
                at = (dy * kernel_w + dx) * channels
                if lines:
                    to = target + i * panel.shape[1] + at
                    if inside:
                        copy_lines(to, start + column * channels, lines)
                    else:
                        clear_lines(to, to, lines)
                elif inside:
                    for c in range(channels):
                        panel[i, at + c] = values[row, line, column, c]
                else:
                    for c in range(channels):
                        panel[i, at + c] = 0
        x += 1
        if x == width:
            x = 0
            y += 1
            if y * width == positions:
                y = 0
                row += 1


@compiled
def _sums(inputs: int, stride: int, steps: int, weights: int, out: int) -> None:
    """Of 32 positions, with a pair of tiles of weights for each step of 64 inputs: four times [16, 16], int32."""
    zero_0()
    zero_1()
    zero_2()
    zero_3()
    below = inputs + ROWS * stride
    for step in range(steps):
        at = weights + step * _PAIR_BYTES
        load_4(inputs + step * DEPTH, stride)
        load_6(at, LINE)
        multiply_0()
        load_7(at + TILE, LINE)
        multiply_1()
        load_5(below + step * DEPTH, stride)
        multiply_2()
        multiply_3()
    store_0(out, LINE)
    store_1(out + TILE, LINE)
    store_2(out + 2 * TILE, LINE)
    store_3(out + 3 * TILE, LINE)


@compiled
def _finish(sums: int, two: bool, count: int, scale: int, bias: int, out: int, stride: int) -> None:
    """Currents of 16 channels of up to 32 positions, `stride` bytes from each to the next."""
    for i in range(count):
        source = sums + (i // ROWS) * _PAIR_BYTES + (i % ROWS) * LINE
        if two:
            scaled_two(source, scale, bias, out + i * stride)
        else:
            scaled_one(source, scale, bias, out + i * stride)


@compiled
def _write_some(
    sums: int, two: bool, place: Any, scale: int, bias: int, ragged: Array, flat: Array
) -> None:
    """Sums of fewer than 16 channels to currents. `place` is the first position, their number, the channel, K."""
    first, count, c, channels = place
    _finish(sums, two, count, scale, bias, ragged.ctypes.data, 4 * COLUMNS)
    for i in range(count):
        for j in range(channels - c):
            flat[(first + i) * channels + c + j] = ragged[i * COLUMNS + j]


@compiled
def convolve(
    values: Array,
    weights: Array,
    geometry: Array,
    width: int,
    two: bool,
    scale: Array,
    bias: Array,
    memory: Any,
    span: Any,
    pairs: Any,
    out: Array,
) -> None:
    """Currents `out` [rows, positions, K] of whole numbers of one byte, [rows, H, W, C].

    `geometry` is stride, padding, dilation and kernel, each of two numbers; `width` is that of the result. `weights` are as
    `packed` makes them, `two` says that they have two parts; `scale` and `bias` are [K], filled up to whole tiles.
    `memory` is a configuration of the tiles, a panel of some multiple of 32 rows, 1024 sums, and currents of a tile.
    Only positions of all rows in `span`, and weights in `pairs`, are done, from the first to before the second.
    """
    config, panel, sums, ragged = memory
    configure(config.ctypes.data)
    positions, channels = out.shape[1], out.shape[2]
    steps, most, stride = weights.shape[1], panel.shape[0], panel.shape[1]
    flat = out.reshape(-1)
    at_panel, at_sums, at_out = panel.ctypes.data, sums.ctypes.data, out.ctypes.data
    at_scale, at_bias = scale.ctypes.data, bias.ctypes.data
    halves = 1 if two else 2
    for first in range(span[0], span[1], most):
        count = min(most, span[1] - first)
        _unfold(values, geometry, width, positions, first, count, panel)
        for pair in range(pairs[0], pairs[1]):
            at_weights = weights.ctypes.data + pair * steps * _PAIR_BYTES
            for begin in range(0, count, _PAIR):
                here = min(_PAIR, count - begin)
                _sums(at_panel + begin * stride, stride, steps, at_weights, at_sums)
                for half in range(halves):
                    c = (pair * halves + half) * COLUMNS
                    source, a, b = at_sums + half * TILE, at_scale + 4 * c, at_bias + 4 * c
                    if c + COLUMNS <= channels:
                        to = at_out + 4 * ((first + begin) * channels + c)
                        _finish(source, two, here, a, b, to, 4 * channels)
                    elif c < channels:
                        place = (first + begin, here, c, channels)
                        _write_some(source, two, place, a, b, ragged, flat)
    release()


def packed(codes: Array, two: bool) -> Array:
    """Codes [N, K], whole numbers of 16 bits or 8, as pairs of tiles [pairs, K / 64, 2, 1024].

    A pair is high and low parts of 16 channels, or 32 channels of 8 bits. What is missing is zero.
    """
    channels, depth = codes.shape
    blocks, steps = -(-channels // COLUMNS), -(-depth // DEPTH)
    if not two:
        blocks += blocks % 2
    full = np.zeros((blocks * COLUMNS, steps * DEPTH), np.int64)
    full[:channels, :depth] = codes
    # Rows of a tile are four inputs of each channel side by side.
    tiled = full.reshape(blocks, COLUMNS, steps, ROWS, 4).transpose(0, 2, 3, 1, 4)
    tiled = tiled.reshape(blocks, steps, TILE)
    if two:
        high = (tiled + 128) // 256
        pairs = np.stack([high, tiled - 256 * high], 2)
    else:
        pairs = tiled.reshape(-1, 2, steps, TILE).transpose(0, 2, 1, 3)
    array = amx.aligned(pairs.shape, np.int8)
    array[:] = pairs
    return array


class Tiles:
    """A product whose weights are codes [K, C, h, w] of 16 bits, if `two`, or 8, times `scale` [K]."""

    def __init__(self, product: Product, codes: Tensor, scale: Tensor, two: bool) -> None:
        self._two = two
        self._channels = len(codes)
        self._weights = packed(codes.permute(0, 2, 3, 1).flatten(1).numpy(), two)
        self._geometry = np.array(
            [*product.stride, *product.padding, *product.dilation, *codes.shape[2:]], np.int64
        )
        filled = len(self._weights) * COLUMNS * (1 if two else 2)
        self._scale, self._bias = np.zeros((2, filled), np.float32)
        self._scale[: self._channels] = scale.flatten().numpy()
        if product.bias is not None:
            self._bias[: self._channels] = product.bias.float().numpy()
        steps = self._weights.shape[1]
        # An odd number of lines, so that the rows of a tile do not meet in the cache.
        self._width = (steps + 1 - steps % 2) * DEPTH
        panel = min(_MOST_PANEL, max(_LEAST_PANEL, self._weights.nbytes // 4))
        self._rows = max(_PAIR, panel // self._width // _PAIR * _PAIR)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        out = self.empty(x)
        for share in self.shares(out, 1):
            self.fill(x, out, *share)
        return (out,)

    def empty(self, x: Tensor) -> Tensor:
        """Where currents of these values will be, [rows, K, h, w]."""
        size = [self._size(axis, x.shape[2 + axis]) for axis in (0, 1)]
        return torch.empty(len(x), *size, self._channels).permute(0, 3, 1, 2)

    def shares(self, out: Tensor, count: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """What so many threads can give to `fill`: positions and weights."""
        total, pairs = len(out) * out.shape[2] * out.shape[3], len(self._weights)
        if self._weights.nbytes >= _MANY_WEIGHTS:
            return [((0, total), part) for part in _parts(pairs, count)]
        tiles = -(-total // _PAIR)
        return [((a * _PAIR, min(total, b * _PAIR)), (0, pairs)) for a, b in _parts(tiles, count)]

    def fill(self, x: Tensor, out: Tensor, span: tuple[int, int], pairs: tuple[int, int]) -> None:
        """Compute a share of the currents."""
        rows = min(self._rows, -(-(span[1] - span[0]) // _PAIR) * _PAIR)
        memory = (
            amx.CONFIGURATION,
            amx.aligned((rows, self._width), np.uint8),
            amx.aligned((4 * ROWS * COLUMNS,), np.int32),
            amx.aligned((_PAIR * COLUMNS,), np.float32),
        )
        convolve(
            x.permute(0, 2, 3, 1).numpy(),
            self._weights,
            self._geometry,
            out.shape[3],
            self._two,
            self._scale,
            self._bias,
            memory,
            span,
            pairs,
            out.permute(0, 2, 3, 1).flatten(1, 2).numpy(),
        )

    def _size(self, axis: int, before: int) -> int:
        stride, padding, dilation, kernel = self._geometry[axis::2].tolist()
        return int((before + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1)


def _parts(count: int, most: int) -> list[tuple[int, int]]:
    """0 to `count` as up to `most` ranges."""
    bounds = [count * i // most for i in range(most + 1)]
    return [(a, b) for a, b in itertools.pairwise(bounds) if b > a]
