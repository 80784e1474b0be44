"""The integrate-and-fire neuron of feedback networks (Xiao et al., NeurIPS 2021), without leak (IF) or with (LIF).

    h[t] = v[t-1] + x[t]                     charge
    s[t] = 1 where h[t] >= threshold         fire
    v[t] = keep (h[t] - threshold s[t])      soft reset, then leak

v starts at 0. keep is 1 for IF and lambda for LIF; the leak comes after the reset. Its spikes are not differentiable:
networks of it are trained by implicit differentiation (`networks.feedback`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from spiketrain.neurons.base import NeuronConfig
from spiketrain.neurons.lif import LIFState


class FeedbackLIF(NamedTuple):
    keep: float = 1.0
    threshold: float = 2.0

    def initial_state(self, like: Tensor) -> LIFState:
        return LIFState(torch.zeros_like(like))

    def step(self, x: Tensor, state: LIFState) -> tuple[Tensor, LIFState]:
        h = state.v + x
        s = (h >= self.threshold).to(h.dtype)
        return s, LIFState(self.keep * (h - self.threshold * s))


class FeedbackLIFConfig(NeuronConfig):
    kind: Literal["feedback-lif"] = "feedback-lif"
    keep: float = Field(1.0, gt=0, le=1)
    threshold: float = Field(2.0, gt=0)

    def initial_parameters(self, channels: int, timesteps: int) -> dict[str, Tensor]:
        return {}

    def neuron(self, parameters: Mapping[str, Tensor]) -> FeedbackLIF:
        return FeedbackLIF(self.keep, self.threshold)
