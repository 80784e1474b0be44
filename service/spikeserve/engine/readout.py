"""How the logits of the timesteps become class probabilities: the one place that knows a manifest's `readout`.

mean, rate   softmax of the mean of the logits (for rate they are spikes, so that their mean is a firing rate)
sum          softmax of the sum of the logits
vote         the share of the timesteps whose largest logit is the class's
last         softmax of the last timestep's logits, for a network that averages by itself
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spiketrain.events.memory import Remembers

Readout = Literal["mean", "sum", "rate", "vote", "last"]
Array = NDArray[Any]


def probabilities(readout: Readout, logits: ArrayLike) -> Array:
    """Probabilities [classes] after timesteps with these logits [timesteps, classes]."""
    rows = np.asarray(logits, dtype=np.float64)
    if readout == "vote":
        return np.asarray(_votes(rows).mean(0))
    if readout == "last":
        return _softmax(rows[-1])
    total = np.add.reduce(rows)
    return _softmax(total if readout == "sum" else total / len(rows))


class RunningReadout(Remembers):
    """The readout of a stream, which has no last timestep.

    For the first `timesteps` windows, as many as the network was trained with, it is that of all windows so far; from
    then on what came before fades: m += (x - m) / timesteps, an exponential mean with that many windows as its time
    constant. For sum, it is the mean times at most `timesteps`.
    """

    MEMORY: ClassVar[dict[str, Any]] = {"_windows": int, "_mean": np.ndarray | float}

    def __init__(self, readout: Readout, timesteps: int) -> None:
        self._readout = readout
        self._timesteps = timesteps
        self._windows = 0
        self._mean: Array | float = 0.0

    def add(self, logits: ArrayLike) -> Array:
        """Take in the logits [classes] of one more window; probabilities [classes]."""
        x = np.asarray(logits, dtype=np.float64)
        if self._readout == "last":
            return _softmax(x)
        if self._readout == "vote":
            x = _votes(x[None])[0]
        self._windows = min(self._windows + 1, self._timesteps)
        self._mean = self._mean + (x - self._mean) / self._windows
        if self._readout == "vote":
            return np.asarray(self._mean)
        return _softmax(self._mean * self._windows if self._readout == "sum" else self._mean)


def _votes(rows: Array) -> Array:
    return np.asarray(np.eye(rows.shape[-1])[rows.argmax(-1)])


def _softmax(x: Any) -> Array:
    # By the functions behind `max` and `sum`, which take less time than those for so few numbers.
    e = np.exp(x - np.maximum.reduce(x))
    return np.asarray(e / np.add.reduce(e))
