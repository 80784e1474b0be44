"""The LIF that charges and fires as another neuron does. Its reset is chosen elsewhere.

CLIF    the same charge; what is lost is the part sigma(m) of its reset
ILIF    the same charge without the inhibition, at most 0.03 / 0.97 of the current, whose mean after a spike the
        closed form puts into the reset; sigma(m) as CLIF's
PLIF    exactly, with tau = 1 + exp(-w)
GLIF    only where its gates are at their ends: alpha 1 (no linear leak), beta 0 (current as it comes), gamma
        0 or 1 (one kind of reset), and one tau for all channels of a layer
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from spiketrain.neurons import (
    GLIF,
    CLIFConfig,
    GLIFConfig,
    ILIFConfig,
    LIFConfig,
    NeuronLayer,
    PLIFConfig,
)


class ConversionError(ValueError):
    """The model cannot be converted as asked. The message names the layer and what stands in the way."""


class LIFForm(NamedTuple):
    """Constants, and the tensors of the layer that go with them (thresholds by channel)."""

    config: LIFConfig
    tensors: dict[str, Tensor]


def lif_form(name: str, layer: NeuronLayer) -> LIFForm:
    """The LIF for the layer called `name`. Raises ConversionError where there is none."""
    config = layer.config
    match config:
        case LIFConfig():
            kept = "threshold" in config.per_channel
            tensors = {"threshold": layer.get_parameter("threshold").detach()} if kept else {}
            return LIFForm(config, tensors)
        case PLIFConfig():
            return LIFForm(
                LIFConfig(
                    tau=1 + math.exp(-layer.get_parameter("w").item()),
                    threshold=config.threshold,
                    rest=config.rest,
                    decay_input=config.decay_input,
                    detach_reset=config.detach_reset,
                    surrogate=config.surrogate,
                ),
                {},
            )
        case CLIFConfig() | ILIFConfig():
            return LIFForm(
                LIFConfig(tau=config.tau, threshold=config.threshold, surrogate=config.surrogate),
                {},
            )
        case GLIFConfig():
            return _from_glif(name, config, layer)
        case _:
            raise ConversionError(f"{name}: no LIF is known for a {type(config).__name__}")


@torch.no_grad()
def _from_glif(name: str, config: GLIFConfig, layer: NeuronLayer) -> LIFForm:
    neuron = layer.neuron()
    if not isinstance(neuron, GLIF):
        raise TypeError(f"{name}: a GLIFConfig that builds a {type(neuron).__name__}")
    if obstacles := list(_obstacles(neuron)):
        raise ConversionError(f"{name}: this GLIF is no LIF: {'; '.join(obstacles)}")
    threshold = neuron.threshold
    lif = LIFConfig(
        tau=1 / (1 - neuron.tau[0].item()),
        threshold=threshold.mean().item(),
        surrogate=config.surrogate,
        per_channel=("threshold",),
    )
    return LIFForm(lif, {"threshold": threshold})


def _obstacles(neuron: GLIF) -> list[str]:
    found = []
    if not bool((neuron.alpha == 1).all()):
        found.append(
            f"gate alpha is {_span(neuron.alpha)} and a LIF needs 1 (below, a linear leak is mixed in)"
        )
    if not bool((neuron.beta == 0).all()):
        found.append(
            f"gate beta is {_span(neuron.beta)} and a LIF needs 0 (above, the current is scaled by timestep)"
        )
    if not bool(((neuron.gamma == 0) | (neuron.gamma == 1)).all()):
        found.append(
            f"gate gamma is {_span(neuron.gamma)} and a LIF needs 0 or 1 (between, soft and hard reset are mixed)"
        )
    if not found and not bool((neuron.tau == neuron.tau[0]).all()):
        found.append(
            f"its gates allow one, but tau is {_span(neuron.tau)} and a LIF has one for all channels"
        )
    return found


def _span(values: Tensor) -> str:
    low, high = values.min().item(), values.max().item()
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
