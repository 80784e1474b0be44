"""Reset values without a search: what the parent's own resets did, on calibration data.

The best single number for a soft reset to subtract is the mean of what the parent subtracted, E[h - v | spike], which
for CLIF and ILIF is E[threshold + sigma(m) | spike]; for a hard reset with rest 0 it is the mean of where the parent
was after its spikes, E[v | spike]. Both minimise the squared error of the potential after a spike. ILIF's inhibition
of the next current is counted as a lower potential after the spike, which is what it comes to at the next charge.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spiketrain.convert.lif_form import ConversionError
from spiketrain.networks import Network, NetworkState
from spiketrain.neurons import GLIF, ILIF, NeuronLayer
from spiketrain.neurons.base import per_channel
from spiketrain.neurons.lif import Reset
from spiketrain.surrogate import Surrogate


@dataclass(frozen=True)
class ResetMoments:
    """Sums over the spikes of one layer, by channel [C], float64: their number, h - v and v after each."""

    spikes: Tensor
    subtracted: Tensor
    after: Tensor

    def __add__(self, other: ResetMoments) -> ResetMoments:
        return ResetMoments(
            self.spikes + other.spikes, self.subtracted + other.subtracted, self.after + other.after
        )


@torch.no_grad()
def reset_moments(
    network: Network, batches: Iterable[Tensor], timesteps: int | None = None
) -> dict[str, ResetMoments]:
    """What spikes did to the potentials of each layer, over inputs [N, ...] or [T, N, ...]. No labels are needed.

    The network must be in evaluation mode.
    """
    moments: dict[str, ResetMoments] = {}
    for x in batches:
        constant = x.dim() == len(network.input_shape) + 1
        frames = (
            [network.encode(x)] * (timesteps or network.timesteps)
            if constant
            else map(network.encode, x)
        )
        state = network.initial_state(x.shape[0] if constant else x.shape[1])
        for encoded in frames:
            fire = _Recording(network, state)
            network.body(encoded, fire)
            state = fire.state
            for name, new in fire.moments.items():
                moments[name] = moments[name] + new if name in moments else new
    return moments


def closed_form(moments: dict[str, ResetMoments], reset: Reset) -> dict[str, float]:
    """One reset value for each layer. A layer without a spike takes the mean over the spikes of all others.

    Raises ConversionError when there were no spikes at all.
    """
    sums = {
        name: ((m.subtracted if reset == "soft" else m.after).sum().item(), m.spikes.sum().item())
        for name, m in moments.items()
    }
    total, spikes = (
        (sum(column) for column in zip(*sums.values(), strict=True)) if sums else (0.0, 0.0)
    )
    if spikes == 0:
        raise ConversionError(
            "no neuron fired on the calibration data: there is nothing to take values from"
        )
    return {name: (s / n if n else total / spikes) for name, (s, n) in sums.items()}


class _Recording:
    """One timestep, with the moments of its resets."""

    timesteps = 1

    def __init__(self, network: Network, state: NetworkState) -> None:
        self.network = network
        self.before = state
        self.state: NetworkState = {}
        self.moments: dict[str, ResetMoments] = {}

    def __call__(self, layer: NeuronLayer, current: Tensor) -> Tensor:
        name = self.network.name_of(layer)
        # Every neuron asks its `fire` about h - threshold, so that listening there gives h whatever its charge is.
        neuron: Any = layer.neuron()
        heard = _Heard(neuron.fire)
        spikes: Tensor
        spikes, state = neuron._replace(fire=heard).step(current, self.before[name])
        h = heard.u + per_channel(neuron.threshold, heard.u)
        after = _after_reset(neuron, h, spikes) if isinstance(neuron, GLIF) else state.v
        if isinstance(neuron, ILIF):
            after = after - state.i.clamp(min=0) / (1 - 1 / neuron.tau)
        self.moments[name] = ResetMoments(
            _by_channel(spikes), _by_channel(spikes * (h - after)), _by_channel(spikes * after)
        )
        self.state[name] = state
        return spikes


class _Heard:
    def __init__(self, fire: Surrogate) -> None:
        self.fire = fire
        self.u = torch.empty(0)

    def __call__(self, u: Tensor) -> Tensor:
        self.u = u
        return self.fire(u)


def _after_reset(neuron: GLIF, u: Tensor, spikes: Tensor) -> Tensor:
    """GLIF resets at its next step, after the decay; this is the same reset before the decay, as a LIF does it."""
    alpha, gamma, tau, subtract = (
        per_channel(p, u) for p in (neuron.alpha, neuron.gamma, neuron.tau, neuron.subtract)
    )
    decay = 1 - alpha * (1 - tau)
    return u * (1 - gamma * spikes) - (1 - gamma) * subtract * spikes / decay


def _by_channel(values: Tensor) -> Tensor:
    return values.double().sum([axis for axis in range(values.dim()) if axis != 1])
