"""ILIF, the temporal inhibitory leaky integrate-and-fire neuron (Sun et al., IJCAI 2025).

    i[t] = current_decay (i[t-1] + x[t-1] s[t-1])             current inhibitory unit
    h[t] = (1 - 1/tau) v[t-1] + x[t] - max(0, i[t])           charge
    s[t] = 1 where h[t] >= threshold, else 0                  fire
    w[t] = h[t] - s[t] threshold                              soft reset
    m[t] = potential_decay (m[t-1] + s[t] w[t])               membrane-potential inhibitory unit
    v[t] = w[t] - s[t] sigmoid(m[t])

All start at 0. The equations and both decays, 0.03 and 1, are those of the authors' code.
Not to be confused with SpikingJelly's ILIFNode, which is the *integer* LIF (ECCV 2024), nor with the authors' own
ILIFSpike, which is a copy of CLIF's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from spiketrain.neurons.base import NeuronConfig
from spiketrain.surrogate import Surrogate, rectangle


class ILIFState(NamedTuple):
    v: Tensor
    m: Tensor
    # The inhibition of the step to come: x[t-1] s[t-1] and i[t-1] are needed only in this sum.
    i: Tensor


class ILIF(NamedTuple):
    """Parameters. `tau` in timesteps, more than 1; `fire` maps h - threshold to spikes."""

    tau: float = 2.0
    threshold: float = 1.0
    current_decay: float = 0.03
    potential_decay: float = 1.0
    fire: Surrogate = rectangle

    def initial_state(self, like: Tensor) -> ILIFState:
        return ILIFState(torch.zeros_like(like), torch.zeros_like(like), torch.zeros_like(like))

    def step(self, x: Tensor, state: ILIFState) -> tuple[Tensor, ILIFState]:
        h = (1 - 1 / self.tau) * state.v + x - state.i.clamp(min=0)
        s = self.fire(h - self.threshold)
        w = h - s * self.threshold
        m = self.potential_decay * (state.m + s * w)
        # The unit sees the current as it came in, before the inhibition was taken off.
        i = self.current_decay * (state.i + x * s)
        return s, ILIFState(w - s * torch.sigmoid(m), m, i)


class ILIFConfig(NeuronConfig):
    kind: Literal["ilif"] = "ilif"
    tau: float = Field(2.0, gt=1)
    threshold: float = Field(1.0, gt=0)
    current_decay: float = Field(0.03, ge=0)
    potential_decay: float = Field(1.0, ge=0)
    surrogate: Surrogate = rectangle

    def neuron(self, parameters: Mapping[str, Tensor]) -> ILIF:
        return ILIF(
            self.tau, self.threshold, self.current_decay, self.potential_decay, self.surrogate
        )
