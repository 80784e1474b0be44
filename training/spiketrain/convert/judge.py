"""Judging a conversion: the child against its parent on held-out samples, timestep by timestep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spiketrain.networks import Network
from spiketrain.rates import LayerRates, MismatchMeter, RateMeter, each_step


@dataclass(frozen=True)
class Judgement:
    """How one child did. Accuracies are of the mean logits, the last entry of `accuracy_by_timestep` over all.

    `agreement` is the share of samples that the child puts in the class its parent does; `spike_mismatch` and
    `total_mismatch` are those of `MismatchMeter`.
    """

    samples: int
    parent_accuracy: float
    accuracy_by_timestep: tuple[float, ...]
    agreement: float
    spike_mismatch: dict[str, float]
    total_mismatch: float
    rates: dict[str, LayerRates]

    @property
    def accuracy(self) -> float:
        return self.accuracy_by_timestep[-1]

    @property
    def change(self) -> float:
        """Accuracy gained, or lost if negative, in percentage points."""
        return 100 * (self.accuracy - self.parent_accuracy)

    def summary(self) -> dict[str, Any]:
        """As JSON takes it, with what is derived; rates by layer are profiles."""
        return {
            "samples": self.samples,
            "accuracy": self.accuracy,
            "accuracy_by_timestep": list(self.accuracy_by_timestep),
            "parent_accuracy": self.parent_accuracy,
            "change_points": self.change,
            "agreement": self.agreement,
            "total_mismatch": self.total_mismatch,
            "spike_mismatch": self.spike_mismatch,
            "firing_rates": {
                name: rates.profile.model_dump() for name, rates in self.rates.items()
            },
        }


def judge(
    parent: Network,
    children: Sequence[Network],
    batches: Iterable[tuple[Tensor, Tensor]],
    progress: Callable[[int], None] = lambda samples: None,
) -> list[Judgement]:
    """Run parent and children, all in evaluation mode, once over batches of inputs and labels [N].

    All are run by timesteps, so that equal neurons see equal currents to the last bit. `progress` hears of each
    batch's samples. Raises ValueError when there are no batches.
    """
    tallies = [_Tally() for _ in children]
    samples = parent_right = 0
    for x, y in batches:
        total, spikes = torch.zeros(()), []
        for output in each_step(parent, x):
            total = total + output.logits
            spikes.append({name: layer != 0 for name, layer in output.spikes.items()})
        expected = total.argmax(1)
        parent_right += int((expected == y).sum().item())
        samples += len(y)
        for child, tally in zip(children, tallies, strict=True):
            tally.add(child, x, y, expected, spikes)
        progress(len(y))
    if samples == 0:
        raise ValueError("nothing to judge on: no batches")
    return [tally.judgement(samples, parent_right) for tally in tallies]


class _Tally:
    def __init__(self) -> None:
        self.right: list[int] = []
        self.agreed = 0
        self.mismatch = MismatchMeter()
        self.rates = RateMeter()

    def add(
        self,
        child: Network,
        x: Tensor,
        y: Tensor,
        expected: Tensor,
        parent_spikes: list[dict[str, Tensor]],
    ) -> None:
        total = torch.zeros(())
        for t, output in enumerate(each_step(child, x)):
            self.mismatch.add(parent_spikes[t], output.spikes)
            self.rates.add(t, output.spikes)
            total = total + output.logits
            if t == len(self.right):
                self.right.append(0)
            self.right[t] += int((total.argmax(1) == y).sum().item())
        self.agreed += int((total.argmax(1) == expected).sum().item())

    def judgement(self, samples: int, parent_right: int) -> Judgement:
        return Judgement(
            samples=samples,
            parent_accuracy=parent_right / samples,
            accuracy_by_timestep=tuple(right / samples for right in self.right),
            agreement=self.agreed / samples,
            spike_mismatch=self.mismatch.by_layer(),
            total_mismatch=self.mismatch.total(),
            rates=self.rates.rates(),
        )
