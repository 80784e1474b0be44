"""Judging a conversion: the child against its parent on held-out samples, timestep by timestep."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spiketrain.convert.paired import PairedChange
from spiketrain.energy import synaptic_operations
from spiketrain.networks import Network, StepOutput
from spiketrain.rates import LayerRates, MismatchMeter, RateMeter, each_step

# Of one batch, in all timesteps and layers.
MOST_SPIKES = 1 << 26


@dataclass(frozen=True)
class Judgement:
    """How one child did. Accuracies are of the mean logits, the last entry of `accuracy_by_timestep` over all.

    `agreement` is the share of samples that the child puts in the class its parent does. `spike_mismatch` and
    `total_mismatch` are those of `MismatchMeter`: spikes that differ, of the parent's spikes; `differing` is their
    share of all neurons and timesteps, which most of the literature means by mismatch. `parent_rates` are the parent's mean firing rates by layer.
    `operations` are synaptic operations per sample, of the parent and of the child, None where they were not counted.
    """

    samples: int
    parent_accuracy: float
    accuracy_by_timestep: tuple[float, ...]
    agreement: float
    spike_mismatch: dict[str, float]
    total_mismatch: float
    rates: dict[str, LayerRates]
    paired: PairedChange
    parent_rates: dict[str, float] = field(default_factory=dict)
    operations: tuple[float, float] | None = None

    @property
    def accuracy(self) -> float:
        return self.accuracy_by_timestep[-1]

    @property
    def change(self) -> float:
        """Accuracy gained, or lost if negative, in percentage points."""
        return 100 * (self.accuracy - self.parent_accuracy)

    @property
    def differing(self) -> float:
        neurons = {name: self.rates[name].neurons for name in self.parent_rates}
        different = sum(
            self.spike_mismatch[name] * self.parent_rates[name] * count
            for name, count in neurons.items()
        )
        return different / max(sum(neurons.values()), 1)

    @property
    def rate_drift(self) -> dict[str, float]:
        """By layer, the child's mean firing rate less the parent's, as a share of the parent's."""
        return {
            name: (self.rates[name].mean - rate) / rate if rate else 0.0
            for name, rate in self.parent_rates.items()
        }

    def summary(self) -> dict[str, Any]:
        """As JSON takes it, with what is derived; rates by layer are profiles."""
        return {
            "samples": self.samples,
            "accuracy": self.accuracy,
            "accuracy_by_timestep": list(self.accuracy_by_timestep),
            "parent_accuracy": self.parent_accuracy,
            "change_points": self.change,
            "gained": self.paired.gained,
            "lost": self.paired.lost,
            "interval_95_points": list(self.paired.interval()),
            "mcnemar_p": self.paired.p_value,
            "agreement": self.agreement,
            "total_mismatch": self.total_mismatch,
            "differing": self.differing,
            "spike_mismatch": self.spike_mismatch,
            "rate_drift": self.rate_drift,
            "synaptic_operations": None
            if self.operations is None
            else {"parent": self.operations[0], "child": self.operations[1]},
            "firing_rates": {
                name: rates.profile.model_dump() for name, rates in self.rates.items()
            },
        }


def judge(
    parent: Network,
    children: Sequence[Network],
    batches: Iterable[tuple[Tensor, Tensor]],
    progress: Callable[[int], None] = lambda samples: None,
    fan_out: Mapping[str, Tensor] | None = None,
) -> list[Judgement]:
    """Run parent and children, all in evaluation mode, once over batches of inputs and labels [N].

    All are run in the same way, so that equal neurons see equal currents to the last bit. `progress` hears of each
    batch's samples. With `fan_out`, which is one for parent and children, synaptic operations are counted.
    Raises ValueError when there are no batches.
    """
    tallies = [_Tally() for _ in children]
    before = _Tally()
    for x, y in batches:
        expected, spikes = before.run(parent, x, y, fan_out)
        for child, tally in zip(children, tallies, strict=True):
            tally.compare(child, x, y, expected, spikes, fan_out)
        progress(len(y))
    if not before.samples:
        raise ValueError("nothing to judge on: no batches")
    return [tally.judgement(before) for tally in tallies]


@torch.no_grad()
def _timesteps(network: Network, x: Tensor) -> Iterator[StepOutput]:
    """The outputs of each timestep; computed all at once, which is faster, where their spikes are not too many to keep."""
    constant = x.dim() == len(network.input_shape) + 1
    steps, batch = (network.timesteps, len(x)) if constant else x.shape[:2]
    neurons = sum(math.prod(shape) for shape in network.neuron_shapes().values())
    if steps * batch * neurons > MOST_SPIKES:
        yield from each_step(network, x)
        return
    run = network(x)
    for t, logits in enumerate(run.logits):
        yield StepOutput(logits, {name: spikes[t] for name, spikes in run.spikes.items()}, {})


class _Tally:
    def __init__(self) -> None:
        self.samples = 0
        self.right: list[int] = []
        self.agreed = self.gained = self.lost = 0
        self.operations: float | None = None
        self.mismatch = MismatchMeter()
        self.rates = RateMeter()

    def run(
        self, network: Network, x: Tensor, y: Tensor, fan_out: Mapping[str, Tensor] | None
    ) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """Classes of the samples, and the places of the spikes of each timestep."""
        total, spikes = torch.zeros(()), []
        for t, output in enumerate(_timesteps(network, x)):
            self.rates.add(t, output.spikes)
            if fan_out is not None:
                counted = synaptic_operations(output.spikes, fan_out).sum().item()
                self.operations = (self.operations or 0.0) + counted
            spikes.append({name: layer != 0 for name, layer in output.spikes.items()})
            total = total + output.logits
            if t == len(self.right):
                self.right.append(0)
            self.right[t] += int((total.argmax(1) == y).sum().item())
        self.samples += len(y)
        return total.argmax(1), spikes

    def compare(
        self,
        child: Network,
        x: Tensor,
        y: Tensor,
        expected: Tensor,
        parent_spikes: list[dict[str, Tensor]],
        fan_out: Mapping[str, Tensor] | None,
    ) -> None:
        found, spikes = self.run(child, x, y, fan_out)
        for wanted, given in zip(parent_spikes, spikes, strict=True):
            self.mismatch.add(wanted, given)
        self.agreed += int((found == expected).sum().item())
        self.gained += int(((found == y) & (expected != y)).sum().item())
        self.lost += int(((found != y) & (expected == y)).sum().item())

    def judgement(self, parent: _Tally) -> Judgement:
        samples, operations = parent.samples, None
        if self.operations is not None and parent.operations is not None:
            operations = (parent.operations / samples, self.operations / samples)
        return Judgement(
            samples=samples,
            parent_accuracy=parent.right[-1] / samples,
            accuracy_by_timestep=tuple(right / samples for right in self.right),
            agreement=self.agreed / samples,
            spike_mismatch=self.mismatch.by_layer(),
            total_mismatch=self.mismatch.total(),
            rates=self.rates.rates(),
            paired=PairedChange(samples, self.gained, self.lost),
            parent_rates={name: rates.mean for name, rates in parent.rates.rates().items()},
            operations=operations,
        )
