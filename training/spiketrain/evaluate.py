"""Accuracy and firing rates of a network over a split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from spiketrain.manifest import Accuracy, RateProfile
from spiketrain.networks import Network


@dataclass(frozen=True)
class Evaluation:
    """`accuracy_by_timestep` is that of the answers after the first t timesteps, t = 1..T.

    `logits` [N, classes] is the answer after all: the mean over timesteps, or the last one where the network averages
    by itself; `rates` gives each layer's firing rate by sample [N], in
    spikes per neuron per timestep, `rates_by_timestep` by timestep [T].
    """

    samples: int
    accuracy: float
    loss: float
    accuracy_by_timestep: tuple[float, ...]
    logits: Tensor
    labels: Tensor
    rates: dict[str, Tensor]
    rates_by_timestep: dict[str, Tensor]

    @property
    def predictions(self) -> Tensor:
        return self.logits.argmax(1)

    def as_accuracy(self, dataset: str, split: str) -> Accuracy:
        """What a manifest says of this, for a checkpoint that was selected on validation."""
        return Accuracy(
            dataset=dataset,
            split=split,
            samples=self.samples,
            value=self.accuracy,
            selected_on="validation",
            by_timestep=self.accuracy_by_timestep,
        )

    def rate_profiles(self) -> dict[str, RateProfile]:
        return {name: rate_profile(rates) for name, rates in self.rates.items()}


def rate_profile(rates: Tensor) -> RateProfile:
    """The profile of one layer from its firing rates by sample [N]."""
    p1, p50, p99 = torch.quantile(
        rates.double(), torch.tensor([0.01, 0.5, 0.99], dtype=torch.double)
    ).tolist()
    return RateProfile(mean=rates.double().mean().item(), p1=p1, p50=p50, p99=p99)


def running_answers(logits: Tensor, readout: str) -> Tensor:
    """What a run says after each timestep, from the logits [T, N, classes] of each, by a network's readout."""
    if readout == "last":
        return logits
    steps = torch.arange(1, len(logits) + 1, dtype=logits.dtype, device=logits.device)
    return logits.cumsum(0) / steps.view(-1, 1, 1)


def merged(parts: Sequence[Evaluation]) -> Evaluation:
    """One evaluation of the samples of all parts, which are those of one network."""
    if len(parts) == 1:
        return parts[0]
    logits, labels = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("logits", "labels")
    )
    shares = torch.tensor([part.samples for part in parts], dtype=torch.double) / len(labels)

    def mean(values: Iterable[Tensor]) -> Tensor:
        return sum((v * share for v, share in zip(values, shares, strict=True)), torch.zeros(()))

    steps = mean(torch.tensor(p.accuracy_by_timestep, dtype=torch.double) for p in parts)
    names = parts[0].rates
    return Evaluation(
        samples=len(labels),
        accuracy=steps[-1].item(),
        loss=functional.cross_entropy(logits, labels).item(),
        accuracy_by_timestep=tuple(steps.tolist()),
        logits=logits,
        labels=labels,
        rates={name: torch.cat([part.rates[name] for part in parts]) for name in names},
        rates_by_timestep={
            name: mean(part.rates_by_timestep[name] for part in parts) for name in names
        },
    )


@torch.no_grad()
def evaluate(
    network: Network, batches: Iterable[tuple[Tensor, Tensor]], timesteps: int | None = None
) -> Evaluation:
    """Run a network, in evaluation mode, over batches of inputs ([N, ...] or [T, N, ...]) and labels [N].

    Batches are on the network's device; what is found is on the CPU.
    """
    training = network.training
    network.eval()
    logits, labels, right = [], [], []
    rates: dict[str, list[Tensor]] = {}
    by_timestep: dict[str, list[Tensor]] = {}
    for x, y in batches:
        run = network(x, timesteps)
        prefixes = running_answers(run.logits, network.logit_readout)
        right.append((prefixes.argmax(2) == y).sum(1).cpu())
        logits.append(prefixes[-1].cpu())
        labels.append(y.cpu())
        for name, spikes in run.spikes.items():
            by_sample = spikes.flatten(2).mean(2)
            rates.setdefault(name, []).append(by_sample.mean(0).cpu())
            by_timestep.setdefault(name, []).append(by_sample.sum(1).cpu())
    network.train(training)
    if not labels:
        raise ValueError("nothing to evaluate: no batches")
    everything, truth = torch.cat(logits), torch.cat(labels)
    accuracies = torch.stack(right).sum(0).double() / len(truth)
    return Evaluation(
        samples=len(truth),
        accuracy=accuracies[-1].item(),
        loss=functional.cross_entropy(everything, truth).item(),
        accuracy_by_timestep=tuple(accuracies.tolist()),
        logits=everything,
        labels=truth,
        rates={name: torch.cat(parts) for name, parts in rates.items()},
        rates_by_timestep={
            name: torch.stack(parts).sum(0) / len(truth) for name, parts in by_timestep.items()
        },
    )
