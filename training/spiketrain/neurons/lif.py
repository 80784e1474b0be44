"""LIF, the leaky integrate-and-fire neuron.

    h[t] = v[t-1] - (v[t-1] - rest) / tau + x[t]             charge
           (with decay_input the current is divided by tau too)
    s[t] = 1 where h[t] >= threshold, else 0                 fire
    v[t] = h[t] - s[t] subtract                              soft reset
    v[t] = (1 - s[t]) h[t] + s[t] reset_value                hard reset

v starts at rest. `rest`, where the leak leads, and `reset_value`, where a spike leads, are two parameters;
SpikingJelly's v_reset is both at once (set both to the same value for its behaviour). `subtract` is the threshold
unless it is given: LIF with threshold 1 and subtract 1.8 is very nearly CLIF.
Potentials and currents are in units of the threshold; one step is one unit of time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from spiketrain.neurons.base import NeuronConfig, Value, full_like, per_channel
from spiketrain.surrogate import Surrogate, rectangle

if TYPE_CHECKING:
    from spiketrain.neurons.plif import PLIF

Reset = Literal["soft", "hard"]


class LIFState(NamedTuple):
    v: Tensor


class LIF(NamedTuple):
    """Parameters. `tau` in timesteps, more than 1; `fire` maps h - threshold to spikes.

    `detach_reset` keeps the gradient from flowing through the spikes of the reset.
    """

    tau: Value = 2.0
    threshold: Value = 1.0
    reset: Reset = "soft"
    subtract: Value | None = None
    reset_value: Value = 0.0
    rest: Value = 0.0
    decay_input: bool = False
    detach_reset: bool = False
    fire: Surrogate = rectangle

    def initial_state(self, like: Tensor) -> LIFState:
        return LIFState(full_like(like, self.rest))

    def step(self, x: Tensor, state: LIFState) -> tuple[Tensor, LIFState]:
        leak = 1 / per_channel(self.tau, x)
        h = charge(x, state.v, leak, per_channel(self.rest, x), self.decay_input)
        s, v = fire_and_reset(self, h)
        return s, LIFState(v)


def charge(x: Tensor, v: Tensor, leak: Value, rest: Value, decay_input: bool) -> Tensor:
    """The potential before the reset; `leak` is 1/tau."""
    if isinstance(rest, float) and rest == 0.0:
        return v + (x - v) * leak if decay_input else v * (1 - leak) + x
    return v + (x - (v - rest)) * leak if decay_input else v - (v - rest) * leak + x


def fire_and_reset(neuron: LIF | PLIF, h: Tensor) -> tuple[Tensor, Tensor]:
    """Spikes of the potentials `h`, and the potentials after soft or hard reset."""
    threshold = per_channel(neuron.threshold, h)
    s = neuron.fire(h - threshold)
    r = s.detach() if neuron.detach_reset else s
    if neuron.reset == "soft":
        return s, h - r * (
            threshold if neuron.subtract is None else per_channel(neuron.subtract, h)
        )
    return s, h * (1 - r) + r * per_channel(neuron.reset_value, h)


PerChannel = Literal["threshold", "subtract", "reset_value"]


class LIFConfig(NeuronConfig):
    kind: Literal["lif"] = "lif"
    tau: float = Field(2.0, gt=1)
    threshold: float = Field(1.0, gt=0)
    reset: Reset = "soft"
    subtract: float | None = Field(None, gt=0)
    reset_value: float = 0.0
    rest: float = 0.0
    decay_input: bool = False
    detach_reset: bool = False
    surrogate: Surrogate = rectangle
    # Those named here are tensors of the layer, one value a channel; the number above is where they start.
    per_channel: tuple[PerChannel, ...] = ()

    def initial_parameters(self, channels: int, timesteps: int) -> dict[str, Tensor]:
        start = {
            "threshold": self.threshold,
            "subtract": self.threshold if self.subtract is None else self.subtract,
            "reset_value": self.reset_value,
        }
        return {name: torch.full((channels,), start[name]) for name in self.per_channel}

    def neuron(self, parameters: Mapping[str, Tensor]) -> LIF:
        constants: dict[str, Value | None] = {
            "threshold": self.threshold,
            "subtract": self.subtract,
            "reset_value": self.reset_value,
        }
        return LIF(
            tau=self.tau,
            reset=self.reset,
            rest=self.rest,
            decay_input=self.decay_input,
            detach_reset=self.detach_reset,
            fire=self.surrogate,
            **(constants | dict(parameters)),  # type: ignore[arg-type]
        )
