"""The GLIF repository's networks with threshold-dependent batch norm (tdBN): ResNet-18 and -19 for CIFAR, MS-ResNet, CIFARNet.

tdBN is a batch norm whose result is scaled by the threshold V and, where two paths are added, by 1/sqrt(2):

    y = a V (x - mean) / sqrt(var + 1e-5) w + b        statistics over all timesteps of the batch

Here a V is part of the weight, which starts at a V instead of 1: the same functions, one batch norm that folds like any
other. (An optimiser that takes a step d in w takes one of (a V)^2 d in ours.)

    plain block:      body = tdBN(conv(neuron(tdBN(conv(s)))));  out = neuron(body + shortcut(s))
    membrane block:   body = tdBN(conv(neuron(tdBN(conv(neuron(x))))));  out = body + shortcut(x)

The shortcut has a batch norm also where it is an identity. The membrane ("MS") network carries analog values between
its blocks and ends without a neuron.
Source: networks_for_CIFAR.py, networks_for_ImageNet.py and blocks.py of Ikarosy/Gated-LIF.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from spiketrain.networks.base import Fire, Network, NeuronFactory

_THRESHOLD = 0.5
_HALF = 1 / math.sqrt(2)


def threshold_batch_norm(channels: int, alpha: float = 1.0) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    nn.init.constant_(norm.weight, alpha * _THRESHOLD)
    return norm


class _Shortcut(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        changes = stride != 1 or inputs != outputs
        self.conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else nn.Identity()
        self.bn = threshold_batch_norm(outputs, _HALF)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.bn(self.conv(x)))


class _Block(nn.Module):
    """`membrane` says on which side of the convolutions the neurons sit."""

    def __init__(
        self,
        neurons: NeuronFactory,
        path: str,
        inputs: int,
        outputs: int,
        stride: int,
        membrane: bool,
    ) -> None:
        super().__init__()
        self.membrane = membrane
        self.neuron1 = neurons(f"{path}.neuron1", inputs if membrane else outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = threshold_batch_norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = threshold_batch_norm(outputs, _HALF)
        self.neuron2 = neurons(f"{path}.neuron2", outputs)
        self.shortcut = _Shortcut(inputs, outputs, stride)

    def run(self, x: Tensor, fire: Fire) -> Tensor:
        shortcut = self.shortcut(x)
        if self.membrane:
            y = self.bn1(self.conv1(fire(self.neuron1, x)))
            return cast(Tensor, self.bn2(self.conv2(fire(self.neuron2, y))) + shortcut)
        y = fire(self.neuron1, self.bn1(self.conv1(x)))
        return fire(self.neuron2, self.bn2(self.conv2(y)) + shortcut)


class _TdbnNetwork(Network):
    """Stem, stages of blocks, global average and a linear readout without bias (two of them for few classes)."""

    def __init__(
        self,
        neurons: NeuronFactory,
        stem: nn.Conv2d,
        blocks: Sequence[int],
        channels: Sequence[int],
        strides: Sequence[int],
        membrane: bool,
        input_shape: tuple[int, ...],
        classes: int,
        hidden: int,
    ) -> None:
        super().__init__(input_shape, classes, neurons.timesteps)
        self.conv1 = stem
        self.bn1 = threshold_batch_norm(stem.out_channels)
        self.neuron1 = neurons("neuron1", stem.out_channels)
        inputs = stem.out_channels
        self.stages = len(blocks)
        for stage, (count, outputs, stride) in enumerate(
            zip(blocks, channels, strides, strict=True), 1
        ):
            layer = nn.ModuleList()
            for i in range(count):
                path = f"layer{stage}.{i}"
                layer.append(_Block(neurons, path, inputs, outputs, 1 if i else stride, membrane))
                inputs = outputs
            self.add_module(f"layer{stage}", layer)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.hidden = nn.Linear(inputs, hidden, bias=False) if hidden else nn.Identity()
        self.linear = nn.Linear(hidden or inputs, classes, bias=False)
        _initialise(self)

    def encode(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.bn1(self.conv1(x)))

    def body(self, x: Tensor, fire: Fire) -> Tensor:
        x = fire(self.neuron1, x)
        for stage in range(1, self.stages + 1):
            for block in cast(nn.ModuleList, self.get_submodule(f"layer{stage}")):
                x = cast(_Block, block).run(x, fire)
        return cast(Tensor, self.linear(self.hidden(self.pool(x).flatten(1))))


class TdbnResNet(_TdbnNetwork):
    """For 32x32 images. "stand" ResNet-18: 64 to 512 channels; ResNet-19: 128 to 512 and three stages.

    `hidden` is the size of a linear layer before the last, 0 for none; 256 for up to 50 classes unless given.
    """

    def __init__(
        self,
        neurons: NeuronFactory,
        blocks: Sequence[int],
        channels: Sequence[int],
        strides: Sequence[int],
        input_shape: tuple[int, ...] = (3, 32, 32),
        classes: int = 10,
        hidden: int | None = None,
    ) -> None:
        stem = nn.Conv2d(input_shape[0], channels[0], 3, 1, 1, bias=False)
        if hidden is None:
            hidden = 256 if classes <= 50 else 0
        super().__init__(
            neurons, stem, blocks, channels, strides, False, input_shape, classes, hidden
        )


class _Unit(nn.Module):
    def __init__(self, neurons: NeuronFactory, path: str, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
        self.bn = threshold_batch_norm(outputs)
        self.neuron = neurons(f"{path}.neuron", outputs)


class TdbnCifarNet(Network):
    """CIFARNet: convolutions, "A" an average pooling by 2, and three linear layers without bias or neurons between."""

    def __init__(
        self,
        neurons: NeuronFactory,
        plan: Sequence[int | str] = (128, 256, "A", 512, "A", 1024, 512),
        hidden: tuple[int, int] = (1024, 512),
        input_shape: tuple[int, ...] = (3, 32, 32),
        classes: int = 10,
    ) -> None:
        super().__init__(input_shape, classes, neurons.timesteps)
        inputs, height, width = input_shape
        self.features = nn.ModuleList()
        for i, entry in enumerate(plan):
            if isinstance(entry, int):
                self.features.append(_Unit(neurons, f"features.{i}", inputs, entry))
                inputs = entry
            else:
                self.features.append(nn.AvgPool2d(2))
                height, width = height // 2, width // 2
        sizes = (inputs * height * width, *hidden, classes)
        if not sizes[0]:
            raise ValueError(f"input of shape {tuple(input_shape)}: too small for its poolings")
        self.linear = nn.Sequential(
            *(nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(sizes))
        )
        _initialise(self)

    def encode(self, x: Tensor) -> Tensor:
        first = cast(_Unit, self.features[0])
        return cast(Tensor, first.bn(first.conv(x)))

    def body(self, x: Tensor, fire: Fire) -> Tensor:
        for i, module in enumerate(self.features):
            if isinstance(module, _Unit):
                x = fire(module.neuron, x if i == 0 else module.bn(module.conv(x)))
            else:
                x = module(x)
        return cast(Tensor, self.linear(x.flatten(1)))


class MsResNet(_TdbnNetwork):
    """For 224x224 images: stem 7x7 with stride 2 and padding 1, every stage with stride 2."""

    def __init__(
        self,
        neurons: NeuronFactory,
        blocks: Sequence[int],
        input_shape: tuple[int, ...] = (3, 224, 224),
        classes: int = 1000,
        hidden: int = 0,
    ) -> None:
        stem = nn.Conv2d(input_shape[0], 64, 7, 2, 1, bias=False)
        super().__init__(
            neurons, stem, blocks, (64, 128, 256, 512), (2,) * 4, True, input_shape, classes, hidden
        )


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
