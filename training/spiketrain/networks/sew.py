"""7B-wideNet: seven spike-element-wise (SEW) blocks for CIFAR10-DVS, as the GLIF repository has it.

    block:  y = neuron(bn(conv(neuron(bn(conv(s))))));  out = y + s

What a block hands on is a sum of spikes, so it is a whole number, not only 0 or 1. Its batch norms are plain ones. The
network averages the features over time before one linear layer; as that layer is affine, the mean of the logits of all
timesteps is the same, and each timestep has logits of its own.
Source: cifar10dvs/smodels.py (SEWResNet_GLIF_dsr) of Ikarosy/Gated-LIF, after fangwei123456/Spike-Element-Wise-ResNet.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from spiketrain.networks.base import Fire, Network, NeuronFactory


class _Unit(nn.Module):
    """Convolution, batch norm, neuron."""

    def __init__(
        self, neurons: NeuronFactory, path: str, inputs: int, outputs: int, kernel: int
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, 1, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.neuron = neurons(f"{path}.neuron", outputs)

    def run(self, x: Tensor, fire: Fire) -> Tensor:
        return fire(self.neuron, self.bn(self.conv(x)))


class _Block(nn.Module):
    def __init__(self, neurons: NeuronFactory, path: str, channels: int, pool: int) -> None:
        super().__init__()
        self.unit1 = _Unit(neurons, f"{path}.unit1", channels, channels, 3)
        self.unit2 = _Unit(neurons, f"{path}.unit2", channels, channels, 3)
        self.pool = nn.AvgPool2d(pool) if pool > 1 else nn.Identity()

    def run(self, x: Tensor, fire: Fire) -> Tensor:
        return cast(Tensor, self.pool(self.unit2.run(self.unit1.run(x, fire), fire) + x))


class WideNet7B(Network):
    def __init__(
        self,
        neurons: NeuronFactory,
        input_shape: tuple[int, ...] = (2, 48, 48),
        classes: int = 10,
    ) -> None:
        super().__init__(input_shape, classes, neurons.timesteps)
        if min(input_shape[1:]) < 16:
            raise ValueError(
                f"input of shape {tuple(input_shape)}: four poolings need 16 by 16 at least"
            )
        self.stem = _Unit(neurons, "stem", input_shape[0], 64, 1)
        self.layer1 = nn.ModuleList(
            _Block(neurons, f"layer1.{i}", 64, 2 if i == 3 else 1) for i in range(4)
        )
        self.widen = _Unit(neurons, "widen", 64, 128, 1)
        self.layer2 = nn.ModuleList(_Block(neurons, f"layer2.{i}", 128, 2) for i in range(3))
        height, width = (size // 2 // 2 // 2 // 2 for size in input_shape[1:])
        self.linear = nn.Linear(128 * height * width, classes)

    def encode(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.stem.bn(self.stem.conv(x)))

    def body(self, x: Tensor, fire: Fire) -> Tensor:
        x = fire(self.stem.neuron, x)
        for block in self.layer1:
            x = cast(_Block, block).run(x, fire)
        x = self.widen.run(x, fire)
        for block in self.layer2:
            x = cast(_Block, block).run(x, fire)
        return cast(Tensor, self.linear(x.flatten(1)))
