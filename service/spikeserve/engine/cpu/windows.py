"""Compiled loops over windows of maps: sums for poolings, and copies that make a convolution a matrix product."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from spiketrain.kernels.loops import compiled

Array = NDArray[Any]


@compiled
def sum_pool(spikes: Array, width: int, kernel: Any, stride: Any, pooled: Array) -> None:
    """Sums over windows: [rows, height * width * channels] to [rows, out height, out width, channels]."""
    rows, out_height, out_width, channels = pooled.shape
    for row in range(rows):
        for y in range(out_height):
            for x in range(out_width):
                out = pooled[row, y, x]
                out[:] = 0
                for dy in range(kernel[0]):
                    for dx in range(kernel[1]):
                        first = ((y * stride[0] + dy) * width + x * stride[1] + dx) * channels
                        for c in range(channels):
                            out[c] += spikes[row, first + c]


@compiled
def unfold(values: Array, kernel: Any, stride: Any, padding: Any, windows: Array) -> None:
    """Windows of values [rows, height, width, channels] as [rows, out height, out width, kernel, kernel, channels]."""
    rows, height, width, channels = values.shape
    for row in range(rows):
        for y in range(windows.shape[1]):
            for x in range(windows.shape[2]):
                for dy in range(kernel[0]):
                    for dx in range(kernel[1]):
                        out = windows[row, y, x, dy, dx]
                        top = y * stride[0] + dy - padding[0]
                        left = x * stride[1] + dx - padding[1]
                        if 0 <= top < height and 0 <= left < width:
                            for c in range(channels):
                                out[c] = values[row, top, left, c]
                        else:
                            for c in range(channels):
                                out[c] = 0
