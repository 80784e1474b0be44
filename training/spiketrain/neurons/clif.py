"""CLIF, the complementary leaky integrate-and-fire neuron (Huang et al., ICML 2024).

    h[t] = (1 - 1/tau) v[t-1] + x[t]                  charge
    s[t] = 1 where h[t] >= threshold, else 0          fire
    m[t] = m[t-1] sigmoid(h[t] / tau) + s[t]          complementary potential
    v[t] = h[t] - s[t] (threshold + sigmoid(m[t]))    soft reset, by 1.73 to 2 thresholds

v and m start at 0. Potentials and currents are in units of the threshold; one step is one unit of time.
Not to be confused with current-based LIF, which older SpikingJelly releases call CLIF, nor with the CLIF
repository's CLIFSpike, which overwrites m and is a different neuron.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from spiketrain.neurons.base import NeuronConfig
from spiketrain.surrogate import Surrogate, rectangle


class CLIFState(NamedTuple):
    v: Tensor
    m: Tensor


class CLIF(NamedTuple):
    """Parameters. `tau` in timesteps, more than 1; `fire` maps h - threshold to spikes."""

    tau: float = 2.0
    threshold: float = 1.0
    fire: Surrogate = rectangle

    def initial_state(self, like: Tensor) -> CLIFState:
        return CLIFState(torch.zeros_like(like), torch.zeros_like(like))

    def step(self, x: Tensor, state: CLIFState) -> tuple[Tensor, CLIFState]:
        h = (1 - 1 / self.tau) * state.v + x
        s = self.fire(h - self.threshold)
        # The complementary potential leaks with the potential before the reset, and grows with the spike.
        m = state.m * torch.sigmoid(h / self.tau) + s
        return s, CLIFState(h - s * (self.threshold + torch.sigmoid(m)), m)


class CLIFConfig(NeuronConfig):
    kind: Literal["clif"] = "clif"
    tau: float = Field(2.0, gt=1)
    threshold: float = Field(1.0, gt=0)
    surrogate: Surrogate = rectangle

    def neuron(self, parameters: Mapping[str, Tensor]) -> CLIF:
        return CLIF(self.tau, self.threshold, self.surrogate)
