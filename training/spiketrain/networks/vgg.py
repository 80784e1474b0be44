"""The CLIF repository's spiking VGGs.

Each number of a plan is conv 3x3 (with bias), batch norm, neuron, dropout; "M" is an average pooling by 2. Then an adaptive
average pooling to 7x7, which *enlarges* the map for the inputs of the papers, and one linear layer of 25,088 inputs.
VGGSNN, which others train on CIFAR10-DVS (Deng et al., "Temporal efficient training", ICLR 2022), has no such pooling and
starts with two convolutions at full size. The repository names a VGG-9 but has no plan for it; ours is VGG-11 without
the second convolution of its last two stages.
Source: models/spiking_vgg_bn.py of HuuYuLong/Complementary-LIF.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from spiketrain.networks.base import Fire, Network, NeuronFactory, SharedDropout

Plan = Sequence[Sequence[int | str]]

VGG9: Plan = ((64, "M"), (128, "M"), (256, 256, "M"), (512, "M"), (512, "M"))
VGG11: Plan = ((64, "M"), (128, "M"), (256, 256, "M"), (512, 512, "M"), (512, 512, "M"))
VGGSNN: Plan = ((64, 128, "M"), (256, 256, "M"), (512, 512, "M"), (512, 512, "M"))
VGG13: Plan = ((64, 64, "M"), (128, 128, "M"), (256, 256, "M"), (512, 512, "M"), (512, 512, "M"))


class _Unit(nn.Module):
    def __init__(
        self, neurons: NeuronFactory, path: str, inputs: int, outputs: int, dropout: float
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, 1, 1)
        self.bn = nn.BatchNorm2d(outputs)
        self.neuron = neurons(f"{path}.neuron", outputs)
        self.dropout = SharedDropout(dropout)


class SpikingVGG(Network):
    """`pooled` is the size to which the last map is averaged or enlarged, None to leave it as it is."""

    def __init__(
        self,
        neurons: NeuronFactory,
        plan: Plan,
        input_shape: tuple[int, ...] = (2, 48, 48),
        classes: int = 10,
        dropout: float = 0.0,
        pooled: int | None = 7,
    ) -> None:
        super().__init__(input_shape, classes, neurons.timesteps)
        inputs, height, width = input_shape
        for stage, entries in enumerate(plan, 1):
            layer = nn.ModuleList()
            for i, entry in enumerate(entries):
                if isinstance(entry, int):
                    layer.append(_Unit(neurons, f"layer{stage}.{i}", inputs, entry, dropout))
                    inputs = entry
                else:
                    layer.append(nn.AvgPool2d(2))
                    height, width = height // 2, width // 2
            self.add_module(f"layer{stage}", layer)
        self.stages = len(plan)
        if not height or not width:
            raise ValueError(f"input of shape {tuple(input_shape)}: too small for its poolings")
        if pooled is not None:
            height = width = pooled
        self.pool = nn.Identity() if pooled is None else nn.AdaptiveAvgPool2d((height, width))
        self.linear = nn.Linear(inputs * height * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(cast(Tensor, module.bias))
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def encode(self, x: Tensor) -> Tensor:
        first = cast(_Unit, cast(nn.ModuleList, self.get_submodule("layer1"))[0])
        return cast(Tensor, first.bn(first.conv(x)))

    def body(self, x: Tensor, fire: Fire) -> Tensor:
        encoded = True
        for stage in range(1, self.stages + 1):
            for module in cast(nn.ModuleList, self.get_submodule(f"layer{stage}")):
                if not isinstance(module, _Unit):
                    x = module(x)
                    continue
                current = x if encoded else module.bn(module.conv(x))
                encoded = False
                x = module.dropout(fire(module.neuron, current), fire.timesteps)
        return cast(Tensor, self.linear(self.pool(x).flatten(1)))
