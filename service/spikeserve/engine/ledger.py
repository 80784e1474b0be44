"""What the pictures in the slots have given so far, and which of them are done. One array operation for a whole batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spikeserve.engine.exit import ExitPolicy
from spiketrain.exit import NEVER, top_probability

Array = NDArray[Any]


class Ledger:
    """Rows are slots, so that nothing is moved when pictures come and go."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._ran = np.zeros(slots, np.intp)
        self._last = np.ones(slots, np.intp)
        self._exits = np.zeros(slots, np.bool_)
        # By slot and timestep, as many as any picture has had; logits and the rest once their sizes are known.
        self._thresholds = np.full((slots, 1), NEVER)
        self._temperatures = np.ones((slots, 1))
        self._logits: Array | None = None
        self._sum = self._spikes = self._first = self._operations = np.empty(0)

    def begin(self, slot: int, timesteps: int, policy: ExitPolicy | None) -> None:
        """A picture of so many timesteps takes the slot. Nothing of the one before stays."""
        if timesteps > self._thresholds.shape[1]:
            self._grow(timesteps)
        self._ran[slot], self._last[slot] = 0, timesteps
        self._exits[slot] = policy is not None
        if policy is not None:
            steps = len(policy.thresholds)
            self._thresholds[slot, :steps] = policy.thresholds
            self._thresholds[slot, steps:] = NEVER
            self._temperatures[slot, :steps] = policy.temperatures
        if self._logits is not None:
            self._sum[slot] = self._spikes[slot] = self._operations[slot] = 0.0

    def add(self, slots: Sequence[int], logits: Array, spikes: Array, operations: Array) -> Array:
        """One timestep of these slots: logits [n, classes], spikes [n, layers], synaptic operations [n].

        Returns which of them are done, [n] of bool: after their last timestep, or sure enough.
        """
        if self._logits is None:
            self._logits = self._history(logits.shape[1], logits.dtype)
            self._sum = np.zeros((self._slots, logits.shape[1]))
            self._spikes = np.zeros((self._slots, spikes.shape[1]))
            self._first = np.zeros_like(self._spikes)
            self._operations = np.zeros(self._slots)
        rows = np.asarray(slots)
        ran = self._ran[rows]
        self._logits[rows, ran] = logits
        self._sum[rows] += logits
        self._spikes[rows] += spikes
        if (new := ran == 0).any():
            self._first[rows[new]] = spikes[new]
        self._operations[rows] += operations
        self._ran[rows] = ran + 1
        done: Array = ran + 1 >= self._last[rows]
        if (may_leave := self._exits[rows] & ~done).any():
            done[may_leave] = self._sure(rows[may_leave], ran[may_leave])
        return done

    def add_further(self, slot: int, logits: Array, spikes: Array, operations: Array) -> bool:
        """Further timesteps of a picture that stays for all of them, after the first one has been added.

        Logits [t, classes], spikes [t, layers], synaptic operations [t]. Returns whether it is done.
        """
        if self._logits is None:
            raise RuntimeError(f"slot {slot} has run no timestep")
        ran = self._ran[slot]
        stop = ran + len(logits)
        self._logits[slot, ran:stop] = logits
        self._sum[slot] += logits.sum(0)
        self._spikes[slot] += spikes.sum(0)
        self._operations[slot] += operations.sum()
        self._ran[slot] = stop
        return bool(stop >= self._last[slot])

    def take(self, slot: int) -> tuple[Array, Array, Array, float]:
        """Logits [timesteps, classes], spikes [layers] of all timesteps and of the first, and synaptic operations of
        the picture in the slot, to keep."""
        if self._logits is None:
            raise RuntimeError(f"slot {slot} has run no timestep")
        logits = self._logits[slot, : self._ran[slot]].copy()
        spikes, first = self._spikes[slot].copy(), self._first[slot].copy()
        return logits, spikes, first, float(self._operations[slot])

    def _sure(self, rows: Array, timestep: Array) -> Array:
        mean = self._sum[rows] / (timestep + 1)[:, None]
        score = top_probability(mean, self._temperatures[rows, timestep])
        return np.asarray(score >= self._thresholds[rows, timestep])

    def _grow(self, timesteps: int) -> None:
        more = ((0, 0), (0, timesteps - self._thresholds.shape[1]))
        self._thresholds = np.pad(self._thresholds, more, constant_values=NEVER)
        self._temperatures = np.pad(self._temperatures, more, constant_values=1.0)
        if self._logits is not None:
            kept = self._logits
            self._logits = self._history(kept.shape[2], kept.dtype)
            self._logits[:, : kept.shape[1]] = kept

    def _history(self, classes: int, dtype: np.dtype[Any]) -> Array:
        return np.zeros((self._slots, self._thresholds.shape[1], classes), dtype)
