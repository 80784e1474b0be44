"""Events counted into frames [2, height, width]: channel 0 is OFF, channel 1 is ON.

With (x, y) on the sensor of width W and height H, as the input's filters leave it, a frame's pixel is

    sensor      (x, y)
    flip-x      (W-1-x, y)
    flip-y      (x, H-1-y)
    transpose   (y, x)
    rotate-90   (H-1-y, x)      a quarter turn clockwise, as one looks at the frame
    anti-transpose (H-1-y, W-1-x)

divided by the down-sampling factor. Counts are clipped, resized where the input says so, then scaled.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spiketrain.events.types import Events, Float32s, Int64s
from spiketrain.manifest import EventInput


class FrameGrid:
    """Where an event lands in a flat frame: `origin + x * step_x + y * step_y`, plus a plane for its polarity.

    Orientation is affine in x and y, and commutes with down-sampling because the factor divides the sensor;
    so no table of pixels is needed. Raises ValueError if the sensor is not the shape times an integer.
    """

    def __init__(self, spec: EventInput) -> None:
        self.spec = spec
        self.sensor = spec.filtered_sensor
        self.shape = spec.shape
        rows, row = spec.shape[1:]
        self._resize = None
        if spec.resize == "whole":
            self.factor = _factor(spec)
        else:
            self.factor = 1
            before = _oriented(spec)
            self._resize = tuple(
                resize_weights(side, wanted, spec.resize == "antialiased")
                for side, wanted in zip(before, (rows, row), strict=True)
            )
            rows, row = before
        self._counted = (2, rows, row)
        width, height = (side // self.factor for side in self.sensor)
        steps = {
            "sensor": (1, row, 0),
            "flip-x": (-1, row, width - 1),
            "flip-y": (1, -row, (height - 1) * row),
            "transpose": (row, 1, 0),
            "rotate-90": (row, -1, height - 1),
            "anti-transpose": (-row, -1, (width - 1) * row + height - 1),
        }
        self._step_x, self._step_y, self._origin = steps[spec.orientation]
        plane = rows * row
        self._step_p = plane
        if spec.polarity == "on-is-0":
            self._step_p, self._origin = -plane, self._origin + plane
        self.cells = 2 * plane

    def inside(self, events: Events) -> NDArray[np.bool_] | None:
        """Which events lie on the sensor; None if all do, which is the cheap and common case."""
        return on_sensor(events, self.sensor)

    def cells_of(self, events: Events) -> Int64s:
        """The flat cell [N] of each event. The events must lie on the sensor: see `inside`."""
        x, y = events.x, events.y
        if self.factor > 1:
            x, y = x // np.uint16(self.factor), y // np.uint16(self.factor)
        cells = np.multiply(y, self._step_y, dtype=np.int64)
        cells += x if self._step_x == 1 else np.multiply(x, self._step_x, dtype=np.int64)
        cells += np.multiply(events.p, self._step_p, dtype=np.int64)
        if self._origin:
            cells += self._origin
        return cells

    def count(self, cells: Int64s) -> Int64s:
        return np.bincount(cells, minlength=self.cells)

    def frame(self, counts: Int64s) -> Float32s:
        """Counts [cells] to a frame [2, height, width], clipped and scaled."""
        if self.spec.clip is not None:
            counts = np.minimum(counts, self.spec.clip)
        frame: Float32s = counts.astype(np.float32).reshape(self._counted)
        if self._resize is not None:
            down, across = self._resize
            frame = np.asarray(down @ frame @ across.T, np.float32)
        if self.spec.scale != 1:
            frame *= np.float32(self.spec.scale)
        return frame


def on_sensor(events: Events, sensor: tuple[int, int]) -> NDArray[np.bool_] | None:
    """Which events [N] lie on the sensor of that width and height; None if all do."""
    width, height = sensor
    if not len(events) or (int(events.x.max()) < width and int(events.y.max()) < height):
        return None
    return (events.x < width) & (events.y < height)


def count_frame(events: Events, spec: EventInput) -> Float32s:
    """All events in one frame, float32 [2, height, width], as they are after the filters.

    Raises ValueError for an event outside the sensor.
    """
    grid = FrameGrid(spec)
    if (inside := grid.inside(events)) is not None:
        first = int(np.argmin(inside))
        raise ValueError(
            f"event {first} at ({events.x[first]}, {events.y[first]}) is outside the sensor of "
            f"{grid.sensor[0]}x{grid.sensor[1]} pixels; {np.count_nonzero(~inside)} such events must be dropped first"
        )
    return grid.frame(grid.count(grid.cells_of(events)))


def resize_weights(before: int, after: int, antialiased: bool) -> Float32s:
    """[after, before], by which a column of pixels is resized: bilinear between their centres.

    With antialiasing the triangle widens with the reduction, so that every pixel counts (as in Pillow); without, only
    the two nearest centres do.
    """
    scale = before / after
    centres = (np.arange(after) + 0.5) * scale
    width = max(scale, 1.0) if antialiased else 1.0
    pixels = np.arange(before) + 0.5
    inside = centres if antialiased else centres.clip(0.5, before - 0.5)
    weights = (1 - np.abs(pixels - inside[:, None]) / width).clip(min=0)
    return np.asarray(weights / weights.sum(1, keepdims=True), np.float32)


def _oriented(spec: EventInput) -> tuple[int, int]:
    """Height and width of the sensor as the orientation turns it. Raises ValueError for sides that cannot be."""
    width, height = spec.filtered_sensor
    if spec.orientation in ("transpose", "rotate-90", "anti-transpose"):
        width, height = height, width
    channels, rows, columns = spec.shape
    if channels != 2:
        raise ValueError(f"shape {spec.shape}: a frame of events has 2 channels, OFF and ON")
    if min(width, height, rows, columns) < 1 or max(width, height) > 65536:
        raise ValueError(
            f"sensor {spec.filtered_sensor}, shape {spec.shape}: sides are 1 to 65536 pixels"
        )
    return height, width


def _factor(spec: EventInput) -> int:
    sensor = spec.filtered_sensor
    height, width = _oriented(spec)
    _, rows, columns = spec.shape
    factor = width // columns
    if factor < 1 or (width, height) != (columns * factor, rows * factor):
        raise ValueError(
            f"a sensor of {sensor[0]}x{sensor[1]} pixels, oriented {spec.orientation!r}, is "
            f"{width}x{height}; that is no whole multiple of the frame of {columns}x{rows} pixels"
        )
    return factor
