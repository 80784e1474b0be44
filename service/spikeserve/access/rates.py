"""So many a second on average, and so many at once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class Bucket:
    """A token bucket: holds `burst` at most, and is filled with `rate` a second. Not for several threads at once."""

    def __init__(
        self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rate = rate
        self.burst = burst
        self._clock = clock
        self._filled = clock()
        self._level = burst

    def take(self, amount: float = 1) -> float:
        """0 where there was enough, else how many seconds it takes until there is, and nothing was taken.

        More than `burst` at once is granted from a full bucket, and paid for by those who come later.
        """
        now = self._clock()
        self._level = min(self.burst, self._level + (now - self._filled) * self.rate)
        self._filled = now
        needed = min(amount, self.burst)
        # What is missing because of rounding is not missing.
        if self._level >= needed * (1 - 1e-9):
            self._level -= amount
            return 0.0
        return (needed - self._level) / self.rate


def default_burst(rate: float) -> int:
    return max(1, math.ceil(rate))
