"""Spiking neurons: parameters, an explicit state, and a pure function of one timestep.

A new neuron is one file here and one line in `AnyNeuronConfig`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from spiketrain.neurons.base import Neuron, NeuronConfig, State
from spiketrain.neurons.clif import CLIF, CLIFConfig, CLIFState
from spiketrain.neurons.glif import GLIF, GLIFConfig, GLIFState
from spiketrain.neurons.ilif import ILIF, ILIFConfig, ILIFState
from spiketrain.neurons.integrator import Integrator, IntegratorConfig
from spiketrain.neurons.layer import NeuronLayer
from spiketrain.neurons.lif import LIF, LIFConfig, LIFState
from spiketrain.neurons.plif import PLIF, PLIFConfig

AnyNeuronConfig = Annotated[
    LIFConfig | PLIFConfig | CLIFConfig | ILIFConfig | GLIFConfig | IntegratorConfig,
    Field(discriminator="kind"),
]

__all__ = [
    "CLIF",
    "GLIF",
    "ILIF",
    "LIF",
    "PLIF",
    "AnyNeuronConfig",
    "CLIFConfig",
    "CLIFState",
    "GLIFConfig",
    "GLIFState",
    "ILIFConfig",
    "ILIFState",
    "Integrator",
    "IntegratorConfig",
    "LIFConfig",
    "LIFState",
    "Neuron",
    "NeuronConfig",
    "NeuronLayer",
    "PLIFConfig",
    "State",
]
