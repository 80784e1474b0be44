"""Timestamps of a camera's few bits, continued to 64 bits across wrap-around."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from spiketrain.events.memory import Remembers
from spiketrain.events.types import Int64s


class Clock(Remembers):
    """Counts how often a counter of `bits` bits has wrapped.

    A fall by more than half the counter's range is a wrap, a smaller one an event out of order. A rise by more
    than half is an event from before the last wrap, unless `forward`: then it is only a long pause.
    """

    MEMORY: ClassVar[dict[str, Any]] = {"_last": int | None, "_base": int}

    def __init__(self, bits: int, forward: bool = False) -> None:
        self._range = 1 << bits
        self._forward = forward
        self.reset()

    def reset(self) -> None:
        self._last: int | None = None
        self._base = 0

    @property
    def state(self) -> tuple[int, int]:
        """The counter's last value, -1 before the first one, and how far its wraps have taken it."""
        return -1 if self._last is None else self._last, self._base

    @state.setter
    def state(self, state: tuple[int, int]) -> None:
        last, self._base = state
        self._last = None if last < 0 else last

    def extend(self, raw: NDArray[Any]) -> Int64s:
        """The counter's values [N], in the order they were recorded, as 64-bit times. Keeps its state between calls."""
        t: Int64s = raw.astype(np.int64)
        if not len(t):
            return t
        first, half = int(t[0]), self._range // 2
        self._base += self._range * self._wraps(
            first - (first if self._last is None else self._last)
        )
        self._last = int(t[-1])
        if int(t.max()) - int(t.min()) <= half:
            if self._base:
                t += self._base
            return t
        step = np.diff(t)
        wraps = (step < -half).astype(np.int64)
        if not self._forward:
            wraps -= step > half
        np.cumsum(wraps, out=wraps)
        t += self._base
        t[1:] += wraps * self._range
        self._base += int(wraps[-1]) * self._range
        return t

    def _wraps(self, step: int) -> int:
        half = self._range // 2
        return int(step < -half) - int(step > half and not self._forward)
