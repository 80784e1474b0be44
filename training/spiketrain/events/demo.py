"""A camera that is not there: rendered digits seen by the emulated DVS, one after the other, in stream time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from spiketrain.events.digits import render_digit
from spiketrain.events.emulator import SACCADES_US, Dvs, saccade_events
from spiketrain.events.types import Events


class DemoChunk(NamedTuple):
    """What the camera saw until stream time `until_us`, and the digit in front of it (None in a pause)."""

    events: Events
    until_us: int
    label: int | None


def demo_events(
    seed: int = 0,
    digits: Iterable[int] | None = None,
    chunk_us: int = 10_000,
    pause_us: int = 200_000,
    dvs: Dvs | None = None,
) -> Iterator[DemoChunk]:
    """Chunks of about `chunk_us`, without end if `digits` is None: then they are drawn at random.

    Each digit is in view for 310 ms (N-MNIST's three saccades), written in a hand of its own, and followed by
    `pause_us` without events, in which neurons forget it. The same seed and digits give the same events.
    Raises ValueError for a chunk below 1 ms, a negative pause or something that is no digit.
    """
    if chunk_us < 1000 or pause_us < 0:
        raise ValueError(
            f"chunk_us {chunk_us} must be 1000 or more and pause_us {pause_us} 0 or more"
        )
    random = np.random.default_rng(seed)
    shown = (int(random.integers(10)) for _ in itertools.count()) if digits is None else digits
    step_us = 1000
    start_us = 0
    for number, digit in enumerate(shown):
        image = render_digit(digit, seed * 1009 + number)
        looks = saccade_events(image, seed * 1009 + number, dvs, start_us, step_us)
        end_us = start_us + SACCADES_US
        for until_us in _steps(start_us, end_us, chunk_us // step_us * step_us):
            count = (until_us - start_us) // step_us
            events = Events.concatenate(itertools.islice(looks, count))
            yield DemoChunk(events, until_us, digit)
            start_us = until_us
        for until_us in _steps(end_us, end_us + pause_us, chunk_us):
            yield DemoChunk(Events.empty(), until_us, None)
        start_us = end_us + pause_us


def _steps(begin: int, end: int, step: int) -> Iterator[int]:
    """begin + step, begin + 2 step, ... and the end."""
    yield from range(begin + step, end, step)
    if end > begin:
        yield end
