"""Networks: the papers' and small ones of our own.

A network is named in a checkpoint by its key in `NETWORKS` and its keyword arguments.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from spiketrain.networks.base import (
    Fire,
    Network,
    NetworkState,
    NeuronFactory,
    RunOutput,
    SharedDropout,
    StepOutput,
)
from spiketrain.networks.graph import GraphNetwork
from spiketrain.networks.resnet import SpikingResNet
from spiketrain.networks.small import SmallConv
from spiketrain.networks.vgg import VGG11, VGG13, SpikingVGG
from spiketrain.neurons import NeuronConfig

NETWORKS: dict[str, Callable[..., Network]] = {
    "graph": GraphNetwork,
    "small-conv": SmallConv,
    "spiking-resnet18": functools.partial(SpikingResNet, blocks=(2, 2, 2, 2)),
    "spiking-resnet34": functools.partial(SpikingResNet, blocks=(3, 4, 6, 3)),
    "spiking-vgg11": functools.partial(SpikingVGG, plan=VGG11),
    "spiking-vgg13": functools.partial(SpikingVGG, plan=VGG13),
}


def build_network(
    name: str,
    arguments: Mapping[str, Any],
    neuron: NeuronConfig,
    timesteps: int,
    layers: Mapping[str, NeuronConfig] | None = None,
) -> Network:
    """A network with fresh weights. `layers` gives a neuron of its own to the layers it names.

    Raises ValueError for an unknown name, arguments that the network does not take, or a layer it does not have.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}: known are {', '.join(sorted(NETWORKS))}")
    own = dict(layers or {})
    try:
        network = NETWORKS[name](NeuronFactory(neuron, timesteps, own), **arguments)
    except TypeError as error:
        raise ValueError(f"network {name!r} does not take these arguments: {error}") from error
    if unknown := own.keys() - network.neuron_layers().keys():
        raise ValueError(
            f"network {name!r} has no layer {', '.join(sorted(unknown))}: "
            f"its layers are {', '.join(network.neuron_layers())}"
        )
    return network


__all__ = [
    "NETWORKS",
    "Fire",
    "GraphNetwork",
    "Network",
    "NetworkState",
    "RunOutput",
    "SharedDropout",
    "SmallConv",
    "SpikingResNet",
    "SpikingVGG",
    "StepOutput",
    "build_network",
]
