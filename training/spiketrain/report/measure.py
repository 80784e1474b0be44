"""Runs a network over held-out samples and keeps what a report shows; spikes themselves only of a few samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spiketrain.data import DataSet, Split
from spiketrain.evaluate import running_answers
from spiketrain.manifest import ImageInput
from spiketrain.networks import Network
from spiketrain.report.costs import UPDATE_MULTIPLICATIONS, Work
from spiketrain.report.counting import OperationCounter

_ROWS = 40


@dataclass(frozen=True)
class Raster:
    """One sample: `spikes` [T, rows] by layer, of some of the neurons that fired; `answers` by timestep, with probability.

    `picture` is [C, H, W] between 0 and 1, for events their OFF and ON counts over all windows.
    """

    index: int
    label: int
    answers: list[tuple[int, float]]
    picture: Tensor
    events: bool
    spikes: dict[str, Tensor]
    shown_of: dict[str, int]


@dataclass(frozen=True)
class Measured:
    """`rates` [T] by layer; `operations` by layer, mean of a sample; `confusion[label, answer]` counts samples."""

    samples: int
    accuracy_by_timestep: list[float]
    confusion: Tensor
    rates: dict[str, Tensor]
    silent: dict[str, float]
    neurons: dict[str, int]
    operations: dict[str, float]
    operations_by: str
    operations_of_samples: Tensor
    spikes: float
    work: Work
    rasters: list[Raster]


@dataclass
class _Sums:
    right: Tensor | None = None
    rates: dict[str, Tensor] = field(default_factory=dict)
    fired: dict[str, Tensor] = field(default_factory=dict)
    operations: dict[str, float] = field(default_factory=dict)
    of_samples: list[Tensor] = field(default_factory=list)
    answers: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)

    def add(
        self, prefixes: Tensor, y: Tensor, spikes: dict[str, Tensor], ops: dict[str, Tensor]
    ) -> None:
        right = (prefixes.argmax(2) == y).sum(1)
        self.right = right if self.right is None else self.right + right
        self.answers.append(prefixes[-1].argmax(1))
        self.labels.append(y)
        for name, layer in spikes.items():
            flat = layer.flatten(2)
            self.rates[name] = self.rates.get(name, 0) + flat.mean(2, dtype=torch.float64).sum(1)
            self.fired[name] = self.fired.get(name, 0) + flat.sum((0, 1))
        for name, each in ops.items():
            self.operations[name] = self.operations.get(name, 0.0) + each.sum().item()
        self.of_samples.append(torch.stack(list(ops.values())).sum(0))


@torch.no_grad()
def measure(
    network: Network,
    data: DataSet,
    split: Split,
    timesteps: int | None,
    chosen: Sequence[int] = (),
    batch_size: int = 100,
) -> Measured:
    """`chosen` samples get rasters; if there are none, the first that is classified rightly and the first that is not.

    `timesteps` are those of a picture, None for events, which bring their own. Raises ValueError for a sample that the
    split does not have.
    """
    if chosen and not 0 <= min(chosen) <= max(chosen) < len(split):
        raise ValueError(f"--sample: the split has samples 0 to {len(split) - 1}")
    network = network.eval()
    counter = OperationCounter(network)
    sums = _Sums()
    for x, y in data.batches(split, batch_size):
        with counter.counting(len(y)) as operations:
            run = network(x, timesteps)
        prefixes = running_answers(run.logits, network.logit_readout)
        sums.add(prefixes, y, run.spikes, operations(run.spikes))
    if sums.right is None:
        raise ValueError("nothing to report on: the split is empty")
    answers, labels = torch.cat(sums.answers), torch.cat(sums.labels)
    count, classes = len(labels), len(data.classes)
    rates = {name: total / count for name, total in sums.rates.items()}
    shapes = network.neuron_shapes()
    neurons = {name: torch.Size(shapes[name]).numel() for name in rates}
    steps = len(sums.right)
    spikes = sum(float(rates[name].sum()) * neurons[name] for name in rates)
    operations_of_samples = torch.cat(sums.of_samples)
    picked = list(chosen) or _first_of_each(answers == labels)
    return Measured(
        samples=count,
        accuracy_by_timestep=(sums.right.double() / count).tolist(),
        confusion=torch.bincount(labels * classes + answers, minlength=classes**2).view(
            classes, classes
        ),
        rates=rates,
        silent={name: (fired == 0).double().mean().item() for name, fired in sums.fired.items()},
        neurons=neurons,
        operations={name: total / count for name, total in sums.operations.items()},
        operations_by=counter.by,
        operations_of_samples=operations_of_samples,
        spikes=spikes,
        work=_work(network, counter, neurons, steps, operations_of_samples, spikes, data),
        rasters=[_raster(network, data, split, index, timesteps) for index in picked],
    )


def _first_of_each(right: Tensor) -> list[int]:
    found = [(right == wanted).nonzero().flatten()[:1].tolist() for wanted in (True, False)]
    return [index for each in found for index in each]


def _work(
    network: Network,
    counter: OperationCounter,
    neurons: dict[str, int],
    timesteps: int,
    operations: Tensor,
    spikes: float,
    data: DataSet,
) -> Work:
    encoder, dense = counter.dense_macs()
    layers = network.neuron_layers()
    updates = sum(
        count * UPDATE_MULTIPLICATIONS.get(getattr(layers[name].config, "kind", ""), 1)
        for name, count in neurons.items()
    )
    state = network.initial_state(1)
    return Work(
        passes=1 if isinstance(data.input, ImageInput) else timesteps,
        encoder_macs=encoder,
        dense_macs=dense,
        operations=operations.mean().item(),
        spikes=spikes,
        updates=updates * timesteps,
        state=sum(
            part.numel() for name in neurons for part in state[name] if part.is_floating_point()
        ),
        timesteps=timesteps,
        neurons=sum(neurons.values()),
        weights=counter.weights(),
    )


def _raster(
    network: Network, data: DataSet, split: Split, index: int, timesteps: int | None
) -> Raster:
    one = split.at(torch.tensor([index]))
    x, y = next(iter(data.batches(one, 1)))
    run = network(x, timesteps)
    prefixes = running_answers(run.logits, network.logit_readout)[:, 0]
    chances, answers = prefixes.softmax(1).max(1)
    spikes, shown_of = {}, {}
    for name, layer in run.spikes.items():
        flat = layer[:, 0].flatten(1)
        # Those that fired most would all look alike, so the ones shown are spread over all that fired.
        fired = flat.any(0).nonzero().flatten()
        rows = fired[torch.linspace(0, len(fired) - 1, min(_ROWS, len(fired))).round().long()]
        spikes[name], shown_of[name] = flat[:, rows] > 0, len(fired)
    events = data.input.kind == "events"
    picture = x.sum(0)[0] if events else _denormalised(x[0], data)
    return Raster(
        index=index,
        label=int(y[0]),
        answers=list(zip(answers.tolist(), chances.tolist(), strict=True)),
        picture=picture / picture.max().clamp(min=1e-6) if events else picture,
        events=events,
        spikes=spikes,
        shown_of=shown_of,
    )


def _denormalised(x: Tensor, data: DataSet) -> Tensor:
    if not isinstance(data.input, ImageInput):
        return x
    mean = torch.tensor(data.input.mean).view(-1, 1, 1)
    std = torch.tensor(data.input.std).view(-1, 1, 1)
    return (x * std + mean).clamp(0, 1)
