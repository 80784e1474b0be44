"""The neurons of one layer as a module: their learnable parameters, and how to run T steps."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from spiketrain.kernels import run_steps
from spiketrain.neurons.base import Neuron, NeuronConfig


class NeuronLayer(nn.Module):
    """One layer of neurons with `channels` channels. Holds parameters and no state.

    `timesteps` is the number trained with; only neurons whose parameters depend on time (GLIF) use it.
    """

    def __init__(self, config: NeuronConfig, channels: int, timesteps: int) -> None:
        super().__init__()
        self.config = config
        self.channels = channels
        for name, value in config.initial_parameters(channels, timesteps).items():
            self.register_parameter(name, nn.Parameter(value))

    def neuron(self) -> Neuron:
        """The neuron with this layer's present parameters."""
        return self.config.neuron(dict(self.named_parameters(recurse=False)))

    def initial_state(self, like: Tensor) -> Any:
        return self.neuron().initial_state(like)

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One timestep: currents [N, C, ...] and state in, spikes and the new state out."""
        return self.neuron().step(x, state)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """All timesteps: currents [T, N, C, ...] in, spikes of the same shape and the last state out.

        Spikes have the dtype of the currents; the state is float32 for those of 16 bits, too.
        """
        return run_steps(self.neuron(), x, state)

    def extra_repr(self) -> str:
        return f"{self.config!r}, channels={self.channels}"
