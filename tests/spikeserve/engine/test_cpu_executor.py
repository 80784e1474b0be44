"""The executor for CPUs against the reference, in every precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from spikeserve.engine import Frames, ReferenceExecutor, Sample, StateError
from spiketrain.energy import fan_out
from spiketrain.networks import Network, build_network
from spiketrain.networks.base import NeuronFactory
from spiketrain.networks.resnet import PreActivationBlock
from spiketrain.neurons import (
    CLIFConfig,
    GLIFConfig,
    ILIFConfig,
    IntegratorConfig,
    LIFConfig,
    NeuronConfig,
    PLIFConfig,
)
from spiketrain.quantise import codes_by_channel

pytest.importorskip("numba")
from spikeserve.engine.choose import UnsupportedError
from spikeserve.engine.cpu import CpuExecutor, exact, faithful_precisions, program, team
from spikeserve.engine.cpu.plan import Layer, Product, plan_of
from spikeserve.engine.cpu.products import Multiply, _Unfolded, _Whole

PRECISIONS = ("float32", "int16", "int8")
NEURONS: list[NeuronConfig] = [
    CLIFConfig(),
    CLIFConfig(tau=1.7),
    ILIFConfig(),
    LIFConfig(),
    LIFConfig(reset="hard", reset_value=-0.3, rest=-0.1),
    LIFConfig(reset="hard", per_channel=("threshold", "reset_value"), decay_input=True),
    LIFConfig(per_channel=("subtract",), rest=0.1, decay_input=True),
    PLIFConfig(),
    GLIFConfig(),
]
SMALL = {"input_shape": (2, 13, 11), "channels": [4, 16], "hidden": 24, "classes": 5}
# Poolings that leave a row over, and sums of sums.
POOLED = {
    "input_shape": (2, 17, 14),
    "channels": [8, 16, 8],
    "strides": [1, 1, 1],
    "pools": [2, 2, 1],
    "classes": 5,
}


class Residual(Network):
    """Two blocks of the pre-activation ResNet: both kinds of shortcuts, and sums before a batch norm."""

    def __init__(self, neurons: NeuronFactory) -> None:
        super().__init__((2, 7, 6), 3, neurons.timesteps)
        self.stem = nn.Conv2d(2, 8, 3, 1, 1)
        self.first = PreActivationBlock(neurons, "first", 8, 8, 1, 0.0)
        self.second = PreActivationBlock(neurons, "second", 8, 16, 2, 0.0)
        self.third = PreActivationBlock(neurons, "third", 16, 16, 1, 0.0)
        self.bn = nn.BatchNorm2d(16)
        self.neuron = neurons("neuron", 16)
        self.linear = nn.Linear(16 * 12, 3)

    def encode(self, x):
        return self.stem(x)

    def body(self, x, fire):
        for block in (self.first, self.second, self.third):
            x = block.run(x, fire)
        return self.linear(fire(self.neuron, self.bn(x)).flatten(1))


def lively(network: Network, steps: bool = True) -> Network:
    """With batch norms by which many neurons fire, and with `steps` weights that are whole multiples of 1/64.

    These have codes of 8 bits, so that all precisions must agree; what is added to their sums keeps potentials off the
    threshold.
    """
    generator = torch.Generator().manual_seed(2)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.running_var.fill_(1 - module.eps)
            module.running_mean.copy_(torch.randint(-96, -16, (module.num_features,)) / 64 + 7e-4)
        elif isinstance(module, nn.Conv2d | nn.Linear) and steps:
            shape = module.weight.shape
            codes = torch.randint(-127, 128, shape, generator=generator).float()
            codes.flatten(1)[:, 0] = 127
            module.weight.data = codes / 256
            if module.bias is not None:
                module.bias.data.fill_(0.1263)
    return network.eval()


def small(neuron: NeuronConfig, arguments=SMALL, timesteps: int = 4) -> Network:
    torch.manual_seed(1)
    return lively(build_network("small-conv", arguments, neuron, timesteps))


def pooled(neuron: NeuronConfig) -> Network:
    return small(neuron, POOLED)


def residual(neuron: NeuronConfig) -> Network:
    torch.manual_seed(1)
    return lively(Residual(NeuronFactory(neuron, 4)))


def cpu(network: Network, precision="int8", slots: int = 8, weights: str = "w") -> CpuExecutor:
    return CpuExecutor(network, slots, fan_out(network), weights, precision)


def reference(network: Network, slots: int = 8) -> ReferenceExecutor:
    return ReferenceExecutor(network, slots, fan_out(network), "w")


def assert_same(one, other) -> None:
    torch.testing.assert_close(one.logits, other.logits, atol=1e-3, rtol=1e-3)
    assert torch.equal(one.spikes, other.spikes)
    assert torch.equal(one.synaptic_operations, other.synaptic_operations)
    assert one.logits.dtype == other.logits.dtype
    assert one.spikes.dtype == other.spikes.dtype


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("neuron", NEURONS, ids=lambda n: n.kind)
def test_frames_give_what_the_reference_gives(neuron, precision):
    network = small(neuron)
    ours, expected = cpu(network, precision), reference(network)
    slots = (3, 0, 6)
    for executor in (ours, expected):
        for slot in slots:
            executor.admit(slot, Sample())
    fired = 0
    for _ in range(5):
        frames = Frames((0, 1, 2), torch.rand(3, 2, 13, 11).mul(64).round() / 64)
        result = ours.step(slots, frames)
        assert_same(result, expected.step(slots, frames))
        fired = fired + result.spikes.sum(0)
    assert ours.layers == expected.layers
    assert fired.min() > 0


@pytest.mark.parametrize("timesteps", [4, None], ids=["ahead", "step by step"])
@pytest.mark.parametrize("make", [small, residual], ids=["small", "residual"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_pictures_at_different_timesteps_share_a_batch(make, precision, timesteps):
    network = make(CLIFConfig())
    ours, expected = cpu(network, precision), reference(network)
    pictures = torch.rand(3, *network.input_shape).mul(64).round() / 64
    for executor in (ours, expected):
        executor.admit(1, Sample(pictures[0], timesteps))
        executor.admit(4, Sample(pictures[1], timesteps))
    assert_same(ours.step([4, 1], None), expected.step([4, 1], None))
    for executor in (ours, expected):
        executor.admit(2, Sample(pictures[2], timesteps))
    for slots in ([1, 4, 2], [2, 1, 4], [2, 4, 1], [2]):
        assert_same(ours.step(slots, None), expected.step(slots, None))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_poolings_are_sums(precision):
    network = small(ILIFConfig(), POOLED)
    ours, expected = cpu(network, precision), reference(network)
    for executor in (ours, expected):
        executor.admit(0, Sample(torch.full((2, 17, 14), 0.5), 4))
    for _ in range(4):
        assert_same(ours.step([0], None), expected.step([0], None))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("spiking-resnet18", {}),
        ("spiking-vgg11", {"input_shape": (2, 32, 32)}),
        ("spiking-vgg11", {"input_shape": (2, 48, 48)}),
    ],
)
def test_the_papers_networks(name, arguments):
    torch.manual_seed(1)
    network = lively(build_network(name, arguments, LIFConfig(), 2), steps=False)
    ours, expected = cpu(network, "float32", 1), reference(network, 1)
    for executor in (ours, expected):
        executor.admit(0, Sample(torch.rand(network.input_shape), 2))
    for _ in range(2):
        one, other = ours.step([0], None), expected.step([0], None)
        # Batch norms are folded, so that a potential near the threshold can fall on its other side.
        different = (one.spikes - other.spikes).abs().sum() / other.spikes.sum()
        assert other.spikes.min() > 0
        assert different < 0.01


@pytest.mark.parametrize("precision", ["int16", "int8"])
def test_answers_do_not_depend_on_the_batch_nor_on_how_far_ahead_to_the_last_bit(precision):
    torch.manual_seed(1)
    network = lively(build_network("small-conv", POOLED, CLIFConfig(), 4), steps=False)
    pictures = torch.rand(7, *network.input_shape)
    alone = []
    for picture in pictures:
        executor = cpu(network, precision, 1)
        executor.admit(0, Sample(picture))
        alone.append(torch.cat([executor.step([0], None).logits for _ in range(4)]))
    for timesteps in (4, None):
        executor = cpu(network, precision)
        for slot, picture in enumerate(pictures):
            executor.admit(slot, Sample(picture, timesteps))
        together = torch.stack([executor.step(range(7), None).logits for _ in range(4)], 1)
        assert torch.equal(together, torch.stack(alone))


@pytest.mark.parametrize("make", [small, pooled, residual], ids=["small", "pooled", "residual"])
@pytest.mark.parametrize("neuron", NEURONS, ids=lambda n: n.kind)
def test_neurons_near_the_threshold_fire_as_with_the_weights_themselves(make, neuron, monkeypatch):
    """With products that give nothing, and a margin in which all neurons are near."""
    network = make(neuron)
    pictures = torch.rand(3, *network.input_shape).mul(64).round() / 64
    monkeypatch.setattr(exact, "_FLOAT", 1e9)
    ours, expected = cpu(network, "int16"), reference(network)
    for stage in ours._weights.stages:
        silent = tuple(_Silent(times) for times in stage.multiply)
        object.__setattr__(stage, "multiply", silent)
    for executor in (ours, expected):
        for slot, picture in enumerate(pictures):
            executor.admit(slot, Sample(picture, 4))
    for _ in range(4):
        assert_same(ours.step(range(3), None), expected.step(range(3), None))
    # Twice, as nothing of a sample may stay.
    for executor in (ours, expected):
        executor.admit(1, Sample(pictures[0], 4))
    assert_same(ours.step([1], None), expected.step([1], None))


class _Silent:
    def __init__(self, times: Multiply) -> None:
        self.times = times

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.zeros_like(part) for part in self.times(x))


def test_more_threads_give_the_same(monkeypatch):
    network = small(CLIFConfig())
    pictures = torch.rand(5, 2, 13, 11)
    results = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        executor = cpu(network)
        for slot, picture in enumerate(pictures):
            executor.admit(slot, Sample(picture, 4))
        results.append([executor.step(range(5), None) for _ in range(4)])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one.logits, other.logits)
        assert torch.equal(one.spikes, other.spikes)


def test_a_slot_keeps_nothing_of_its_last_sample():
    network = small(ILIFConfig())
    executor, fresh = cpu(network), cpu(network)
    picture = torch.rand(2, 13, 11)
    executor.admit(0, Sample(torch.full((2, 13, 11), 50.0)))
    for _ in range(3):
        executor.step([0], None)
    for other in (executor, fresh):
        other.admit(0, Sample(picture))
    for _ in range(3):
        assert torch.equal(executor.step([0], None).logits, fresh.step([0], None).logits)
    # Not its input either.
    executor.admit(0, Sample())
    with pytest.raises(ValueError, match="slot 0 has neither"):
        executor.step([0], None)


@pytest.mark.parametrize("neuron", NEURONS, ids=lambda n: n.kind)
@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_a_stream_moves_between_executors_of_both_kinds(neuron, precision):
    network = small(neuron)
    frames = [Frames((0,), torch.rand(1, 2, 13, 11).mul(64).round() / 64) for _ in range(6)]
    whole = reference(network, 1)
    whole.admit(0, Sample())
    expected = [whole.step([0], frame) for frame in frames]
    executors = [cpu(network, precision), reference(network), cpu(network, precision)]
    executors[0].admit(0, Sample())
    state = executors[0].save(0)
    for number, frame in enumerate(frames):
        executor = executors[number % 3]
        executor.load(5, state)
        assert_same(executor.step([5], frame), expected[number])
        state = executor.save(5)
    assert len(state) == len(whole.save(0))


@pytest.mark.parametrize("timesteps", [4, None], ids=["ahead", "step by step"])
@pytest.mark.parametrize("neuron", [CLIFConfig(), GLIFConfig()], ids=lambda n: n.kind)
def test_a_picture_that_is_saved_goes_on_bit_by_bit(neuron, timesteps):
    network = small(neuron)
    picture = torch.rand(2, 13, 11)
    whole, first, second = cpu(network), cpu(network), cpu(network)
    for executor in (whole, first):
        executor.admit(0, Sample(picture, timesteps))
    expected = [whole.step([0], None).logits for _ in range(4)]
    for t in range(2):
        assert torch.equal(first.step([0], None).logits, expected[t])
    state = first.save(0)
    second.load(3, state)
    for t in (2, 3):
        assert torch.equal(second.step([3], None).logits, expected[t])
        assert torch.equal(first.step([0], None).logits, expected[t])
    assert first.save(0) == second.save(3)


def test_a_picture_may_stay_longer_than_was_said():
    network = small(CLIFConfig())
    picture = torch.rand(2, 13, 11)
    ours, other = cpu(network), cpu(network)
    ours.admit(0, Sample(picture, 2))
    other.admit(0, Sample(picture))
    for _ in range(5):
        assert torch.equal(ours.step([0], None).logits, other.step([0], None).logits)


def test_what_is_computed_ahead_can_be_had_at_once():
    network = small(CLIFConfig())
    picture = torch.rand(2, 13, 11)
    ours, other = cpu(network), cpu(network)
    assert ours.further(0) is None
    for executor in (ours, other):
        executor.admit(0, Sample(picture, 4))
        executor.step([0], None)
    expected = [other.step([0], None) for _ in range(3)]
    logits, spikes, operations = ours.further(0)
    for t, one in enumerate(expected):
        assert np.array_equal(logits[t : t + 1], one.logits)
        assert np.array_equal(spikes[t : t + 1], one.spikes)
        assert operations[t] == one.synaptic_operations
    assert ours.further(0) is None
    assert ours.save(0) == other.save(0)
    # A stream has nothing ahead.
    ours.admit(1, Sample())
    ours.step([1], Frames((0,), torch.rand(1, 2, 13, 11)))
    assert ours.further(1) is None


def test_a_large_picture_that_is_alone_is_shared_out(monkeypatch):
    """Rows of products and ranges of neurons, by more threads than there are rows, to the last bit."""
    monkeypatch.setattr(team, "_WORTH_SHARING", 1)
    monkeypatch.setattr(program, "_WORTH_A_THREAD", 1)
    network = residual(CLIFConfig())
    picture = torch.rand(network.input_shape)
    for timesteps in (3, None):
        results = []
        for threads in (1, 2, 5):
            monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            executor = cpu(network, "int16")
            executor.admit(2, Sample(picture, timesteps))
            results.append([executor.step([2], None) for _ in range(3)])
        for others in results[1:]:
            for one, other in zip(results[0], others, strict=True):
                assert torch.equal(one.logits, other.logits)
                assert torch.equal(one.spikes, other.spikes)
                assert torch.equal(one.synaptic_operations, other.synaptic_operations)


def test_many_timesteps_are_computed_in_pieces():
    network = small(CLIFConfig())
    picture = torch.rand(2, 13, 11)
    ours, other = cpu(network), cpu(network)
    ours.admit(0, Sample(picture, 70))
    other.admit(0, Sample(picture))
    for _ in range(70):
        assert torch.equal(ours.step([0], None).logits, other.step([0], None).logits)


def test_states_that_do_not_fit_are_refused():
    network = small(CLIFConfig())
    executor = cpu(network)
    executor.admit(0, Sample())
    state = executor.save(0)
    with pytest.raises(StateError, match="other weights"):
        cpu(network, weights="v").load(0, state)
    with pytest.raises(StateError, match="missing"):
        cpu(small(ILIFConfig())).load(0, state)
    with pytest.raises(StateError, match="belongs to no layer"):
        cpu(small(LIFConfig())).load(0, state)
    damaged = bytearray(state)
    damaged[-1] ^= 1
    with pytest.raises(StateError, match="damaged"):
        executor.load(0, bytes(damaged))
    # The slot is empty then.
    with pytest.raises(ValueError, match="slot 0 has neither"):
        executor.step([0], None)


def test_networks_it_cannot_run_are_refused_with_the_reason():
    silent = small(CLIFConfig(), SMALL)
    network = build_network(
        "small-conv", SMALL, CLIFConfig(), 4, {"hidden_neuron": IntegratorConfig(fires=False)}
    )
    with pytest.raises(UnsupportedError, match="hidden_neuron: its neurons give potentials"):
        CpuExecutor(network, 1, fan_out(silent))
    network = build_network("small-conv", SMALL, IntegratorConfig(), 4)
    with pytest.raises(UnsupportedError, match="Integrator is not among its neurons"):
        CpuExecutor(network, 1, fan_out(silent))
    large = {"pools": [12], "strides": [1], "channels": [4], "input_shape": (1, 12, 12)}
    with pytest.raises(UnsupportedError, match="pooling over 144 values"):
        plan_of(build_network("small-conv", large, CLIFConfig(), 4))


def test_arguments_that_cannot_be_are_refused():
    network = small(CLIFConfig())
    with pytest.raises(ValueError, match="slots is 0"):
        cpu(network, slots=0)
    reach = {k: v for k, v in fan_out(network).items() if "hidden" not in k}
    with pytest.raises(ValueError, match="fan_out lacks the layer 'hidden_neuron'"):
        CpuExecutor(network, 1, reach)
    executor = cpu(network)
    executor.admit(0, Sample(torch.rand(2, 13, 11)))
    with pytest.raises(ValueError, match="named twice"):
        executor.step([0, 0], None)


def test_eight_bits_are_faithful_only_to_weights_of_eight_bits():
    torch.manual_seed(1)
    network = build_network("small-conv", SMALL, CLIFConfig(), 4)
    assert faithful_precisions(network) == ("int16", "float32")
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            codes, scale = codes_by_channel(module.weight)
            by_channel = scale.view(-1, *(1,) * (module.weight.dim() - 1))
            module.weight.data = codes.float() * by_channel
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.running_var.uniform_(0.3, 2)
            module.weight.data.uniform_(-1, 1)
    assert faithful_precisions(network) == ("int8", "float32")


def test_batch_norms_and_poolings_leave_only_products():
    torch.manual_seed(1)
    plan = plan_of(build_network("spiking-vgg11", {"input_shape": (2, 32, 32)}, LIFConfig(), 2))
    assert sum(isinstance(step, Layer) for step in plan.steps) == 8
    # An adaptive pooling that enlarges is folded into the weights behind it.
    assert plan.outputs[0].weight.shape == (10, 512, 1, 1)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("precision", ["int16", "int8"])
def test_a_product_of_windows_is_the_convolution_to_the_last_bit(stride, precision):
    torch.manual_seed(1)
    product = Product("a", "b", torch.randn(32, 16, 3, 3), torch.randn(32), (stride,) * 2, (1, 1))
    x = torch.randint(0, 5, (5, 16, 4, 4), dtype=torch.uint8)
    x = x.contiguous(memory_format=torch.channels_last)
    ways = [_Whole(product, precision, (16, 4, 4)), _Unfolded(product, precision)]
    for one, other in zip(*(way(x) for way in ways), strict=True):
        assert torch.equal(one, other)
    exact = nn.functional.conv2d(x.double(), product.weight.double(), None, stride, 1)
    exact += product.bias.double().view(-1, 1, 1)
    total = torch.stack(ways[0](x)).double().sum(0)
    largest = product.weight.abs().amax().item()
    off = largest / (127 if precision == "int8" else 127 * 256)
    assert (total - exact).abs().max() < off * x.sum((1, 2, 3)).max()
