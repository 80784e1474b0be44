"""The sequences that the authors' own code gives, in float64, for eight input currents and tau 2."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from spiketrain.neurons import (
    CLIF,
    ILIF,
    LIF,
    PLIF,
    CLIFConfig,
    GLIFConfig,
    ILIFConfig,
    LIFConfig,
    NeuronLayer,
    PLIFConfig,
)

CURRENTS = [0.8, 0.4, 0.9, 0.4, 1.0, 1.6, 1.2, 1.9]


def trace(neuron: Any, currents: list[float] = CURRENTS) -> tuple[list[float], list[Any]]:
    """Spikes at each timestep, and the states from before the first to after the last."""
    states = [neuron.initial_state(torch.zeros(1, 1, dtype=torch.float64))]
    spikes = []
    for current in currents:
        s, state = neuron.step(torch.tensor([[current]], dtype=torch.float64), states[-1])
        spikes.append(s.item())
        states.append(state)
    return spikes, states


def values(states: list[Any], name: str) -> Tensor:
    return torch.stack([getattr(state, name) for state in states]).flatten()


def check(got: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


def test_lif_with_soft_reset() -> None:
    spikes, states = trace(LIF())
    assert spikes == [0, 0, 1, 0, 1, 1, 1, 1]
    check(values(states[1:], "v"), [0.8, 0.8, 0.3, 0.55, 0.275, 0.7375, 0.56875, 1.184375])


def test_lif_with_hard_reset_to_zero() -> None:
    spikes, states = trace(LIF(reset="hard"))
    assert spikes == [0, 0, 1, 0, 1, 1, 1, 1]
    check(values(states[1:], "v"), [0.8, 0.8, 0, 0.4, 0, 0, 0, 0])


def test_lif_with_hard_reset_below_zero_and_rest_moved_with_it() -> None:
    spikes, states = trace(LIF(reset="hard", reset_value=-0.06, rest=-0.06))
    assert states[0].v.item() == -0.06
    assert spikes == [0, 0, 1, 0, 1, 1, 1, 1]
    check(values(states[1:], "v"), [0.74, 0.74, -0.06, 0.34, -0.06, -0.06, -0.06, -0.06])


def test_plif_of_the_paper() -> None:
    spikes, states = trace(PLIF(torch.tensor(0.0, dtype=torch.float64)))
    assert spikes == [0, 0, 0, 0, 0, 1, 0, 1]
    check(values(states[1:], "v"), [0.4, 0.4, 0.65, 0.525, 0.7625, 0, 0.6, 0])


def test_clif() -> None:
    spikes, states = trace(CLIF())
    assert spikes == [0, 0, 1, 0, 1, 1, 0, 1]
    check(
        values(states[1:], "v"),
        [0.8, 0.8, -0.431059, 0.184471, -0.698805, -0.615534, 0.892233, 0.479724],
    )
    check(values(states[1:], "m"), [0, 0, 1, 0.523043, 1.331209, 1.867179, 1.138448, 1.86943])


def test_ilif() -> None:
    spikes, states = trace(ILIF())
    assert spikes == [0, 0, 1, 0, 1, 1, 0, 1]
    check(
        values(states[1:], "v"),
        [0.8, 0.8, -0.274443, 0.235779, -0.485705, -0.350791, 0.975704, 0.492544],
    )
    check(values(states[1:], "m"), [0, 0, 0.3, 0.3, 0.417079, 0.744203, 0.744203, 2.130588])
    # The state holds the inhibition of the step to come, so the one before each step is the authors' I of that step.
    check(values(states[:-1], "i"), [0, 0, 0, 0.027, 0.00081, 0.030024, 0.048901, 0.001467])


def test_glif_with_the_authors_initial_values() -> None:
    layer = NeuronLayer(GLIFConfig(), channels=1, timesteps=8).double()
    with torch.no_grad():
        spikes, states = trace(layer)
    assert spikes == [1, 0, 1, 0, 1, 1, 1, 1]
    check(
        values(states[1:], "u"),
        [0.511875, 0.152202, 0.668794, 0.193687, 0.760666, 1.027976, 0.828646, 1.248448],
    )


@pytest.mark.parametrize(
    ("config", "neuron"),
    [(LIFConfig(), LIF()), (CLIFConfig(), CLIF()), (ILIFConfig(), ILIF())],
    ids=["lif", "clif", "ilif"],
)
def test_a_config_without_arguments_is_the_neuron_without_arguments(
    config: Any, neuron: Any
) -> None:
    assert config.neuron({}) == neuron


def test_the_default_of_plif_is_the_papers() -> None:
    layer = NeuronLayer(PLIFConfig(), channels=1, timesteps=8).double()
    with torch.no_grad():
        assert trace(layer)[0] == [0, 0, 0, 0, 0, 1, 0, 1]
