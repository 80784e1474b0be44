"""The networks of the PLIF paper (Fang et al., ICCV 2021), one for each of its data sets.

Convolutions are 3x3 with padding 1; neither they nor the linear layers have a bias; a batch norm follows each
convolution. The last layer has ten neurons a class, whose spikes are averaged: the logits are firing rates between 0
and 1, and the answer is the class that fired most.

    pictures:  conv-bn (once, as the input stays), then neuron and pooling between further convolutions
    events:    (conv bn neuron pool) n times

Pooling is by the maximum, as in the paper's best results, or by the average.
Source: codes/models.py of fangwei123456/Parametric-Leaky-Integrate-and-Fire-Spiking-Neuron.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

from torch import Tensor, nn

from spiketrain.networks.base import Fire, Network, NeuronFactory, SharedDropout

_VOTERS = 10

# "P" is a pooling; a number a convolution with so many channels, its batch norm and its neuron.
Plan = Sequence[int | str]


class _Unit(nn.Module):
    def __init__(self, neurons: NeuronFactory, path: str, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.neuron = neurons(f"{path}.neuron", outputs)


class PlifNet(Network):
    """`hidden` neurons between the features and the voters; `dropouts` before the first and the second linear layer."""

    def __init__(
        self,
        neurons: NeuronFactory,
        plan: Plan,
        input_shape: tuple[int, ...],
        classes: int = 10,
        hidden: int | None = None,
        dropouts: tuple[float, float] = (0.5, 0.5),
        pooling: Literal["max", "average"] = "max",
    ) -> None:
        super().__init__(input_shape, classes, neurons.timesteps)
        if pooling not in ("max", "average"):
            raise ValueError(f"pooling is {pooling!r}: 'max' or 'average'")
        inputs, height, width = input_shape
        self.features = nn.ModuleList()
        for i, entry in enumerate(plan):
            if isinstance(entry, int):
                self.features.append(_Unit(neurons, f"features.{i}", inputs, entry))
                inputs = entry
            else:
                self.features.append(nn.MaxPool2d(2) if pooling == "max" else nn.AvgPool2d(2))
                height, width = height // 2, width // 2
        count = inputs * height * width
        if not count:
            raise ValueError(f"input of shape {tuple(input_shape)}: too small for its poolings")
        hidden = hidden or count // 4
        self.dropout1 = SharedDropout(dropouts[0])
        self.linear1 = nn.Linear(count, hidden, bias=False)
        self.neuron1 = neurons("neuron1", hidden)
        self.dropout2 = SharedDropout(dropouts[1])
        self.linear2 = nn.Linear(hidden, _VOTERS * classes, bias=False)
        self.neuron2 = neurons("neuron2", _VOTERS * classes)

    def encode(self, x: Tensor) -> Tensor:
        first = cast(_Unit, self.features[0])
        return cast(Tensor, first.bn(first.conv(x)))

    def body(self, x: Tensor, fire: Fire) -> Tensor:
        for i, module in enumerate(self.features):
            if isinstance(module, _Unit):
                x = fire(module.neuron, x if i == 0 else module.bn(module.conv(x)))
            else:
                x = module(x)
        x = self.dropout1(x.flatten(1), fire.timesteps)
        x = self.dropout2(fire(self.neuron1, self.linear1(x)), fire.timesteps)
        votes = fire(self.neuron2, self.linear2(x))
        return votes.view(len(votes), self.classes, _VOTERS).mean(2)
