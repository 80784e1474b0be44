"""Spiking neurons: parameters, an explicit state, and a pure function of one timestep.

A new neuron is one file here and one line in `AnyNeuronConfig`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from spiketrain.neurons.base import Neuron, NeuronConfig, State
from spiketrain.neurons.clif import CLIF, CLIFConfig, CLIFState
from spiketrain.neurons.feedback import FeedbackLIF, FeedbackLIFConfig
from spiketrain.neurons.glif import GLIF, GLIFConfig, GLIFState
from spiketrain.neurons.ilif import ILIF, ILIFConfig, ILIFState
from spiketrain.neurons.integrator import Integrator, IntegratorConfig
from spiketrain.neurons.layer import NeuronLayer
from spiketrain.neurons.lif import LIF, LIFConfig, LIFState
from spiketrain.neurons.plif import PLIF, PLIFConfig
from spiketrain.neurons.rate import Rate, RateConfig

AnyNeuronConfig = Annotated[
    LIFConfig
    | PLIFConfig
    | CLIFConfig
    | ILIFConfig
    | GLIFConfig
    | IntegratorConfig
    | FeedbackLIFConfig
    | RateConfig,
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
    "FeedbackLIF",
    "FeedbackLIFConfig",
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
    "Rate",
    "RateConfig",
    "State",
]
