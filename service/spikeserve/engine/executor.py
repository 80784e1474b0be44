"""What computes timesteps: it owns the state of all slots, and knows neither requests nor protocols.

One thread calls it, always the same. An exception from any method but `load` means that the executor cannot be
trusted any more: its owner throws it away, with all state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class StateError(ValueError):
    """Bytes that are not a state of this network."""


@dataclass(frozen=True)
class Sample:
    """What a slot starts with.

    `constant` is the input [C, H, W] of every timestep, or None where each timestep brings a frame. `timesteps` is
    how many there will be: an executor may compute that far ahead at once and hand out the results one by one. It is
    None where nobody knows: for streams, and for pictures that may leave early.
    """

    constant: Tensor | None = None
    timesteps: int | None = None


@dataclass(frozen=True)
class Frames:
    """Inputs of one timestep: `values[i]`, [C, H, W], is for the slot at `rows[i]` of the list of slots."""

    rows: tuple[int, ...]
    values: Tensor


@dataclass(frozen=True)
class StepResult:
    """One row for each slot, in the order asked for; on the CPU."""

    logits: Tensor  # float32 [n, classes], of this timestep only
    spikes: Tensor  # float64 [n, layers], how many neurons fired, in the order of the executor's `layers`
    synaptic_operations: Tensor  # float64 [n]


class Executor(Protocol):
    """One that computes ahead may have a method `further(slot)`, too: it hands out at once all timesteps of a slot that are
    computed already, as arrays of logits [t, classes], spikes [t, layers] and operations [t], or None.
    """

    @property
    def slots(self) -> int: ...

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers whose spikes are counted: those of neurons that spike."""

    def admit(self, slot: int, sample: Sample) -> None:
        """Put a sample into a slot, before its first timestep. Nothing of an earlier sample stays."""

    def step(self, slots: Sequence[int], frames: Frames | None) -> StepResult:
        """One timestep of these slots, each named once. Slots without a constant input need a frame."""

    def save(self, slot: int) -> bytes:
        """The state of a slot, to continue later, in any slot and in another process. The slot keeps it, too."""

    def load(self, slot: int, state: bytes) -> None:
        """Continue in this slot, bit by bit, where `save` was called. Raises StateError; the slot is then empty."""
