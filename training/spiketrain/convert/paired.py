"""How sure the difference of two accuracies is that were measured on the same samples.

Only samples that one of the two classifies rightly and the other wrongly tell anything. Given their number d, the
number gained is binomial; McNemar's exact test asks whether its share could be one half, and the exact (Clopper-
Pearson) interval [l, u] of that share gives (2 l - 1) d / n to (2 u - 1) d / n for the difference of the accuracies,
on n samples. The interval is conditional on d.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class PairedChange:
    """A child against its parent on the same samples. `gained`: only the child was right; `lost`: only the parent."""

    samples: int
    gained: int
    lost: int

    @property
    def points(self) -> float:
        """Change of the accuracy in percentage points."""
        return 100 * (self.gained - self.lost) / self.samples

    @property
    def p_value(self) -> float:
        """Of McNemar's exact test, two-sided: 1 where as many were gained as lost."""
        discordant = self.gained + self.lost
        return min(1.0, 2 * _at_most(min(self.gained, self.lost), discordant, 0.5))

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Exact interval of `points`. With no discordant sample it is (0, 0): the runs never differed."""
        discordant = self.gained + self.lost
        tail = (1 - confidence) / 2
        # The share gained at which this many or more, this many or fewer, are just `tail` likely.
        low, high = 0.0, 1.0
        if self.gained > 0:
            low = _root(lambda share: 1 - _at_most(self.gained - 1, discordant, share) - tail)
        if self.lost > 0:
            high = _root(lambda share: tail - _at_most(self.gained, discordant, share))
        scale = 100 * discordant / self.samples
        return (2 * low - 1) * scale, (2 * high - 1) * scale


def _at_most(successes: int, trials: int, share: float) -> float:
    """Probability of no more successes than these."""
    if successes >= trials:
        return 1.0
    if share <= 0 or share >= 1:
        return 1.0 if share <= 0 else 0.0
    total = 0.0
    for k in range(successes + 1):
        ways = math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
        total += math.exp(ways + k * math.log(share) + (trials - k) * math.log1p(-share))
    return min(total, 1.0)


def _root(rising: Callable[[float], float]) -> float:
    """Where a function that rises from 0 to 1 crosses 0."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2
