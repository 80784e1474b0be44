"""What a spike does to the potential, and what counts as a spike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from spiketrain.neurons import CLIF, GLIF, ILIF, LIF, PLIF, LIFConfig, NeuronLayer
from spiketrain.surrogate import Rectangle


def currents(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator) + 0.5


def run(neuron: Any, x: Tensor) -> tuple[Tensor, Any]:
    state = neuron.initial_state(x[0])
    spikes = []
    for current in x:
        s, state = neuron.step(current, state)
        spikes.append(s)
    return torch.stack(spikes), state


@pytest.mark.parametrize("decay_input", [False, True])
@pytest.mark.parametrize("tau", [2.0, 5.0])
@pytest.mark.parametrize("b", [0.02, 0.06, 0.1])
def test_rest_and_reset_at_minus_b_is_threshold_one_plus_b_with_reset_at_zero(
    b: float, tau: float, decay_input: bool
) -> None:
    x = currents(200, 4, 1000) * (tau if decay_input else 1)
    below = LIF(tau, 1.0, "hard", reset_value=-b, rest=-b, decay_input=decay_input)
    above = LIF(tau, 1.0 + b, "hard", decay_input=decay_input)
    spikes, state = run(below, x)
    expected, expected_state = run(above, x)
    assert torch.equal(spikes, expected)
    assert 0.05 < spikes.mean() < 0.95
    torch.testing.assert_close(state.v + b, expected_state.v)


def test_rest_at_zero_and_reset_below_it_is_another_neuron() -> None:
    x = currents(200, 4, 1000)
    moved = run(LIF(reset="hard", reset_value=-0.1, rest=-0.1), x)[0]
    stays = run(LIF(reset="hard", reset_value=-0.1), x)[0]
    assert moved.mean() < stays.mean()


def test_the_potential_leaks_to_rest_and_not_to_the_reset_value() -> None:
    neuron = LIF(reset="hard", reset_value=-0.5, rest=0.25)
    state = neuron.initial_state(torch.zeros(1, 1, dtype=torch.float64))
    assert state.v.item() == 0.25
    _, state = neuron.step(torch.full((1, 1), 2.0, dtype=torch.float64), state)
    assert state.v.item() == -0.5
    for _ in range(60):
        _, state = neuron.step(torch.zeros(1, 1, dtype=torch.float64), state)
    assert state.v.item() == pytest.approx(0.25)


def test_a_soft_reset_subtracts_what_it_is_told_and_else_the_threshold() -> None:
    x = torch.full((1, 1, 1), 2.5, dtype=torch.float64)
    assert run(LIF(threshold=1.25), x)[1].v.item() == 1.25
    assert run(LIF(threshold=1.25, subtract=1.75), x)[1].v.item() == 0.75


def test_constants_can_differ_from_channel_to_channel() -> None:
    names = ("threshold", "subtract", "reset_value")
    for reset in ("soft", "hard"):
        config = LIFConfig(reset=reset, subtract=1.8, per_channel=names)  # type: ignore[arg-type]
        layer = NeuronLayer(config, channels=3, timesteps=50).double()
        with torch.no_grad():
            layer.threshold.copy_(torch.tensor([0.5, 1.0, 1.5]))
            layer.subtract.copy_(torch.tensor([0.25, 1.0, 2.0]))
            layer.reset_value.copy_(torch.tensor([-0.5, 0.0, 0.25]))
            x = currents(50, 2, 3, 4, 5)
            spikes, state = layer(x)
            for c in range(3):
                one = LIF(
                    threshold=layer.threshold[c].item(),
                    reset=config.reset,
                    subtract=layer.subtract[c].item(),
                    reset_value=layer.reset_value[c].item(),
                )
                expected, expected_state = run(one, x[:, :, c])
                assert torch.equal(spikes[:, :, c], expected)
                torch.testing.assert_close(state.v[:, c], expected_state.v)


ONE_STEP_AT_THE_THRESHOLD = [
    pytest.param(LIF(), 1.0, id="lif-soft"),
    pytest.param(LIF(reset="hard"), 1.0, id="lif-hard"),
    pytest.param(PLIF(torch.tensor(0.0, dtype=torch.float64)), 2.0, id="plif"),
    pytest.param(CLIF(), 1.0, id="clif"),
    pytest.param(ILIF(), 1.0, id="ilif"),
]


@pytest.mark.parametrize(("neuron", "current"), ONE_STEP_AT_THE_THRESHOLD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_potential_at_the_threshold_spikes(
    neuron: Any, current: float, dtype: torch.dtype
) -> None:
    x = torch.full((1, 1, 1), current, dtype=dtype)
    assert run(neuron, x)[0].item() == 1
    just_below = torch.nextafter(x, torch.zeros_like(x))
    assert run(neuron, just_below)[0].item() == 0


def test_glif_spikes_only_above_its_threshold() -> None:
    one, half = torch.ones(1, dtype=torch.float64), torch.full((1,), 0.5, dtype=torch.float64)
    neuron = GLIF(one, 0 * one, one, half, half, half, half, half.view(1, 1))
    at = half.view(1, 1, 1)
    spikes, state = run(neuron, at)
    assert state.u.item() == 0.5
    assert spikes.item() == 0
    assert run(neuron, torch.nextafter(at, one.view(1, 1, 1)))[0].item() == 1


def test_a_strict_rectangle_makes_any_neuron_spike_only_above() -> None:
    x = torch.ones(1, 1, 1, dtype=torch.float64)
    assert run(LIF(fire=Rectangle(strict=True)), x)[0].item() == 0


@pytest.mark.parametrize(
    "wrong", [{"tau": 1.0}, {"threshold": 0.0}, {"subtract": -1.0}, {"reset": "none"}]
)
def test_constants_that_make_no_neuron_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LIFConfig(**wrong)
