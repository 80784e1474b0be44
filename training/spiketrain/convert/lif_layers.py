"""The constants of a layer of LIF: as tensors while values are searched for its channels, as numbers where they are equal."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from spiketrain.convert.lif_form import ConversionError
from spiketrain.neurons import LIFConfig, NeuronLayer


def config_of(layer: NeuronLayer) -> LIFConfig:
    if not isinstance(layer.config, LIFConfig):
        raise TypeError(f"a layer of {type(layer.config).__name__} in a network of LIF")
    return layer.config


def value_field(config: LIFConfig) -> Literal["subtract", "reset_value"]:
    return "subtract" if config.reset == "soft" else "reset_value"


def widen(layer: NeuronLayer) -> None:
    """Make value and threshold tensors of the layer, one value a channel."""
    config = config_of(layer)
    fields = ("threshold", value_field(config))
    wide = config.model_copy(update={"per_channel": fields})
    present = dict(layer.named_parameters(recurse=False))
    for key, start in wide.initial_parameters(layer.channels, 1).items():
        if key not in present:
            layer.register_parameter(key, nn.Parameter(start, requires_grad=False))
    layer.config = wide


def narrow(layer: NeuronLayer) -> None:
    """Make a number of what all channels have the same, and round it to what a float32 can say."""
    config = config_of(layer)
    changes: dict[str, Any] = {}
    kept = []
    for key in config.per_channel:
        values = layer.get_parameter(key)
        changes[key] = values.double().mean().item()
        if bool((values == values[0]).all()):
            changes[key] = values[0].item()
            delattr(layer, key)
        else:
            kept.append(key)
    if changes.get("subtract") == changes.get("threshold") and not kept:
        changes["subtract"] = None
    layer.config = config.model_copy(update=changes | {"per_channel": tuple(kept)})


def move_rest(name: str, layer: NeuronLayer, threshold: float) -> None:
    """The same neuron with the threshold given: rest and reset value are below 0 by what its own was above it."""
    config = config_of(layer)
    if config.per_channel:
        raise ConversionError(f"{name}: thresholds of channels need a rest of 0")
    value = threshold - config.threshold
    changes = {"threshold": threshold, "rest": value, "reset_value": value}
    layer.config = config.model_copy(update=changes)
