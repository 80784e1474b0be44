"""The CLIF repository's five-layer networks for pictures of 32x32, which it uses for its statistics of spikes.

Each layer is convolution (with bias, padding 1), batch norm, neuron; then dropout and one linear layer. `snn5` averages
2x2 maps after the layers from the second on; `snn5-strided` ("noAP" in the repository) has strides instead.
Source: models/vgg_model.py of HuuYuLong/Complementary-LIF.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

from torch import Tensor, nn

from spiketrain.networks.base import Fire, Network, NeuronFactory, SharedDropout


class Layer(NamedTuple):
    """Channels, kernel and stride of a convolution, and the size of the average pooling behind its neurons."""

    channels: int
    kernel: int
    stride: int = 1
    pooling: int = 1


SNN5 = (
    Layer(16, 3),
    Layer(64, 5, 1, 2),
    Layer(128, 5, 1, 2),
    Layer(256, 5, 1, 2),
    Layer(512, 3, 1, 2),
)
SNN5_STRIDED = (Layer(16, 3), Layer(64, 5, 2), Layer(128, 5, 2), Layer(256, 5, 4), Layer(256, 3, 2))


class _Unit(nn.Module):
    def __init__(self, neurons: NeuronFactory, path: str, inputs: int, layer: Layer) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, layer.channels, layer.kernel, layer.stride, 1)
        self.bn = nn.BatchNorm2d(layer.channels)
        self.neuron = neurons(f"{path}.neuron", layer.channels)
        self.pool = nn.AvgPool2d(layer.pooling) if layer.pooling > 1 else nn.Identity()


class FiveLayers(Network):
    """`layers` are tuples of `Layer`'s fields; convolutions have padding 1, whatever their kernel."""

    def __init__(
        self,
        neurons: NeuronFactory,
        layers: Sequence[Sequence[int]] = SNN5,
        input_shape: tuple[int, ...] = (3, 32, 32),
        classes: int = 10,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(input_shape, classes, neurons.timesteps)
        inputs, *size = input_shape
        self.layers = nn.ModuleList()
        for i, layer in enumerate(Layer(*entry) for entry in layers):
            self.layers.append(_Unit(neurons, f"layers.{i}", inputs, layer))
            inputs = layer.channels
            size = [((n + 2 - layer.kernel) // layer.stride + 1) // layer.pooling for n in size]
        if min(size) < 1:
            raise ValueError(f"input of shape {tuple(input_shape)}: too small for its layers")
        self.dropout = SharedDropout(dropout)
        self.linear = nn.Linear(inputs * size[0] * size[1], classes)
        for unit in self.layers:
            nn.init.kaiming_normal_(
                cast(_Unit, unit).conv.weight, mode="fan_out", nonlinearity="relu"
            )

    def encode(self, x: Tensor) -> Tensor:
        first = cast(_Unit, self.layers[0])
        return cast(Tensor, first.bn(first.conv(x)))

    def body(self, x: Tensor, fire: Fire) -> Tensor:
        for i, module in enumerate(self.layers):
            unit = cast(_Unit, module)
            current = unit.bn(unit.conv(x)) if i else x
            x = unit.pool(fire(unit.neuron, current))
        return cast(Tensor, self.linear(self.dropout(x.flatten(1), fire.timesteps)))
