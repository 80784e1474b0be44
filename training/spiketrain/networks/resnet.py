"""The CLIF repository's spiking ResNets (pre-activation), for 32x32 images.

    block:  s = neuron(bn1(x));  y = conv2(dropout(neuron(bn2(conv1(s)))));  out = y + shortcut(s)

The stream between blocks is analog; every convolution but the first sees only spikes. The shortcut takes the spikes
and is a 1x1 convolution where the shape changes. Block convolutions have a bias, the stem has none.
Source: models/spiking_resnet.py of HuuYuLong/Complementary-LIF.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from spiketrain.networks.base import Fire, Network, NeuronFactory, SharedDropout


class PreActivationBlock(nn.Module):
    def __init__(
        self,
        neurons: NeuronFactory,
        path: str,
        inputs: int,
        outputs: int,
        stride: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.neuron1 = neurons(f"{path}.neuron1", inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.neuron2 = neurons(f"{path}.neuron2", outputs)
        self.dropout = SharedDropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.shortcut = (
            nn.Conv2d(inputs, outputs, 1, stride)
            if stride != 1 or inputs != outputs
            else nn.Identity()
        )

    def run(self, x: Tensor, fire: Fire) -> Tensor:
        spikes = fire(self.neuron1, self.bn1(x))
        y = fire(self.neuron2, self.bn2(self.conv1(spikes)))
        return cast(Tensor, self.conv2(self.dropout(y, fire.timesteps)) + self.shortcut(spikes))


class SpikingResNet(Network):
    def __init__(
        self,
        neurons: NeuronFactory,
        blocks: Sequence[int],
        input_shape: tuple[int, ...] = (3, 32, 32),
        classes: int = 10,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(input_shape, classes, neurons.timesteps)
        self.conv1 = nn.Conv2d(input_shape[0], 64, 3, 1, 1, bias=False)
        inputs = 64
        for stage, (outputs, count) in enumerate(zip((64, 128, 256, 512), blocks, strict=True), 1):
            layer = nn.ModuleList()
            for i in range(count):
                stride = 2 if stage > 1 and i == 0 else 1
                path = f"layer{stage}.{i}"
                layer.append(PreActivationBlock(neurons, path, inputs, outputs, stride, dropout))
                inputs = outputs
            self.add_module(f"layer{stage}", layer)
        self.bn1 = nn.BatchNorm2d(512)
        self.neuron1 = neurons("neuron1", 512)
        self.pool = nn.AvgPool2d(4)
        self.dropout = SharedDropout(dropout)
        height, width = (-(-size // 8) // 4 for size in input_shape[1:])
        if not height or not width:
            raise ValueError(
                f"input of shape {tuple(input_shape)}: three strides and the pooling need 25 by 25 at least"
            )
        self.linear = nn.Linear(512 * height * width, classes)
        _initialise(self)

    def encode(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv1(x))

    def body(self, x: Tensor, fire: Fire) -> Tensor:
        for stage in (1, 2, 3, 4):
            for block in cast(nn.ModuleList, self.get_submodule(f"layer{stage}")):
                x = cast(PreActivationBlock, block).run(x, fire)
        spikes = fire(self.neuron1, self.bn1(x))
        features = self.pool(spikes).flatten(1)
        return cast(Tensor, self.linear(self.dropout(features, fire.timesteps)))


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
