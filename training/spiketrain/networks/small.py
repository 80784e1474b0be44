"""Small networks of our own, that two CPU cores can train and serve.

Each stage is conv 3x3, batch norm, neuron and an average pooling by 2; then a linear readout. Average pooling
and convolutions with a foldable batch norm are what ONNX, NIR and neuromorphic chips can express.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from spiketrain.networks.base import Fire, Network, NeuronFactory, SharedDropout


class _Stage(nn.Module):
    def __init__(self, neurons: NeuronFactory, path: str, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.neuron = neurons(f"{path}.neuron", outputs)
        self.pool = nn.AvgPool2d(2)


class SmallConv(Network):
    """`channels` names the stages; with `hidden` there is one more layer of neurons before the readout."""

    def __init__(
        self,
        neurons: NeuronFactory,
        input_shape: tuple[int, ...] = (1, 28, 28),
        classes: int = 10,
        channels: Sequence[int] = (16, 32, 64),
        hidden: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(input_shape, classes, neurons.timesteps)
        inputs, height, width = input_shape
        self.stages = nn.ModuleList()
        for i, outputs in enumerate(channels):
            self.stages.append(_Stage(neurons, f"stages.{i}", inputs, outputs))
            inputs, height, width = outputs, height // 2, width // 2
        features = inputs * height * width
        self.dropout = SharedDropout(dropout)
        self.hidden: nn.Linear | None = None
        if hidden:
            self.hidden = nn.Linear(features, hidden, bias=False)
            self.hidden_bn = nn.BatchNorm1d(hidden)
            self.hidden_neuron = neurons("hidden_neuron", hidden)
            features = hidden
        self.readout = nn.Linear(features, classes)

    def encode(self, x: Tensor) -> Tensor:
        first = cast(_Stage, self.stages[0])
        return cast(Tensor, first.bn(first.conv(x)))

    def body(self, x: Tensor, fire: Fire) -> Tensor:
        for i, module in enumerate(self.stages):
            stage = cast(_Stage, module)
            current = x if i == 0 else stage.bn(stage.conv(x))
            x = stage.pool(fire(stage.neuron, current))
        x = self.dropout(x.flatten(1), fire.timesteps)
        if self.hidden is not None:
            x = fire(self.hidden_neuron, self.hidden_bn(self.hidden(x)))
        return cast(Tensor, self.readout(x))
