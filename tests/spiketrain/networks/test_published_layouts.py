"""The papers' networks: parameter counts, and the layouts rebuilt from plain torch and SpikingJelly's neurons."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spiketrain.networks import NETWORKS, build_network
from spiketrain.neurons import (
    CLIFConfig,
    GLIFConfig,
    ILIFConfig,
    LIFConfig,
    NeuronConfig,
    PLIFConfig,
)

REPOSITORY_PLIF = PLIFConfig(decay_input=False, reset="soft", detach_reset=False)
# Nine layers with 64 channels, seven with 128; seven values a channel and one a timestep, of 16.
GLIF_OF_7B = (9 * 64 + 7 * 128) * (7 + 16)
COUNTS = [
    ("spiking-resnet18", {"classes": 10}, 11_176_906, 17),
    ("spiking-resnet18", {"classes": 100}, 11_223_076, 17),
    ("spiking-resnet18", {"classes": 200}, 11_274_376, 17),
    ("spiking-resnet34", {"classes": 10}, 21_288_778, 33),
    ("spiking-vgg11", {"classes": 10}, 9_476_298, 8),
    ("spiking-vgg11", {"classes": 11, "input_shape": (2, 128, 128)}, 9_501_387, 8),
    ("spiking-vgg13", {"classes": 200, "input_shape": (3, 64, 64)}, 14_428_680, 10),
    ("sew-7b-wide", {}, 1_236_298 - GLIF_OF_7B, 16),
    ("snn5", {}, 2_237_738, 5),
    ("snn5-strided", {}, 1_644_586, 5),
]
# With PLIF's one parameter a layer, as the PLIF repository has them.
PLIF_COUNTS = [
    ("plif-mnist", {}, 13_198_980, 4),
    ("plif-cifar10", {}, 36_718_344, 8),
    ("plif-nmnist", {}, 17_132_292, 4),
    ("plif-cifar10-dvs", {}, 17_427_718, 6),
    ("plif-dvs-gesture", {}, 1_698_311, 7),
]
# Channel-wise GLIF, as the GLIF repository has it; in parentheses, of which GLIF's.
GLIF_COUNTS = [
    ("tdbn-resnet18", {}, 2, 11_339_648, 35_136),
    ("tdbn-resnet18", {}, 4, 11_347_456, 42_944),
    ("tdbn-resnet18", {}, 6, 11_355_264, 50_752),
    ("tdbn-resnet18", {"classes": 100}, 2, 11_257_216, 35_136),
    ("tdbn-resnet18", {"classes": 100}, 4, 11_265_024, 42_944),
    ("tdbn-resnet18", {"classes": 100}, 6, 11_272_832, 50_752),
    ("tdbn-resnet19", {}, 2, 12_740_864, 40_320),
    ("tdbn-resnet19", {}, 4, 12_749_824, 49_280),
    ("tdbn-resnet19", {}, 6, 12_758_784, 58_240),
    ("tdbn-resnet19", {"classes": 100}, 2, 12_658_432, 40_320),
    ("tdbn-resnet19", {"classes": 100}, 4, 12_667_392, 49_280),
    ("tdbn-resnet19", {"classes": 100}, 6, 12_676_352, 58_240),
    ("tdbn-cifarnet", {}, 4, 45_030_656, (128 + 256 + 512 + 1024 + 512) * (7 + 4)),
    ("ms-resnet18", {}, 6, 11_739_584, 44_928),
    ("ms-resnet34", {}, 6, 21_899_712, 93_184),
    ("sew-7b-wide", {}, 16, 1_236_298, GLIF_OF_7B),
]


def parameters(
    name: str, arguments: dict[str, Any], neuron: NeuronConfig, timesteps: int = 6
) -> int:
    with torch.device("meta"):
        network = build_network(name, arguments, neuron, timesteps)
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("name", "arguments", "count", "neurons"), COUNTS)
def test_parameter_counts(name: str, arguments: dict[str, Any], count: int, neurons: int) -> None:
    for neuron in (LIFConfig(), CLIFConfig(), ILIFConfig()):
        assert parameters(name, arguments, neuron) == count
    assert parameters(name, arguments, REPOSITORY_PLIF) == count + neurons


@pytest.mark.parametrize(("name", "arguments", "count", "neurons"), PLIF_COUNTS)
def test_parameter_counts_of_the_plif_networks(
    name: str, arguments: dict[str, Any], count: int, neurons: int
) -> None:
    assert parameters(name, arguments, REPOSITORY_PLIF) == count
    assert parameters(name, arguments, LIFConfig()) == count - neurons


@pytest.mark.parametrize(("name", "arguments", "timesteps", "count", "gates"), GLIF_COUNTS)
def test_parameter_counts_of_the_glif_networks(
    name: str, arguments: dict[str, Any], timesteps: int, count: int, gates: int
) -> None:
    assert parameters(name, arguments, GLIFConfig(), timesteps) == count
    assert parameters(name, arguments, CLIFConfig(), timesteps) == count - gates


@pytest.mark.parametrize(
    ("name", "hidden", "count"),
    [("tdbn-resnet18", 0, 11_176_187), ("tdbn-resnet19", 256, 12_700_731)],
)
def test_parameter_counts_with_one_gated_neuron_a_layer(name: str, hidden: int, count: int) -> None:
    """The GLIF repository's layer-wise neuron has seven scalars and one for each of its four timesteps, in 17 layers."""
    assert parameters(name, {"hidden": hidden}, LIFConfig()) == count - 17 * (7 + 4)


@pytest.mark.parametrize(("name", "arguments", "neurons"), [(c[0], c[1], c[3]) for c in COUNTS])
def test_layers_of_neurons(name: str, arguments: dict[str, Any], neurons: int) -> None:
    network = build_network(name, arguments, LIFConfig(), 4)
    assert len(network.neuron_layers()) == neurons
    assert network.neuron_shapes().keys() == network.neuron_layers().keys()


def test_neurons_of_the_resnet_by_layer() -> None:
    shapes = build_network("spiking-resnet18", {}, LIFConfig(), 4).neuron_shapes()
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 557_056
    assert shapes["layer1.0.neuron1"] == (64, 32, 32)
    assert shapes["layer2.0.neuron1"] == (64, 32, 32)
    assert shapes["layer2.0.neuron2"] == (128, 16, 16)
    assert shapes["neuron1"] == (512, 4, 4)


def test_shapes_are_found_without_touching_the_network() -> None:
    network = build_network("small-conv", {}, LIFConfig(), 4).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.neuron_shapes()
    assert network.training
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, node: Any) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride)
        self.relu1, self.relu2 = node(), node()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.bn1(x))
        out: Tensor = self.conv2(self.relu2(self.bn2(self.conv1(x))))
        return out + self.shortcut(x)


class ResNet18(nn.Module):
    """One timestep, with the neurons' state inside them, as the repository runs it."""

    def __init__(self, node: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        widths = [64, 64, 128, 256, 512]
        for i in range(1, 5):
            first = Block(widths[i - 1], widths[i], 1 if i == 1 else 2, node)
            setattr(self, f"layer{i}", nn.Sequential(first, Block(widths[i], widths[i], 1, node)))
        self.bn1, self.relu1 = nn.BatchNorm2d(512), node()
        self.linear = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        x = nn.functional.avg_pool2d(self.relu1(self.bn1(x)), 4)
        y: Tensor = self.linear(x.flatten(1))
        return y


class VGG11(nn.Module):
    def __init__(self, node: Any) -> None:
        super().__init__()
        inputs = 2
        for i, widths in enumerate([(64,), (128,), (256, 256), (512, 512), (512, 512)], 1):
            units = nn.ModuleList()
            for width in widths:
                unit = nn.Module()
                unit.conv, unit.bn = nn.Conv2d(inputs, width, 3, 1, 1), nn.BatchNorm2d(width)
                unit.relu = node()
                units.append(unit)
                inputs = width
            setattr(self, f"layer{i}", units)
        self.linear = nn.Linear(512 * 7 * 7, 10)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(1, 6):
            for unit in getattr(self, f"layer{i}"):
                x = unit.relu(unit.bn(unit.conv(x)))
            x = nn.functional.avg_pool2d(x, 2)
        y: Tensor = self.linear(nn.functional.adaptive_avg_pool2d(x, 7).flatten(1))
        return y


@pytest.mark.parametrize(
    ("name", "reference", "shape"),
    [("spiking-resnet18", ResNet18, (3, 32, 32)), ("spiking-vgg11", VGG11, (2, 48, 48))],
)
def test_the_same_weights_give_the_same_logits(
    name: str, reference: Any, shape: tuple[int, ...]
) -> None:
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    torch.manual_seed(0)
    theirs = reference(neuron.ComplementaryLIFNode).double()
    ours = build_network(name, {"input_shape": shape}, CLIFConfig(), timesteps=3).double()
    with torch.no_grad():
        for module in theirs.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.8, 1.5)
                module.bias.uniform_(0, 0.5)
        x = torch.randn(3, 1, *shape, dtype=torch.float64)
        ours.load_state_dict(theirs.state_dict(), strict=True)
        # Statistics of these inputs, so that signals are of a size that makes all layers fire.
        for module in ours.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        ours.train()(x)
        theirs.load_state_dict(ours.state_dict(), strict=True)
        run = ours.eval()(x)
        theirs.eval()
        expected = torch.stack([theirs(one) for one in x])
    torch.testing.assert_close(run.logits, expected)
    assert run.logits.std(0).max() > 1e-3
    assert min(spikes.mean() for spikes in run.spikes.values()) > 0.01


def test_an_unknown_network_is_named_with_those_that_are_known() -> None:
    with pytest.raises(ValueError, match=r"unknown network 'resnet18'.*spiking-resnet18") as error:
        build_network("resnet18", {}, LIFConfig(), 4)
    assert all(name in str(error.value) for name in NETWORKS)


@pytest.mark.parametrize("wrong", [{"clases": 10}, {"neurons": None}, {"input_shape": 5}])
def test_arguments_that_a_network_does_not_take_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="'small-conv' does not take these arguments"):
        build_network("small-conv", wrong, LIFConfig(), 4)


@pytest.mark.parametrize(("side", "features"), [(25, 1), (32, 1), (60, 4), (64, 4)])
def test_the_resnet_takes_other_sizes(side: int, features: int) -> None:
    with torch.device("meta"):
        network = build_network(
            "spiking-resnet18", {"input_shape": (1, side, side)}, LIFConfig(), 2
        )
        assert network(torch.zeros(1, 1, side, side)).logits.shape == (2, 1, 10)
    assert network.linear.in_features == 512 * features


def test_a_picture_too_small_for_the_resnet_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 24, 32\).*25 by 25"):
        build_network("spiking-resnet18", {"input_shape": (1, 24, 32)}, LIFConfig(), 2)


def test_a_layer_can_have_a_neuron_of_its_own() -> None:
    own = {"layer1.0.neuron2": LIFConfig(reset="hard"), "neuron1": CLIFConfig()}
    network = build_network("spiking-resnet18", {}, LIFConfig(), 4, own)
    for name, layer in network.neuron_layers().items():
        assert layer.config == own.get(name, LIFConfig())


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no layer stages\.7\.neuron.*stages\.0\.neuron"):
        build_network("small-conv", {}, LIFConfig(), 4, {"stages.7.neuron": CLIFConfig()})
