"""What every neuron is: parameters, a state, and a pure function of one timestep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

# A number, or one value per channel as a tensor [C].
Value = float | Tensor

# A named tuple of tensors, each with the batch as its first axis, so that samples can be moved in and out of a batch.
State = tuple[Tensor, ...]


class Neuron(Protocol):
    def initial_state(self, like: Tensor) -> Any:
        """The state before the first step, for currents shaped like one timestep [N, C, ...]."""

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One timestep: currents [N, C, ...] and state in, spikes of the same shape and the new state out."""


class NeuronConfig(BaseModel):
    """The constants of a neuron as a checkpoint stores them. Subclasses set `kind` and build the neuron."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def spiking(self) -> bool:
        """Whether `step` gives spikes. Layers that give their potentials instead are in no count of spikes."""
        return True

    def initial_parameters(self, channels: int, timesteps: int) -> dict[str, Tensor]:
        """Tensors that belong to the layer rather than to these constants: learnable, or one value per channel."""
        return {}

    def neuron(self, parameters: Mapping[str, Tensor]) -> Neuron:
        raise NotImplementedError(f"{type(self).__name__} must build its neuron")


def per_channel(value: Value, like: Tensor) -> Value:
    """A tensor [C] shaped to broadcast against [N, C, ...]; numbers and scalar tensors as they are."""
    if isinstance(value, Tensor) and value.dim() == 1:
        return value.view(1, -1, *(1,) * (like.dim() - 2))
    return value


def full_like(like: Tensor, value: Value) -> Tensor:
    """A new tensor shaped like `like`, filled with a number or with one value per channel."""
    if isinstance(value, Tensor):
        return torch.zeros_like(like) + per_channel(value, like)
    return torch.full_like(like, value)
