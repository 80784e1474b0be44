"""The weighted average rate: a readout that averages what it gets over time, and remembers the last of it.

    total[t]  = decay total[t-1] + x[t]
    weight[t] = decay weight[t-1] + 1
    a[t]      = total[t] / weight[t]

With decay 1 this is the mean over timesteps; below 1 later timesteps count more, as the potential of a leaky neuron
does. Source: the rate of IF and LIF networks in Xiao et al., "Training feedback spiking neural networks by implicit
differentiation on the equilibrium state", NeurIPS 2021. It never spikes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from spiketrain.neurons.base import NeuronConfig


class RateState(NamedTuple):
    total: Tensor  # [N, ...]
    weight: Tensor  # [N]
    last: Tensor  # [N, ...], the last input


class Rate(NamedTuple):
    decay: float = 1.0

    def initial_state(self, like: Tensor) -> RateState:
        # Tensors of their own: a saved state may not share memory.
        return RateState(
            torch.zeros_like(like), like.new_zeros(like.shape[0]), torch.zeros_like(like)
        )

    def step(self, x: Tensor, state: RateState) -> tuple[Tensor, RateState]:
        total = self.decay * state.total + x
        weight = self.decay * state.weight + 1
        return total / weight.view(-1, *(1,) * (x.dim() - 1)), RateState(total, weight, x)


class RateConfig(NeuronConfig):
    kind: Literal["rate"] = "rate"
    decay: float = Field(1.0, gt=0, le=1)

    @property
    def spiking(self) -> bool:
        return False

    def initial_parameters(self, channels: int, timesteps: int) -> dict[str, Tensor]:
        return {}

    def neuron(self, parameters: Mapping[str, Tensor]) -> Rate:
        return Rate(self.decay)
