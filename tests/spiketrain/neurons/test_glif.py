"""GLIF's gates, and what happens beyond the timesteps that its conductances were trained for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from spiketrain.neurons import GLIFConfig, GLIFState, NeuronLayer

GATES = ("alpha", "beta", "gamma")


def layer_with(gates: str, timesteps: int = 20, channels: int = 3, **gate: float) -> NeuronLayer:
    layer = NeuronLayer(GLIFConfig(gates=gates), channels, timesteps).double()  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
        for name, logit in gate.items():
            getattr(layer, name).fill_(logit)
    return layer


def currents(*shape: int) -> Tensor:
    return (
        torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.4
    )


def by_hand(layer: NeuronLayer, x: Tensor, alpha: Any, beta: Any, gamma: Any) -> Tensor:
    """The five readings of the gates, term by term: [T, N, C] only."""
    tau, threshold, leak, subtract, conduct = (
        getattr(layer, name).detach().sigmoid()
        for name in ("tau", "threshold", "leak", "subtract", "conduct")
    )
    u, s = torch.zeros_like(x[0]), torch.zeros_like(x[0])
    spikes = []
    for t, current in enumerate(x):
        kept = alpha * tau * u + (1 - alpha) * u
        reset = (1 - gamma * s) * kept - (1 - gamma) * s * subtract
        u = reset - (1 - alpha) * leak + (1 - beta) * current + beta * conduct[t] * current
        s = (u > threshold).double()
        spikes.append(s)
    return torch.stack(spikes)


def test_soft_gates_mix_the_two_forms_by_their_sigmoid() -> None:
    layer = layer_with("soft")
    x = currents(20, 50, 3)
    gates = [getattr(layer, name).detach().sigmoid() for name in GATES]
    spikes = layer(x)[0]
    assert torch.equal(spikes, by_hand(layer, x, *gates))
    assert 0.05 < spikes.mean() < 0.95


@pytest.mark.parametrize("alpha", [0, 1])
@pytest.mark.parametrize("beta", [0, 1])
@pytest.mark.parametrize("gamma", [0, 1])
def test_hard_gates_choose_one_form(alpha: int, beta: int, gamma: int) -> None:
    logits = {
        name: 0.3 if gate else -0.3 for name, gate in zip(GATES, (alpha, beta, gamma), strict=True)
    }
    layer = layer_with("hard", **logits)
    x = currents(20, 50, 3)
    spikes = layer(x)[0]
    assert torch.equal(spikes, by_hand(layer, x, alpha, beta, gamma))
    assert 0 < spikes.mean() < 1


def test_the_gradient_of_a_hard_gate_passes_straight_through_to_its_sigmoid() -> None:
    hard = layer_with("hard")
    x = currents(20, 4, 3)
    weight = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (hard(x)[0] * weight).sum().backward()
    # The same neuron with the rounded gates as free values: the gradient of the sigmoid is theirs.
    neuron = hard.neuron()
    values = {name: getattr(neuron, name).detach().requires_grad_() for name in GATES}
    state: Any = neuron.initial_state(x[0])
    free = neuron._replace(**values)  # type: ignore[attr-defined]
    total = torch.zeros((), dtype=torch.float64)
    for current, one in zip(x, weight, strict=True):
        s, state = free.step(current, state)
        total = total + (s * one).sum()
    total.backward()
    for name in GATES:
        gate = getattr(hard, name).detach().sigmoid()
        expected = values[name].grad * gate * (1 - gate)
        torch.testing.assert_close(getattr(hard, name).grad, expected)
        assert expected.abs().sum() > 0


def test_static_gates_do_not_learn_and_the_rest_does() -> None:
    layer = NeuronLayer(GLIFConfig(static_gates=True), 3, 10)
    (layer(currents(10, 4, 3).float())[0] * currents(10, 4, 3).float()).sum().backward()
    assert all(getattr(layer, name).grad is None for name in GATES)
    assert all(
        getattr(layer, name).grad is not None for name in ("tau", "threshold", "leak", "conduct")
    )


def test_random_gates_start_within_a_tenth_of_even() -> None:
    torch.manual_seed(0)
    layer = NeuronLayer(GLIFConfig(random_gates=True), 500, 4)
    for name in GATES:
        logits = getattr(layer, name).detach()
        assert logits.abs().max() <= 0.1
        assert logits.std() > 0.04
    assert torch.allclose(layer.tau.sigmoid(), torch.tensor(0.25))


def test_beyond_the_trained_timesteps_conduct_keeps_its_last_value() -> None:
    short = layer_with("soft", timesteps=3)
    long = layer_with("soft", timesteps=8)
    with torch.no_grad():
        for name, parameter in short.named_parameters():
            if name != "conduct":
                getattr(long, name).copy_(parameter)
        long.conduct[:3] = short.conduct
        long.conduct[3:] = short.conduct[2]
        x = currents(8, 50, 3)
        assert torch.equal(short(x)[0], long(x)[0])


def test_samples_at_different_timesteps_share_a_batch() -> None:
    layer = layer_with("soft", timesteps=6)
    x = currents(6, 3, 3, 4, 5)
    starts = (0, 2, 5)
    with torch.no_grad():
        alone = []
        for sample, start in enumerate(starts):
            state = layer(x[:start, sample : sample + 1])[1] if start else None
            alone.append(state or layer.initial_state(x[0, sample : sample + 1]))
        together = GLIFState(*(torch.cat(parts) for parts in zip(*alone, strict=True)))
        assert together.t.tolist() == list(starts)
        for current in x:
            s, together = layer.step(current, together)
            for sample in range(3):
                one, alone[sample] = layer.step(current[sample : sample + 1], alone[sample])
                assert torch.equal(s[sample : sample + 1], one)
        torch.testing.assert_close(together.u, torch.cat([state.u for state in alone]))
        assert together.t.tolist() == [6, 8, 11]
