"""Small networks of our own, that two CPU cores can train and serve.

Each stage is conv 3x3, batch norm, neuron and, where asked for, an average pooling; then a linear readout. Average
pooling and convolutions with a foldable batch norm are what ONNX, NIR and neuromorphic chips can express.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from spiketrain.networks.base import Fire, Network, NeuronFactory, SharedDropout


class _Stage(nn.Module):
    def __init__(
        self, neurons: NeuronFactory, path: str, inputs: int, outputs: int, stride: int, pool: int
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.neuron = neurons(f"{path}.neuron", outputs)
        self.pool = nn.AvgPool2d(pool) if pool > 1 else nn.Identity()


class SmallConv(Network):
    """One stage for each of `channels`; `strides` are 2 and `pools` 1 (no pooling) unless they are given.

    With `hidden` there is one more layer of that many neurons before the readout.
    """

    def __init__(
        self,
        neurons: NeuronFactory,
        input_shape: tuple[int, ...] = (1, 28, 28),
        classes: int = 10,
        channels: Sequence[int] = (32, 64, 64),
        strides: Sequence[int] | None = None,
        pools: Sequence[int] | None = None,
        hidden: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(input_shape, classes, neurons.timesteps)
        inputs, height, width = input_shape
        self.stages = nn.ModuleList()
        strides = strides or (2,) * len(channels)
        pools = pools or (1,) * len(channels)
        if not len(channels) == len(strides) == len(pools):
            raise ValueError(
                f"channels, strides and pools say {len(channels)}, {len(strides)} and {len(pools)} stages"
            )
        for i, (outputs, stride, pool) in enumerate(zip(channels, strides, pools, strict=True)):
            self.stages.append(_Stage(neurons, f"stages.{i}", inputs, outputs, stride, pool))
            inputs = outputs
            height, width = ((-(-size // stride)) // pool for size in (height, width))
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
