"""Fan-out against a count by hand, tap by tap, and against SpikingJelly's counter."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from spiketrain.energy import encoder_macs, energy_joules, fan_out, synaptic_operations
from spiketrain.networks import Fire, Network, build_network
from spiketrain.networks.base import NeuronFactory
from spiketrain.networks.resnet import PreActivationBlock
from spiketrain.neurons import CLIFConfig, LIFConfig


class Tiny(Network):
    """conv, neuron, average pooling, strided conv, neuron, linear; the pooling leaves a row and a column over."""

    def __init__(self, pool: nn.Module, features: int = 12) -> None:
        super().__init__((2, 7, 7), 5, 3)
        neurons = NeuronFactory(LIFConfig(), 3)
        self.first = nn.Conv2d(2, 3, 3, padding=1)
        self.neuron1 = neurons("neuron1", 3)
        self.pool = pool
        self.second = nn.Conv2d(3, 3, 3, stride=2, padding=1, bias=True)
        self.bn = nn.BatchNorm2d(3)
        self.neuron2 = neurons("neuron2", 3)
        self.linear = nn.Linear(features, 5)

    def encode(self, x: Tensor) -> Tensor:
        return self.first(x)

    def body(self, x: Tensor, fire: Fire) -> Tensor:
        x = self.pool(fire(self.neuron1, x))
        return self.linear(fire(self.neuron2, self.bn(self.second(x))).flatten(1))


class Residual(Network):
    """Two pre-activation blocks: the first with an identity shortcut, the second with a strided 1x1 convolution."""

    def __init__(self) -> None:
        super().__init__((2, 9, 9), 4, 3)
        neurons = NeuronFactory(CLIFConfig(), 3)
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.block0 = PreActivationBlock(neurons, "block0", 4, 4, 1, 0.0)
        self.block1 = PreActivationBlock(neurons, "block1", 4, 6, 2, 0.0)
        self.neuron = neurons("neuron", 6)
        self.linear = nn.Linear(6 * 25, 4)

    def encode(self, x: Tensor) -> Tensor:
        return self.stem(x)

    def body(self, x: Tensor, fire: Fire) -> Tensor:
        x = self.block1.run(self.block0.run(x, fire), fire)
        return self.linear(fire(self.neuron, x).flatten(1))


def conv_uses(
    size: int, kernel: int, stride: int, padding: int, outputs: int
) -> Counter[tuple[int, int]]:
    """How often a convolution uses each input pixel, one loop a tap."""
    uses: Counter[tuple[int, int]] = Counter()
    out = (size + 2 * padding - kernel) // stride + 1
    for oy in range(out):
        for ox in range(out):
            for ky in range(kernel):
                for kx in range(kernel):
                    y, x = oy * stride + ky - padding, ox * stride + kx - padding
                    if 0 <= y < size and 0 <= x < size:
                        uses[y, x] += outputs
    return uses


def test_fan_out_of_pooling_and_strided_convolution_is_the_count_by_hand():
    found = fan_out(Tiny(nn.AvgPool2d(2)))
    cells = conv_uses(3, kernel=3, stride=2, padding=1, outputs=3)
    expected = torch.zeros(3, 7, 7)
    for y in range(6):  # the seventh row and column are in no window
        for x in range(6):
            expected[:, y, x] = cells[y // 2, x // 2]
    assert torch.equal(found["neuron1"], expected)
    assert torch.equal(found["neuron2"], torch.full((3, 2, 2), 5.0))


def test_fan_out_of_overlapping_pooling_counts_every_window():
    found = fan_out(Tiny(nn.AvgPool2d(3, stride=2)))["neuron1"]
    cells = conv_uses(3, kernel=3, stride=2, padding=1, outputs=3)
    expected = torch.zeros(3, 7, 7)
    for (cy, cx), uses in cells.items():
        expected[:, 2 * cy : 2 * cy + 3, 2 * cx : 2 * cx + 3] += uses
    assert torch.equal(found, expected)


@pytest.mark.parametrize("bins", [3, 10])
def test_fan_out_of_adaptive_pooling_reaches_every_bin_and_every_copy(bins: int):
    features = 3 * ((bins - 1) // 2 + 1) ** 2
    found = fan_out(Tiny(nn.AdaptiveAvgPool2d(bins), features))["neuron1"]
    cells = conv_uses(bins, kernel=3, stride=2, padding=1, outputs=3)
    expected = torch.zeros(3, 7, 7)
    for i in range(bins):
        for j in range(bins):
            # A pixel belongs to a bin if their intervals on the unit square overlap.
            rows = [y for y in range(7) if y * bins < (i + 1) * 7 and (y + 1) * bins > i * 7]
            columns = [x for x in range(7) if x * bins < (j + 1) * 7 and (x + 1) * bins > j * 7]
            for y in rows:
                for x in columns:
                    expected[:, y, x] += cells[i, j]
    assert torch.equal(found, expected)


def test_fan_out_of_an_enlarging_pooling_in_vgg_is_49_weights_a_class():
    plan_input = {"input_shape": [2, 32, 32], "classes": 3}
    network = build_network("spiking-vgg11", plan_input, LIFConfig(), 2)
    last = list(fan_out(network).values())[-1]
    assert last.shape == (512, 2, 2)  # pooled to 1x1, then copied to 7x7
    assert (last == 49 * 3).all()


def test_identity_shortcut_counts_once_and_convolution_shortcut_by_its_weights():
    found = fan_out(Residual())
    taps = conv_uses(9, 3, 1, 1, outputs=4)
    expected = torch.tensor([[float(taps[y, x] + 1) for x in range(9)] for y in range(9)])
    assert torch.equal(found["block0.neuron1"], expected.expand(4, 9, 9))
    taps = conv_uses(9, 3, 2, 1, outputs=6) + conv_uses(9, 1, 2, 0, outputs=6)
    expected = torch.tensor([[float(taps[y, x]) for x in range(9)] for y in range(9)])
    assert torch.equal(found["block1.neuron1"], expected.expand(4, 9, 9))


def test_fan_out_leaves_the_network_as_it_was():
    network = Residual().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fan_out(network)
    encoder_macs(network)
    assert network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_operations_of_spikes_change_what_they_should():
    """The same count from the other side: flip one spike, see how many currents of the next layer move."""
    torch.manual_seed(0)
    network = Tiny(nn.Identity(), features=48).eval()
    reach = fan_out(network)["neuron1"]
    with torch.no_grad():
        silent = network.second(torch.zeros(1, 3, 7, 7))
        for index in ((0, 0, 0), (1, 3, 3), (2, 6, 6), (0, 0, 5)):
            spike = torch.zeros(1, 3, 7, 7)
            spike[0][index] = 1
            assert (network.second(spike) != silent).sum() == reach[index]


def test_operations_agree_with_spikingjelly():
    counters = pytest.importorskip("spikingjelly.activation_based.op_counter")
    torch.manual_seed(1)
    network = Residual().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.fill_(3)
            module.bias.data.fill_(0.3)
    x = torch.randn(4, 2, 9, 9)
    counter = counters.SynOpCounter()
    with torch.no_grad(), counters.DispatchCounterMode([counter]):
        run = network(x)
    assert all(spikes.any() for spikes in run.spikes.values())
    reach = fan_out(network)
    ours = sum(
        synaptic_operations({k: s[t] for k, s in run.spikes.items()}, reach).sum() for t in range(3)
    )
    # SpikingJelly leaves out additions without a weight: one for each spike on the identity shortcut.
    assert ours - run.spikes["block0.neuron1"].sum() == counter.get_total()


def test_synaptic_operations_are_by_sample():
    reach = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[10.0], [20.0]])}
    spikes = {
        "a": torch.tensor([[1.0, 1.0], [0.0, 1.0]]),
        "b": torch.tensor([[[0.0], [0.0]], [[1.0], [1.0]]]),
    }
    assert synaptic_operations(spikes, reach).tolist() == [3.0, 32.0]
    with pytest.raises(ValueError, match="not the same layers"):
        synaptic_operations({"a": spikes["a"]}, reach)


def test_encoder_macs_leave_padding_out():
    taps = conv_uses(7, 3, 1, 1, outputs=3)
    assert encoder_macs(Tiny(nn.Identity(), 48)) == 2 * sum(taps.values())
    resnet = build_network("spiking-resnet18", {}, LIFConfig(), 1)
    assert encoder_macs(resnet) == 3 * 64 * (3 * 32 - 2) ** 2


def test_energy_is_the_formula():
    assert energy_joules(0, 1) == pytest.approx(4.6e-12)
    assert energy_joules(1, 0) == pytest.approx(0.9e-12)
    assert energy_joules(2e6, 3e5) == pytest.approx(2e6 * 0.9e-12 + 3e5 * 4.6e-12)


def test_operations_behind_max_pooling_are_exact_where_one_neuron_of_a_window_fires():
    """Against the weights that the pooled spikes reach, counted one by one."""
    reach = fan_out(Tiny(nn.MaxPool2d(2)))["neuron1"]
    generator = torch.Generator().manual_seed(0)
    one_each = torch.zeros(3, 7, 7)
    for row in range(3):
        for column in range(3):
            y, x = torch.randint(0, 2, (2,), generator=generator).tolist()
            fires = torch.rand(3, generator=generator) < 0.6
            one_each[:, 2 * row + y, 2 * column + x] = fires.float()
    everywhere = (torch.rand(3, 7, 7, generator=generator) < 0.5).float()
    uses = conv_uses(3, 3, 2, 1, 3)

    def counted(spikes: Tensor) -> int:
        pooled = nn.functional.max_pool2d(spikes, 2)
        places = [(y, x) for y in range(3) for x in range(3)]
        return sum(uses[y, x] * int(pooled[:, y, x].sum()) for y, x in places)

    assert int((one_each * reach).sum()) == counted(one_each) > 0
    assert int((everywhere * reach).sum()) > counted(everywhere)


def test_overlapping_max_pooling_counts_every_window():
    maximum, average = Tiny(nn.MaxPool2d(3, 2, 1)), Tiny(nn.AvgPool2d(3, 2, 1))
    assert torch.equal(fan_out(maximum)["neuron1"], fan_out(average)["neuron1"])


def test_what_cannot_be_counted_is_refused_by_name():
    with pytest.raises(ValueError, match="pool is a Softmax2d"):
        fan_out(Tiny(nn.Softmax2d(), 48))
    with pytest.raises(ValueError, match="dilation 2"):
        fan_out(Tiny(nn.MaxPool2d(2, dilation=2), 12))
