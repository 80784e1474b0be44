"""The executor for GPUs against the reference: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeserve.engine import Frames, ReferenceExecutor, Sample, StateError
from spiketrain.energy import fan_out
from spiketrain.networks import Network, build_network
from spiketrain.networks.base import Fire, NeuronFactory
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

pytest.importorskip("triton")
cuda = pytest.importorskip("spikeserve.engine.cuda")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NEURONS: list[NeuronConfig] = [
    CLIFConfig(),
    ILIFConfig(),
    PLIFConfig(),
    GLIFConfig(),
    LIFConfig(reset="hard", per_channel=("reset_value",)),
]


class Residual(Network):
    """Two blocks of the pre-activation ResNet: a sum and a batch norm stand before neurons, and both shortcuts."""

    def __init__(self, neurons: NeuronFactory) -> None:
        super().__init__((2, 6, 5), 3, neurons.timesteps)
        self.stem = nn.Conv2d(2, 4, 3, 1, 1)
        self.first = PreActivationBlock(neurons, "first", 4, 4, 1, 0.0)
        self.second = PreActivationBlock(neurons, "second", 4, 6, 2, 0.0)
        self.bn = nn.BatchNorm2d(6)
        self.neuron = neurons("neuron", 6)
        self.linear = nn.Linear(6 * 9, 3)

    def encode(self, x: Tensor) -> Tensor:
        return self.stem(x)

    def body(self, x: Tensor, fire: Fire) -> Tensor:
        x = self.second.run(self.first.run(x, fire), fire)
        return self.linear(fire(self.neuron, self.bn(x)).flatten(1))


def lively(network: Network) -> Network:
    """With batch norms by which a fair share of the neurons fires."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.running_var.uniform_(0.05, 0.4)
            module.bias.data.uniform_(0.4, 1.2)
    return network.eval()


def small(neuron: NeuronConfig, timesteps: int = 4, layers: Any = None) -> Network:
    torch.manual_seed(1)
    arguments = {"input_shape": (2, 9, 7), "channels": [4, 6], "hidden": 7, "classes": 5}
    return lively(build_network("small-conv", arguments, neuron, timesteps, layers))


def pair(network: Network, slots: int = 8, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    reach = fan_out(network)
    return (
        ReferenceExecutor(network, slots, reach, "w"),
        cuda.CudaExecutor(network, slots, reach, "w", dtype, DEVICE),
    )


def assert_same(result: Any, expected: Any) -> None:
    torch.testing.assert_close(result.logits, expected.logits, atol=2e-5, rtol=2e-5)
    assert torch.equal(result.spikes, expected.spikes)
    torch.testing.assert_close(result.synaptic_operations, expected.synaptic_operations)
    assert result.logits.dtype == torch.float32
    assert result.spikes.dtype == result.synaptic_operations.dtype == torch.float64
    assert result.logits.device.type == "cpu"


@pytest.mark.parametrize("neuron", NEURONS, ids=lambda neuron: neuron.kind)
def test_pictures_and_streams_share_a_batch(neuron: NeuronConfig) -> None:
    """Three rows are padded to four; a slot is used again for a newcomer; a state moves to another slot."""
    network = small(neuron)
    reference, executor = pair(network)
    assert executor.slots == 8
    assert executor.layers == reference.layers
    pictures, frames = torch.rand(3, 2, 9, 7), torch.rand(6, 1, 2, 9, 7)
    results = []
    for each in (reference, executor):
        each.admit(5, Sample(pictures[0]))
        each.admit(2, Sample())
        rows = [each.step([5, 2], Frames((1,), frames[t])) for t in range(2)]
        each.admit(0, Sample(pictures[1]))
        rows += [each.step([0, 2, 5], Frames((1,), frames[t])) for t in range(2, 4)]
        each.admit(5, Sample(pictures[2]))
        rows += [each.step([2, 5, 0], Frames((0,), frames[4]))]
        each.load(7, each.save(2))
        each.admit(2, Sample(pictures[0]))
        rows += [each.step([5, 7, 2], Frames((1,), frames[5]))]
        results.append(rows)
    assert sum(result.spikes.sum() for result in results[0]) > 100
    for expected, result in zip(*results, strict=True):
        assert_same(result, expected)


def test_sums_and_batch_norms_before_neurons() -> None:
    torch.manual_seed(2)
    network = lively(Residual(NeuronFactory(CLIFConfig(), 3)))
    reference, executor = pair(network, 2)
    pictures = torch.rand(2, 2, 6, 5)
    for each in (reference, executor):
        for slot in (0, 1):
            each.admit(slot, Sample(pictures[slot]))
    for _ in range(3):
        expected = reference.step([1, 0], None)
        assert expected.spikes.min() > 0
        assert_same(executor.step([1, 0], None), expected)


@pytest.mark.parametrize("neuron", [CLIFConfig(), GLIFConfig()], ids=lambda neuron: neuron.kind)
def test_pictures_known_to_run_to_the_end_are_computed_ahead(neuron: NeuronConfig) -> None:
    network = small(neuron)
    reference, executor = pair(network)
    runs = []
    step = executor._runner.step
    executor._runner.step = lambda slots, ages, steps: (
        runs.append((list(slots), steps)) or step(slots, ages, steps)
    )
    pictures, frames = torch.rand(3, 2, 9, 7), torch.rand(5, 1, 2, 9, 7)
    results = []
    for each in (reference, executor):
        each.admit(3, Sample(pictures[0], 4))
        each.admit(1, Sample())
        rows = [each.step([3, 1], Frames((1,), frames[0]))]
        each.admit(6, Sample(pictures[1], 3))  # not as many as the network was trained with
        rows += [each.step([6, 1, 3], Frames((1,), frames[t])) for t in (1, 2)]
        # In the middle of what was computed ahead.
        each.load(0, each.save(3))
        rows += [each.step([0, 6, 1], Frames((2,), frames[3]))]
        results.append(rows)
    for expected, result in zip(*results, strict=True):
        assert_same(result, expected)
    assert runs == [([3], 4), ([1], 1), ([6, 1], 1), ([6, 1], 1), ([6, 1], 1)]


def test_a_layer_without_a_kernel_is_stepped_by_torch() -> None:
    """An integrator that is counted, and one that gives its potential; both have to mind padding and slots, too."""
    layers = {
        "stages.1.neuron": IntegratorConfig(shape=(6,), synapse=True),
        "hidden_neuron": IntegratorConfig(fires=False),
    }
    network = small(LIFConfig(), layers=layers)
    reference, executor = pair(network)
    frames = torch.rand(4, 3, 2, 9, 7)
    for each in (reference, executor):
        for slot in (1, 4, 6):
            each.admit(slot, Sample())
    for t in range(4):
        expected = reference.step([6, 1, 4], Frames((0, 1, 2), frames[t]))
        assert_same(executor.step([6, 1, 4], Frames((0, 1, 2), frames[t])), expected)
        if t == 1:
            for each in (reference, executor):
                each.load(4, each.save(4))
    assert expected.spikes.shape == (3, 2)
    assert expected.spikes.min() > 0


@pytest.mark.parametrize("neuron", NEURONS, ids=lambda neuron: neuron.kind)
def test_streams_move_between_executors(neuron: NeuronConfig) -> None:
    """Potentials are float32 in both, in the same format."""
    reference, executor = pair(small(neuron))
    frames = torch.rand(3, 1, 2, 9, 7)
    for each in (reference, executor):
        each.admit(0, Sample())
        each.step([0], Frames((0,), frames[0]))
        each.step([0], Frames((0,), frames[1]))
    states = reference.save(0), executor.save(0)
    reference.load(3, states[1])
    executor.load(3, states[0])
    assert_same(
        executor.step([3], Frames((0,), frames[2])), reference.step([3], Frames((0,), frames[2]))
    )


def test_a_saved_picture_goes_on_bit_by_bit() -> None:
    _, executor = pair(small(CLIFConfig()), dtype=torch.bfloat16)
    executor.admit(0, Sample(torch.rand(2, 9, 7)))
    new = executor.save(0)
    executor.load(1, new)
    first = [executor.step([slot], None) for slot in (0, 1)]
    executor.load(5, executor.save(0))
    second = [executor.step([slot], None) for slot in (0, 5)]
    for a, b in (first, second):
        assert torch.equal(a.logits, b.logits)
        assert torch.equal(a.spikes, b.spikes)
    assert executor.save(0) == executor.save(5)


def test_bfloat16_flips_few_spikes() -> None:
    reference, executor = pair(small(CLIFConfig()), dtype=torch.bfloat16)
    pictures = torch.rand(8, 2, 9, 7)
    for each in (reference, executor):
        for slot, picture in enumerate(pictures):
            each.admit(slot, Sample(picture))
    for _ in range(4):
        expected, result = reference.step(range(8), None), executor.step(range(8), None)
        assert (result.spikes - expected.spikes).abs().sum() < 0.03 * expected.spikes.sum()


def test_batches_larger_than_the_largest_graph_are_taken_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("spikeserve.engine.cuda.runner.SIZES", (1, 2))
    reference, executor = pair(small(LIFConfig()), slots=5)
    for each in (reference, executor):
        for slot in range(5):
            each.admit(slot, Sample(torch.full((2, 9, 7), 0.2 * slot)))
    for _ in range(2):
        assert_same(executor.step([4, 0, 3, 1, 2], None), reference.step([4, 0, 3, 1, 2], None))


def test_what_is_wrong_is_said() -> None:
    network = small(CLIFConfig())
    _, executor = pair(network)
    executor.admit(0, Sample(torch.rand(2, 9, 7)))
    executor.admit(1, Sample())
    with pytest.raises(ValueError, match="one is named twice"):
        executor.step([0, 0], None)
    with pytest.raises(ValueError, match="slot 1 has neither a constant input nor a frame"):
        executor.step([0, 1], None)
    state = executor.save(1)
    with pytest.raises(StateError, match="damaged"):
        executor.load(0, state[:-1] + b"\0\1"[state[-1] == 0 :][:1])
    other = small(LIFConfig())
    foreign = cuda.CudaExecutor(other, 1, fan_out(other), "w", torch.float32, DEVICE)
    foreign.admit(0, Sample())
    with pytest.raises(StateError, match=r"'stages\.0\.neuron' is missing"):
        executor.load(0, foreign.save(0))
    with pytest.raises(ValueError, match="neither a constant input"):  # the slot is empty
        executor.step([0], None)
    with pytest.raises(StateError, match=r"'hidden_neuron/1' belongs to no layer"):
        foreign.load(0, state)
    with pytest.raises(ValueError, match="slots is 0"):
        cuda.CudaExecutor(network, 0, fan_out(network), device=DEVICE)
