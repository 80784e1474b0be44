"""PLIF, LIF with a leak that is learned, one for each layer (Fang et al., ICCV 2021).

    h[t] = v[t-1] + (x[t] - (v[t-1] - rest)) sigmoid(w)      charge, with decay_input
    h[t] = v[t-1] - (v[t-1] - rest) sigmoid(w) + x[t]        charge, without
    fire and reset as LIF's

1/tau = sigmoid(w). The defaults are the paper's: decayed input, hard reset to 0, arctangent surrogate. The CLIF and
ILIF repositories' PLIF is decay_input=False, reset="soft", surrogate=rectangle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from spiketrain.neurons.base import NeuronConfig, Value, full_like, per_channel
from spiketrain.neurons.lif import LIFState, Reset, charge, fire_and_reset
from spiketrain.surrogate import Surrogate, arctangent


class PLIF(NamedTuple):
    """Parameters. `w` a scalar tensor; the others as LIF's."""

    w: Tensor
    threshold: Value = 1.0
    reset: Reset = "hard"
    subtract: Value | None = None
    reset_value: Value = 0.0
    rest: Value = 0.0
    decay_input: bool = True
    detach_reset: bool = True
    fire: Surrogate = arctangent

    def initial_state(self, like: Tensor) -> LIFState:
        return LIFState(full_like(like, self.rest))

    def step(self, x: Tensor, state: LIFState) -> tuple[Tensor, LIFState]:
        leak = torch.sigmoid(self.w)
        h = charge(x, state.v, leak, per_channel(self.rest, x), self.decay_input)
        s, v = fire_and_reset(self, h)
        return s, LIFState(v)


class PLIFConfig(NeuronConfig):
    kind: Literal["plif"] = "plif"
    initial_tau: float = Field(2.0, gt=1)
    threshold: float = Field(1.0, gt=0)
    reset: Reset = "hard"
    reset_value: float = 0.0
    rest: float = 0.0
    decay_input: bool = True
    detach_reset: bool = True
    surrogate: Surrogate = arctangent

    def initial_parameters(self, channels: int, timesteps: int) -> dict[str, Tensor]:
        return {"w": torch.tensor(-math.log(self.initial_tau - 1))}

    def neuron(self, parameters: Mapping[str, Tensor]) -> PLIF:
        return PLIF(
            w=parameters["w"],
            threshold=self.threshold,
            reset=self.reset,
            reset_value=self.reset_value,
            rest=self.rest,
            decay_input=self.decay_input,
            detach_reset=self.detach_reset,
            fire=self.surrogate,
        )
