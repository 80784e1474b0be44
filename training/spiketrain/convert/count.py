"""The compiled loop of the grid search: many LIF neurons on the same currents, compared with one spike train.

Neurons of one channel and sample stay in the first-level cache while all candidates run on them, so that a candidate
costs next to nothing but its arithmetic, which is `LIF.step`'s.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spiketrain.kernels.loops import compiled

Array = NDArray[np.float32]


@compiled
def count_wrong(
    x: Array,
    wanted: Array,
    values: Array,
    thresholds: Array,
    constants: Array,
    hard: bool,
    strict: bool,
    out: NDArray[np.int64],
) -> None:
    """Adds to out [K, C] how many spikes differ from those wanted [T, N, C, positions].

    Currents `x` have that shape too, or [1, N, C, positions] where they stay the same; values and thresholds are
    [K, C]; constants are 1/tau, the rest, and what currents are multiplied by.
    """
    leak, rest, gain = constants
    steps, samples, channels, positions = wanted.shape
    v = np.empty(positions, np.float32)
    for n in range(samples):
        for c in range(channels):
            for k in range(len(values)):
                value, threshold = values[k, c], thresholds[k, c]
                v[:] = rest
                wrong = 0
                for t in range(steps):
                    row, expected = x[min(t, len(x) - 1), n, c], wanted[t, n, c]
                    for i in range(positions):
                        h = v[i] - (v[i] - rest) * leak + row[i] * gain
                        fires = h > threshold if strict else h >= threshold
                        after = value if hard else h - value
                        v[i] = after if fires else h
                        wrong += fires != (expected[i] != 0)
                out[k, c] += wrong
