"""The leaky integrators of NIR, with every constant a tensor: IF, LIF, CubaLIF, Threshold, and I, LI, CubaLI, which never fire.

    c[t] = x[t] + W s[t-1] + b                                           with feedback
    i[t] = i[t-1] - synapse_leak i[t-1] + synapse_gain c[t]              with a synapse; without, i[t] = c[t]
    h[t] = v[t-1] + leak (rest - v[t-1]) + gain i[t]                     charge
    s[t] = 1 where h[t] >= threshold (> where the surrogate is strict)   fire
    v[t] = (1 - s[t]) h[t] + s[t] reset_value                            hard reset
    v[t] = h[t] - s[t] threshold                                         soft reset

This is forward Euler of NIR's differential equations with leak = dt/tau, gain = r dt/tau (r dt for IF), synapse_leak =
dt/tau_syn and synapse_gain = w_in dt/tau_syn, the current updated before the potential, as SpikingJelly and snnTorch
do. v starts at rest, i and s at 0. A layer that does not fire gives its potential instead of spikes.

`LIF` says the same of one leak for a layer and is faster; this is for what it cannot say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from spiketrain.neurons.base import NeuronConfig, full_like, per_channel
from spiketrain.neurons.lif import Reset
from spiketrain.surrogate import Rectangle, Surrogate


class IntegratorState(NamedTuple):
    v: Tensor


class SynapseState(NamedTuple):
    v: Tensor
    i: Tensor


class FeedbackState(NamedTuple):
    v: Tensor
    s: Tensor


class SynapseFeedbackState(NamedTuple):
    v: Tensor
    i: Tensor
    s: Tensor


class Integrator(NamedTuple):
    """Parameters: each a scalar tensor, one value a channel [C], or one a neuron [C, ...].

    `feedback_weight` [C, C] is for layers of neurons without further axes; None: no feedback.
    """

    leak: Tensor
    gain: Tensor
    rest: Tensor
    threshold: Tensor | None = None
    reset_value: Tensor | None = None
    synapse_leak: Tensor | None = None
    synapse_gain: Tensor | None = None
    feedback_weight: Tensor | None = None
    feedback_bias: Tensor | None = None
    reset: Reset = "hard"
    fire: Surrogate = Rectangle(strict=True)

    def initial_state(self, like: Tensor) -> Any:
        v = full_like(like, per_channel(self.rest, like))
        i = None if self.synapse_leak is None else torch.zeros_like(like)
        s = None if self.feedback_weight is None else torch.zeros_like(like)
        return _state(v, i, s)

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        leak, gain, rest = (per_channel(value, x) for value in (self.leak, self.gain, self.rest))
        if self.feedback_weight is not None:
            x = x + torch.nn.functional.linear(state.s, self.feedback_weight, self.feedback_bias)
        i = None
        if self.synapse_leak is not None and self.synapse_gain is not None:
            i = state.i - per_channel(self.synapse_leak, x) * state.i
            i = i + per_channel(self.synapse_gain, x) * x
        h = state.v + leak * (rest - state.v) + gain * (x if i is None else i)
        if self.threshold is None:
            return h, _state(h, i, None)
        threshold = per_channel(self.threshold, x)
        s = self.fire(h - threshold)
        if self.reset == "soft" or self.reset_value is None:
            v = h - s * threshold
        else:
            v = h * (1 - s) + s * per_channel(self.reset_value, x)
        return s, _state(v, i, None if self.feedback_weight is None else s)


def _state(v: Tensor, i: Tensor | None, s: Tensor | None) -> Any:
    if i is None:
        return IntegratorState(v) if s is None else FeedbackState(v, s)
    return SynapseState(v, i) if s is None else SynapseFeedbackState(v, i, s)


class IntegratorConfig(NeuronConfig):
    """All constants are tensors of the layer.

    `shape` is theirs: () one value for the layer, (C,) one a channel, or that of one sample, one a neuron.
    """

    kind: Literal["integrator"] = "integrator"
    shape: tuple[int, ...] = Field((), max_length=4)
    fires: bool = True
    reset: Reset = "hard"
    synapse: bool = False
    feedback: Literal["none", "linear", "affine"] = "none"
    surrogate: Surrogate = Rectangle(strict=True)

    @property
    def spiking(self) -> bool:
        return self.fires

    def parameter_names(self) -> tuple[str, ...]:
        """The constants that this layer has, without those of the feedback."""
        names = ["leak", "gain", "rest"]
        if self.fires:
            names += ["threshold", *(["reset_value"] if self.reset == "hard" else [])]
        if self.synapse:
            names += ["synapse_leak", "synapse_gain"]
        return tuple(names)

    def initial_parameters(self, channels: int, timesteps: int) -> dict[str, Tensor]:
        if self.feedback != "none" and not self.fires:
            raise ValueError("feedback: a layer that does not fire has none")
        start = {
            "leak": 0.5,
            "gain": 1.0,
            "threshold": 1.0,
            "synapse_leak": 0.5,
            "synapse_gain": 1.0,
        }
        parameters = {
            name: torch.full(self.shape, start.get(name, 0.0)) for name in self.parameter_names()
        }
        if self.feedback != "none":
            parameters["feedback_weight"] = torch.zeros(channels, channels)
        if self.feedback == "affine":
            parameters["feedback_bias"] = torch.zeros(channels)
        return parameters

    def neuron(self, parameters: Mapping[str, Tensor]) -> Integrator:
        return Integrator(**parameters, reset=self.reset, fire=self.surrogate)
