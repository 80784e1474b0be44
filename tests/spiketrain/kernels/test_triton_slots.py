"""The slot-indexed kernels: states in place, padding, counts, residual sums, several timesteps at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from spiketrain.kernels import plain_steps
from spiketrain.neurons import (
    CLIFConfig,
    GLIFConfig,
    ILIFConfig,
    LIFConfig,
    NeuronConfig,
    NeuronLayer,
    PLIFConfig,
)

pytest.importorskip("triton")
gpu = pytest.importorskip("spiketrain.kernels.triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPE = (5, 4, 3)
CONFIGS: list[NeuronConfig] = [
    LIFConfig(rest=0.2, reset="hard", per_channel=("threshold",)),
    PLIFConfig(),
    CLIFConfig(),
    ILIFConfig(current_decay=0.5),
    GLIFConfig(random_gates=True),
]


def neuron_of(config: NeuronConfig) -> Any:
    torch.manual_seed(3)
    layer = NeuronLayer(config, SHAPE[0], 3).to(DEVICE)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return layer.requires_grad_(False).neuron()


def currents(*shape: int, seed: int = 0) -> Tensor:
    """With channels last in memory."""
    values = torch.randn(*shape, *SHAPE, generator=torch.Generator().manual_seed(seed)) + 0.6
    return values.movedim(-3, -1).contiguous().movedim(-1, -3).to(DEVICE)


def batch_of(slots: list[int], ages: list[int], steps: int = 1, layers: int = 3) -> Any:
    return gpu.Batch(
        torch.tensor(slots, dtype=torch.int32, device=DEVICE),
        torch.tensor(ages, dtype=torch.int32, device=DEVICE),
        torch.zeros(steps, len(slots), layers, dtype=torch.float64, device=DEVICE),
        torch.zeros(steps, len(slots), dtype=torch.float64, device=DEVICE),
        steps,
    )


def layer_of(neuron: Any, slots: int = 6, affine: Any = None) -> Any:
    reach = torch.arange(60).view(SHAPE).float()
    return gpu.SlotLayer(gpu.plan_of(neuron), slots, SHAPE, reach, 1, affine, DEVICE)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
def test_samples_come_and_go_in_slots(config: NeuronConfig) -> None:
    neuron = neuron_of(config)
    layer = layer_of(neuron)
    x = currents(7, 3)  # three samples, the last one comes later and into a slot that was used
    expected = [
        plain_steps(neuron, x[:3, :1], neuron.initial_state(x[0, :1]))[0],
        plain_steps(neuron, x[:, 1:2], neuron.initial_state(x[0, :1]))[0],
        plain_steps(neuron, x[3:, 2:], neuron.initial_state(x[0, :1]))[0],
    ]
    got: list[list[Tensor]] = [[], [], []]
    for t in range(7):
        other, age = (0, t) if t < 3 else (2, t - 3)
        rows = torch.stack([x[t, 1], x[t, 1] * 9, x[t, other]])
        batch = batch_of([5, -1, 2], [t, 3, age])
        spikes = layer.fire(rows.movedim(1, -1).contiguous().movedim(-1, 1), None, batch, x.dtype)
        got[1].append(spikes[0])
        got[other].append(spikes[2])
        counts = [float(spikes[0].sum()), 0.0, float(spikes[2].sum())]
        assert batch.counts[0, :, 1].tolist() == counts
        assert batch.counts[..., ::2].sum() == 0
        reach = torch.arange(60, device=DEVICE).view(SHAPE)
        assert batch.operations[0, [0, 2]].tolist() == [
            float((spikes[row] * reach).sum()) for row in (0, 2)
        ]
        assert batch.operations[0, 1] == 0
    for mine, theirs in zip(got, expected, strict=True):
        assert torch.equal(torch.stack(mine), theirs[:, 0])
        assert theirs.mean() > 0.02


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
def test_several_timesteps_at_once_are_single_ones(config: NeuronConfig) -> None:
    neuron = neuron_of(config)
    x = currents(4, 2)
    at_once, one_by_one = layer_of(neuron), layer_of(neuron)
    batch = batch_of([1, 4], [0, 0], steps=4)
    spikes = at_once.fire(x.flatten(0, 1), None, batch, torch.bfloat16)
    for t in range(4):
        single = batch_of([1, 4], [t, t])
        one = one_by_one.fire(x[t], None, single, torch.bfloat16)
        assert torch.equal(spikes.view(4, 2, *SHAPE)[t], one)
        assert torch.equal(batch.counts[t], single.counts[0])
        assert torch.equal(batch.operations[t], single.operations[0])
    for slot in (1, 4):
        parts = zip(at_once.state_of(slot, 4), one_by_one.state_of(slot, 4), strict=True)
        assert all(torch.equal(a, b) for a, b in parts)


def test_a_constant_current_is_read_where_it_lies() -> None:
    neuron = neuron_of(CLIFConfig())
    x = currents(6)
    expected = layer_of(neuron).fire(
        x[[3, 0]].repeat(3, 1, 1, 1), None, batch_of([3, 0], [0, 0], 3), torch.float32
    )
    batch = batch_of([3, 0], [0, 0], 3)
    assert torch.equal(layer_of(neuron).fire(x, None, batch, torch.float32, by_slot=True), expected)
    rows = x[[3, 0]].movedim(1, -1).contiguous().movedim(-1, 1)
    batch = batch_of([3, 0], [0, 0], 3)
    assert torch.equal(
        layer_of(neuron).fire(rows, None, batch, torch.float32, constant=True), expected
    )


def test_a_residual_sum_and_a_batch_norm_cost_no_pass_of_their_own() -> None:
    neuron = neuron_of(CLIFConfig())
    a, b = currents(2), currents(2, seed=1)
    gain, shift = torch.linspace(0.5, 1.5, 5), torch.linspace(-0.3, 0.3, 5)
    affine = gpu.Affine(gain.to(DEVICE), shift.to(DEVICE))
    spikes = layer_of(neuron, affine=affine).fire(a, b, batch_of([0, 3], [0, 0]), torch.float32)
    x = (a + b) * affine.gain.view(-1, 1, 1) + affine.shift.view(-1, 1, 1)
    assert torch.equal(spikes, neuron.step(x, neuron.initial_state(x))[0])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
def test_a_state_is_the_neurons_own(config: NeuronConfig) -> None:
    neuron = neuron_of(config)
    layer = layer_of(neuron)
    x = currents(3, 1)
    state = neuron.initial_state(x[0])
    fresh = layer.state_of(2, 0)
    assert all(torch.equal(a, b.cpu()) for a, b in zip(fresh, state, strict=True))
    for t in range(2):
        layer.fire(x[t], None, batch_of([2], [t]), x.dtype)
        _, state = neuron.step(x[t], state)
    saved = layer.state_of(2, 2)
    torch.testing.assert_close(saved, tuple(part.cpu() for part in state), atol=2e-6, rtol=2e-6)
    layer.set_state(4, saved)
    spikes = [layer.fire(x[2], None, batch_of([slot], [2]), x.dtype) for slot in (2, 4)]
    assert torch.equal(*spikes)
    assert all(
        torch.equal(a, b) for a, b in zip(layer.state_of(2, 3), layer.state_of(4, 3), strict=True)
    )
