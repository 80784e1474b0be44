"""No library has the temporal inhibitory ILIF: an independent loop, straight from the authors' five lines."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from spiketrain.neurons import ILIFConfig, NeuronLayer

Array = NDArray[np.float64]


def authors(x: Array, tau: float) -> dict[str, Array]:
    """Memories as the authors keep them: the previous current and spike apart, the inhibition of this step."""
    v, memory, inhibition, previous_x, previous_s = (np.zeros(x.shape[1:]) for _ in range(5))
    spikes = np.empty_like(x)
    for t, current in enumerate(x):
        inhibition = 0.03 * (inhibition + previous_x * previous_s)
        h = (1.0 - 1.0 / tau) * v + current - np.maximum(inhibition, 0)
        s = np.where(h >= 1.0, 1.0, 0.0)
        v = h - s * 1.0
        memory = 1.0 * (memory + s * v)
        v = v - s / (1 + np.exp(-memory))
        previous_x, previous_s = current, s
        spikes[t] = s
    return {
        "spikes": spikes,
        "v": v,
        "m": memory,
        "i": 0.03 * (inhibition + previous_x * previous_s),
    }


@pytest.mark.parametrize("tau", [2.0, 1.4, 6.0])
def test_ilif_over_thousands_of_neurons(tau: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-0.5, 1.5, (4, 1000)) + rng.normal(0, 1, (200, 4, 1000))
    expected = authors(x, tau)
    layer = NeuronLayer(ILIFConfig(tau=tau), channels=1000, timesteps=200)
    spikes, state = layer(torch.from_numpy(x))
    assert np.array_equal(spikes.numpy(), expected["spikes"])
    assert 0.05 < spikes.mean() < 0.95
    for name in ("v", "m", "i"):
        np.testing.assert_allclose(
            getattr(state, name).numpy(), expected[name], atol=1e-9, rtol=1e-9
        )


def test_both_units_inhibit() -> None:
    x = torch.from_numpy(np.random.default_rng(1).uniform(0, 2, (100, 1, 500)))
    rates = {}
    for decay in (0.0, 0.03, 0.5):
        layer = NeuronLayer(ILIFConfig(current_decay=decay), channels=500, timesteps=100)
        rates[decay] = layer(x)[0].mean().item()
    assert rates[0.0] > rates[0.03] > rates[0.5]


def test_a_spike_subtracts_between_one_and_a_half_and_two_thresholds() -> None:
    neuron = ILIFConfig().neuron({})
    x = torch.from_numpy(np.random.default_rng(2).uniform(0, 3, (64, 1, 1000)))
    state = neuron.initial_state(x[0])
    for current in x:
        h = state.v / 2 + current - state.i
        spikes, state = neuron.step(current, state)
        subtracted = (h - state.v)[spikes.bool()]
        assert ((subtracted >= 1.5) & (subtracted <= 2)).all()
