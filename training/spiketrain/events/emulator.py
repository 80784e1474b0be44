"""A small emulator of a DVS, and a picture seen by it through N-MNIST's three saccades.

Each pixel remembers a level of log intensity. Where the intensity now differs from it by the contrast threshold,
the pixel emits an event, ON for brighter, and the level moves by that threshold:

    |log I(t) - level| >= threshold   ->   event at t,   level += polarity * threshold

Between two frames log I is taken to change linearly, which gives each event its own microsecond. Within the refractory
period of its last event a pixel moves its level without an event (as in ESIM, Rebecq et al., 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spiketrain.events.types import Events, Int64s

Image = NDArray[np.floating[Any]]

MAX_EVENTS_PER_STEP = 64
"""Of one pixel between two frames; more than a real pixel could, and a bound for pictures that go to black."""


@dataclass(frozen=True)
class Dvs:
    """Contrast thresholds in log intensity; `mismatch` is their relative spread over the pixels; noise in Hz a pixel.

    `darkest` is the intensity below which everything is black, relative to 1 = white.
    """

    threshold: float = 0.2
    mismatch: float = 0.05
    refractory_us: int = 1500
    noise_hz: float = 0.5
    darkest: float = 0.01

    def __post_init__(self) -> None:
        if self.threshold <= 0 or self.darkest <= 0:
            raise ValueError(
                f"threshold {self.threshold} and darkest {self.darkest} must be above 0"
            )
        if min(self.mismatch, self.refractory_us, self.noise_hz) < 0:
            raise ValueError("mismatch, refractory_us and noise_hz must be 0 or more")


class Emulator:
    """The pixels of one DVS. `look` is called with one frame after the other."""

    def __init__(self, dvs: Dvs, seed: int = 0) -> None:
        self._dvs = dvs
        self._random = np.random.default_rng(seed)
        self._t = 0
        self._log: NDArray[np.float64] | None = None

    def look(self, image: Image, t_us: int) -> Events:
        """Intensities [H, W] at `t_us`, 0 to 1: the events since the frame before, in order of time.

        The first frame is what the pixels start from, and gives none. Raises ValueError if time does not
        increase or the picture changes its shape.
        """
        log = np.log(np.maximum(np.asarray(image, np.float64), self._dvs.darkest)).ravel()
        if self._log is None:
            self._begin(log, image.shape, t_us)
            return Events.empty()
        if image.shape != self._shape or t_us <= self._t:
            raise ValueError(
                f"a frame {image.shape} at {t_us} us cannot follow one of {self._shape} at {self._t} us"
            )
        crossings = self._crossings(self._log, log, t_us)
        t, pixel, p = (
            np.concatenate(column) for column in zip(*crossings, self._noise(t_us), strict=True)
        )
        order = np.argsort(t, kind="stable")
        y, x = np.divmod(pixel[order], self._shape[1])
        self._log, self._t = log, t_us
        return Events(t[order], x.astype(np.uint16), y.astype(np.uint16), p[order].astype(np.uint8))

    def _begin(self, log: NDArray[np.float64], shape: tuple[int, ...], t_us: int) -> None:
        self._shape = shape
        self._log, self._level, self._t = log, log.copy(), t_us
        self._last = np.full(log.size, t_us - self._dvs.refractory_us, np.int64)
        spread = 1 + self._dvs.mismatch * self._random.standard_normal(log.size)
        self._threshold = self._dvs.threshold * np.clip(spread, 0.3, None)

    def _crossings(
        self, before: NDArray[np.float64], now: NDArray[np.float64], t_us: int
    ) -> list[tuple[Int64s, Int64s, Int64s]]:
        """Times, pixels and polarities, one entry for the first crossing of each pixel, one for the second, ..."""
        found = []
        pixels: Int64s = np.arange(now.size)
        for _ in range(MAX_EVENTS_PER_STEP):
            pixels = pixels[np.abs(now[pixels] - self._level[pixels]) >= self._threshold[pixels]]
            if not len(pixels):
                break
            sign = np.sign(now[pixels] - self._level[pixels])
            self._level[pixels] += sign * self._threshold[pixels]
            part = (self._level[pixels] - before[pixels]) / (now[pixels] - before[pixels])
            t = self._t + (np.clip(part, 0, 1) * (t_us - self._t)).astype(np.int64)
            seen = t - self._last[pixels] >= self._dvs.refractory_us
            self._last[pixels[seen]] = t[seen]
            found.append((t[seen], pixels[seen], (sign[seen] > 0).astype(np.int64)))
        return found

    def _noise(self, t_us: int) -> tuple[Int64s, Int64s, Int64s]:
        """Background activity: events of either polarity, anywhere, any time."""
        pixels = self._level.size
        count = self._random.poisson(self._dvs.noise_hz * pixels * (t_us - self._t) * 1e-6)
        return (
            self._random.integers(self._t, t_us, count),
            self._random.integers(0, pixels, count),
            self._random.integers(0, 2, count),
        )


SENSOR = (34, 34)
SACCADES_US = 310_000

# Measured on N-MNIST: where the picture's upper left corner is on the sensor, and when it moves there. The running sum
# of polarities in 300 recordings was compared with the MNIST pictures, shifted: correlation 0.94.
_CORNERS = ((0.0, 1.1), (2.0, 6.8), (5.6, 1.6), (0.6, 1.2))
_MOVES_US = ((6_000, 82_000), (113_000, 186_000), (220_000, 290_000))

# In N-MNIST a bright stroke gives events of polarity 0 where it arrives: the digits look like ink on a lit page.
_INK = 0.7


def saccade_position(t_us: float) -> tuple[float, float]:
    """Where the picture's corner (x, y) is at `t_us`, in pixels of the sensor."""
    position = _CORNERS[0]
    for (begin, end), source, target in zip(_MOVES_US, _CORNERS, _CORNERS[1:], strict=False):
        part = min(max((t_us - begin) / (end - begin), 0.0), 1.0)
        part = part * part * (3 - 2 * part)
        if t_us >= begin:
            position = (
                source[0] + (target[0] - source[0]) * part,
                source[1] + (target[1] - source[1]) * part,
            )
    return position


def saccade_movie(image: Image) -> Callable[[float], NDArray[np.float64]]:
    """Intensities [34, 34] over time, of a picture [28, 28] with ink from 0 to 1 that moves with subpixel steps."""
    if image.shape != (28, 28):
        raise ValueError(f"a picture for the saccades has 28x28 pixels, not {image.shape}")
    width, height = SENSOR
    page = np.zeros((height + 2, width + 2))

    def at(t_us: float) -> NDArray[np.float64]:
        x, y = saccade_position(t_us)
        column, row = int(x), int(y)
        page[:] = 0
        page[row + 1 : row + 29, column + 1 : column + 29] = image
        # Bilinear: what lies between two pixels is shared by both.
        dx, dy = x - column, y - row
        rows = page[1:-1] * (1 - dy) + page[:-2] * dy
        ink = rows[:, 1:-1] * (1 - dx) + rows[:, :-2] * dx
        seen: NDArray[np.float64] = 1 - _INK * ink
        return seen

    return at


def saccade_events(
    image: Image, seed: int = 0, dvs: Dvs | None = None, start_us: int = 0, step_us: int = 1000
) -> Iterator[Events]:
    """As `saccade_recording`, the events of one `step_us` at a time."""
    if step_us < 1:
        raise ValueError(f"step_us {step_us} must be 1 or more")
    movie = saccade_movie(image)
    emulator = Emulator(dvs or Dvs(), seed)
    emulator.look(movie(0), start_us)
    for t in range(step_us, SACCADES_US + step_us, step_us):
        yield emulator.look(movie(t), start_us + t)


def saccade_recording(
    image: Image, seed: int = 0, dvs: Dvs | None = None, start_us: int = 0, step_us: int = 1000
) -> Events:
    """A picture [28, 28] of ink (0 to 1) as N-MNIST would have recorded it: 34x34 pixels, about 310 ms."""
    return Events.concatenate(saccade_events(image, seed, dvs, start_us, step_us))
