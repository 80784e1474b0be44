"""Operations of every kind of network, and the energy model: figures by hand, and none of the errors that others made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spiketrain.energy import encoder_macs, fan_out, synaptic_operations
from spiketrain.networks import Network, build_network
from spiketrain.neurons import CLIFConfig, FeedbackLIFConfig, PLIFConfig
from spiketrain.report.costs import (
    PICOJOULE,
    PRECISIONS,
    Work,
    access_joules,
    analog_energy,
    spiking_energy,
)
from spiketrain.report.counting import OperationCounter, reached

SMALL: dict[str, Any] = {
    "input_shape": (2, 9, 9),
    "channels": (4, 6),
    "strides": (2, 1),
    "hidden": 8,
}


def lively(network: Network) -> Network:
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.constant_(module.bias, 0.7)
        if isinstance(module, nn.Linear):
            nn.init.uniform_(module.weight, -0.2, 0.6)
    return network.eval()


def count(counter: OperationCounter, x: Tensor) -> dict[str, Tensor]:
    with torch.no_grad(), counter.counting(x.shape[1]) as operations:
        spikes = counter.network(x).spikes
    return operations(spikes)


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(4, 6, 3, 2, 1),
        nn.Conv2d(4, 6, 3, 1, 1, groups=2),
        nn.Conv2d(4, 6, (3, 1), 1, 0, dilation=2),
        nn.ConvTranspose2d(4, 6, 3, 2, 1, 1),
        nn.ConvTranspose2d(4, 6, 2, 1, 0, groups=2),
        nn.Linear(4 * 49, 5),
    ],
)
def test_weights_that_spikes_meet_are_counted_one_by_one(module: Any) -> None:
    """A network of ones without a bias adds up what each output gets."""
    spikes = (torch.rand(3, 4, 7, 7) < 0.3).float()
    x = spikes.flatten(1) if isinstance(module, nn.Linear) else spikes
    nn.init.ones_(module.weight)
    nn.init.zeros_(module.bias)
    with torch.no_grad():
        expected = module(x).flatten(1).sum(1)
    assert reached(module, x).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("name", "arguments", "neuron"),
    [
        ("small-conv", SMALL, CLIFConfig()),
        (
            "feedback-64c5s",
            {"input_shape": (1, 8, 8), "channels": 4},
            FeedbackLIFConfig(threshold=0.5),
        ),
        (
            "feedback-f400",
            {"input_shape": (1, 4, 4), "hidden": 9},
            FeedbackLIFConfig(threshold=0.5),
        ),
    ],
)
def test_counting_during_the_run_gives_what_each_neuron_reaches(
    name: str, arguments: dict[str, Any], neuron: Any
) -> None:
    torch.manual_seed(0)
    network = lively(build_network(name, arguments, neuron, 4))
    x = torch.randn(4, 3, *network.input_shape) + 0.5
    by_neuron = OperationCounter(network)
    assert by_neuron.by == "from"
    during = OperationCounter(network)
    during._reach = None
    ours, theirs = count(by_neuron, x), count(during, x)
    total = torch.stack(list(ours.values())).sum(0)
    if name != "small-conv":
        # The average of a feedback network counts a spike as one more; its readout sees averages, not spikes.
        spikes = network(x).spikes["neurons.0"].flatten(2).sum((0, 2)).double()
        last = "linear"
        total = total - spikes
        theirs = {key: value for key, value in theirs.items() if key != last}
        # The last timestep's spikes come back to nothing in this run.
        lost = network(x).spikes["neurons.0"][-1]
        total = total - reached(network.feedback, lost)  # type: ignore[arg-type]
    torch.testing.assert_close(total, torch.stack(list(theirs.values())).sum(0))
    assert total.min() > 0
    encoder, dense = by_neuron.dense_macs()
    assert encoder == encoder_macs(network)
    if name == "small-conv":
        assert dense == encoder + sum(int(each.sum()) for each in fan_out(network).values())
        assert by_neuron.weights() == 2 * 4 * 9 + 4 * 6 * 9 + 6 * 25 * 8 + 8 * 10


def test_behind_a_maximum_pooling_what_arrives_is_counted() -> None:
    torch.manual_seed(0)
    arguments = {"plan": (3, "P", 4, "P"), "input_shape": (1, 8, 8), "hidden": 6}
    network = lively(build_network("plif-mnist", arguments, PLIFConfig(), 3))
    counter = OperationCounter(network)
    assert counter.by == "into"
    x = torch.randn(3, 2, 1, 8, 8) + 1
    operations = count(counter, x)
    assert list(operations) == ["features.2.conv", "linear1", "linear2"]
    with torch.no_grad():
        spikes = network(x).spikes
    pooled = nn.functional.max_pool2d(spikes["features.0.neuron"].flatten(0, 1), 2)
    expected = reached(nn.Conv2d(3, 4, 3, 1, 1), pooled).view(3, 2).sum(0)
    assert operations["features.2.conv"].tolist() == expected.tolist()
    hidden = spikes["neuron1"].sum((0, 2)) * 100
    assert operations["linear2"].tolist() == hidden.tolist()
    bound = synaptic_operations({k: v.sum(0) for k, v in spikes.items()}, fan_out(network))
    assert (torch.stack(list(operations.values())).sum(0) <= bound).all()
    # Hooks are gone after the run.
    before = operations["linear2"].clone()
    network(x)
    assert torch.equal(operations["linear2"], before)


FLOAT = PRECISIONS[0]
WORK = Work(
    passes=1,
    encoder_macs=1000,
    dense_macs=9000,
    operations=5000.0,
    spikes=200.0,
    updates=400.0,
    state=50,
    timesteps=4,
    neurons=40,
    weights=500,
)


def test_arithmetic_by_hand() -> None:
    ours, theirs = spiking_energy(WORK, FLOAT), analog_energy(WORK, FLOAT)
    assert ours.arithmetic == pytest.approx((4.6 * 1400 + 0.9 * 5000) * PICOJOULE)
    assert theirs.arithmetic == pytest.approx(4.6 * 9000 * PICOJOULE)
    small = PRECISIONS[2]
    ours, theirs = spiking_energy(WORK, small), analog_energy(WORK, small)
    assert ours.arithmetic == pytest.approx((0.23 * 1400 + 0.03 * 5000) * PICOJOULE)
    assert theirs.arithmetic == pytest.approx(0.23 * 9000 * PICOJOULE)


def test_memory_by_hand() -> None:
    """All memories are below 8 KiB: 10 pJ for 64 bits, so 5 pJ for 32."""
    ours, theirs = spiking_energy(WORK, FLOAT), analog_energy(WORK, FLOAT)
    accesses = 2 * 1000 + 3 * 5000 + 2 * 50 * 4 + 2 * 200
    assert ours.memory == pytest.approx(5 * accesses * PICOJOULE)
    assert ours.total == ours.arithmetic + ours.memory
    assert theirs.memory == pytest.approx(5 * (2 * 9000 + 40) * PICOJOULE)


@pytest.mark.parametrize(
    ("size", "picojoules"),
    [
        (0, 10),
        (8 << 10, 10),
        (20 << 10, 15),
        (32 << 10, 20),
        (528 << 10, 60),
        (1 << 20, 100),
        (1 << 30, 100),
    ],
)
def test_a_memory_is_dearer_the_larger_it_is(size: int, picojoules: float) -> None:
    """Without the drop to 0 at 8 and 32 KiB that a published script has."""
    assert access_joules(size, 64) == pytest.approx(picojoules * PICOJOULE)
    assert access_joules(size, 8) == pytest.approx(picojoules / 8 * PICOJOULE)


def test_a_picture_passes_an_analog_network_once_and_a_recording_once_a_window() -> None:
    windows = replace(WORK, passes=4)
    assert analog_energy(windows, FLOAT).arithmetic == pytest.approx(
        4 * analog_energy(WORK, FLOAT).arithmetic
    )
    more = spiking_energy(windows, FLOAT).arithmetic - spiking_energy(WORK, FLOAT).arithmetic
    assert more == pytest.approx(3 * 1000 * 4.6 * PICOJOULE)
    # More timesteps of a picture are more operations, and no more of the analog network.
    longer = replace(WORK, timesteps=8, operations=10_000.0, updates=800.0, spikes=400.0)
    assert analog_energy(longer, FLOAT) == analog_energy(WORK, FLOAT)
    assert spiking_energy(longer, FLOAT).arithmetic > spiking_energy(WORK, FLOAT).arithmetic


def test_shortcuts_and_strides_count() -> None:
    """By the sizes of the layers, on inputs without an edge: 1x1 and 3x3 taps, of which padding takes some."""
    network = build_network("spiking-resnet18", {"input_shape": (3, 25, 25)}, CLIFConfig(), 2)
    counter = OperationCounter(network.eval())
    encoder, dense = counter.dense_macs()
    expected = 0
    side = 25
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and name != "conv1":
            before = {"2": 25, "3": 13, "4": 7}.get(name[5], 25) if module.stride[0] == 2 else side
            after = -(-before // module.stride[0])
            side = after
            taps = sum(
                1
                for out in range(after)
                for tap in range(module.kernel_size[0])
                if 0 <= out * module.stride[0] + tap - module.padding[0] < before
            )
            expected += taps**2 * module.in_channels * module.out_channels
    assert encoder == (3 * 25 - 2) ** 2 * 3 * 64
    assert dense == encoder + expected + 512 * 10
