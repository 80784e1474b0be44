"""GLIF, the gated leaky integrate-and-fire neuron, channel-wise (Yao et al., NeurIPS 2022).

With a, b, g the gates alpha, beta, gamma, each between 0 and 1:

    i[t] = x[t] (1 - b (1 - conduct[t]))                                        current
    u[t] = (1 - a (1 - tau)) u[t-1] (1 - g s[t-1])                              exponential decay, hard reset
           - (1 - a) leak + i[t] - (1 - g) subtract s[t-1]                      linear decay, soft reset
    s[t] = 1 where u[t] > threshold, else 0                                     fire, strictly above

u and s start at 0, and the reset is applied at the next step. All parameters are stored as logits, one a channel;
conduct has one value a timestep and channel, so the parameters are bound to the number of timesteps they were
trained with: beyond it conduct keeps its last value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from spiketrain.neurons.base import NeuronConfig, per_channel
from spiketrain.surrogate import Rectangle, Surrogate


class GLIFState(NamedTuple):
    u: Tensor
    s: Tensor
    t: Tensor  # [N], the timestep to come of each sample


class GLIF(NamedTuple):
    """Parameters after the sigmoid: tensors [C], `conduct` [T, C]; `fire` maps u - threshold to spikes."""

    alpha: Tensor
    beta: Tensor
    gamma: Tensor
    tau: Tensor
    threshold: Tensor
    leak: Tensor
    subtract: Tensor
    conduct: Tensor
    fire: Surrogate = Rectangle(strict=True)

    def initial_state(self, like: Tensor) -> GLIFState:
        steps = torch.zeros(like.shape[0], dtype=torch.long, device=like.device)
        return GLIFState(torch.zeros_like(like), torch.zeros_like(like), steps)

    def step(self, x: Tensor, state: GLIFState) -> tuple[Tensor, GLIFState]:
        alpha, beta, gamma, tau, threshold, leak, subtract = (per_channel(p, x) for p in self[:7])
        # Samples of one batch may be at different timesteps, so each takes its own row.
        rows = self.conduct[state.t.clamp(max=self.conduct.shape[0] - 1)]
        conduct = rows.view(x.shape[0], -1, *(1,) * (x.dim() - 2))
        current = x * (1 - beta * (1 - conduct))
        u = (1 - alpha * (1 - tau)) * state.u * (1 - gamma * state.s)
        u = u - (1 - alpha) * leak + current - (1 - gamma) * subtract * state.s
        s = self.fire(u - threshold)
        return s, GLIFState(u, s, state.t + 1)


class _HardGate(torch.autograd.Function):
    """1 where the gate's sigmoid is above 1/2, with the gradient passed straight through to the sigmoid."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor) -> Tensor:
        return (gate > 0.5).to(gate.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class GLIFConfig(NeuronConfig):
    """Initial values are those after the sigmoid; the defaults are the authors' for CIFAR.

    `gates` "soft" uses sigmoid(gate), "hard" rounds it to 0 or 1 (straight-through gradient); `static_gates` keeps
    the gates as they start. `random_gates` draws the gate logits from U(-0.1, 0.1), as the authors' commands do.
    """

    kind: Literal["glif"] = "glif"
    gates: Literal["soft", "hard"] = "soft"
    static_gates: bool = False
    random_gates: bool = False
    alpha: float = Field(0.55, gt=0, lt=1)
    beta: float = Field(0.65, gt=0, lt=1)
    gamma: float = Field(0.55, gt=0, lt=1)
    tau: float = Field(0.25, gt=0, lt=1)
    threshold: float = Field(0.5, gt=0, lt=1)
    leak: float = Field(0.0625, gt=0, lt=1)
    subtract: float = Field(0.5, gt=0, lt=1)
    conduct: float = Field(0.5, gt=0, lt=1)
    surrogate: Surrogate = Rectangle(strict=True)

    def initial_parameters(self, channels: int, timesteps: int) -> dict[str, Tensor]:
        names = ("alpha", "beta", "gamma", "tau", "threshold", "leak", "subtract")
        parameters = {name: torch.full((channels,), _logit(getattr(self, name))) for name in names}
        if self.random_gates:
            for name in names[:3]:
                parameters[name].uniform_(-0.1, 0.1)
        parameters["conduct"] = torch.full((timesteps, channels), _logit(self.conduct))
        return parameters

    def neuron(self, parameters: Mapping[str, Tensor]) -> GLIF:
        values = {name: torch.sigmoid(logit) for name, logit in parameters.items()}
        for name in ("alpha", "beta", "gamma"):
            gate = values[name].detach() if self.static_gates else values[name]
            values[name] = _HardGate.apply(gate) if self.gates == "hard" else gate  # type: ignore[no-untyped-call]
        return GLIF(**values, fire=self.surrogate)


def _logit(p: float) -> float:
    return math.log(p / (1 - p))
