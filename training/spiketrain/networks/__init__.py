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
    StepFire,
    StepOutput,
    with_plain_weights,
)
from spiketrain.networks.feedback import FeedbackConv, FeedbackConvStack, FeedbackLinear
from spiketrain.networks.graph import GraphNetwork
from spiketrain.networks.plif import PlifNet
from spiketrain.networks.resnet import SpikingResNet
from spiketrain.networks.sew import WideNet7B
from spiketrain.networks.small import SmallConv
from spiketrain.networks.snn5 import SNN5_STRIDED, FiveLayers
from spiketrain.networks.tdbn import MsResNet, TdbnCifarNet, TdbnResNet
from spiketrain.networks.vgg import VGG9, VGG11, VGG13, VGGSNN, SpikingVGG
from spiketrain.neurons import NeuronConfig

NETWORKS: dict[str, Callable[..., Network]] = {
    "feedback-64c5s": FeedbackConv,
    "feedback-alexnet": functools.partial(
        FeedbackConvStack, layers=((96, 2), (256, 1), (384, 2), (384, 1), (256, 1))
    ),
    "feedback-cifarnet": functools.partial(
        FeedbackConvStack, layers=((128, 2), (256, 1), (512, 2), (1024, 1), (512, 1))
    ),
    "feedback-f400": FeedbackLinear,
    "graph": GraphNetwork,
    "ms-resnet18": functools.partial(MsResNet, blocks=(2, 2, 2, 2)),
    "ms-resnet34": functools.partial(MsResNet, blocks=(3, 4, 6, 3)),
    "plif-mnist": functools.partial(
        PlifNet, plan=(128, "P", 128, "P"), input_shape=(1, 28, 28), hidden=2048
    ),
    "plif-cifar10": functools.partial(
        PlifNet,
        plan=(*(256,) * 3, "P", *(256,) * 3, "P"),
        input_shape=(3, 32, 32),
        hidden=2048,
        dropouts=(0.5, 0.0),
    ),
    "plif-nmnist": functools.partial(PlifNet, plan=(128, "P") * 2, input_shape=(2, 34, 34)),
    "plif-cifar10-dvs": functools.partial(PlifNet, plan=(128, "P") * 4, input_shape=(2, 128, 128)),
    "plif-dvs-gesture": functools.partial(
        PlifNet, plan=(128, "P") * 5, input_shape=(2, 128, 128), classes=11
    ),
    "sew-7b-wide": WideNet7B,
    "small-conv": SmallConv,
    "snn5": FiveLayers,
    "snn5-strided": functools.partial(FiveLayers, layers=SNN5_STRIDED),
    "spiking-resnet18": functools.partial(SpikingResNet, blocks=(2, 2, 2, 2)),
    "spiking-resnet34": functools.partial(SpikingResNet, blocks=(3, 4, 6, 3)),
    "spiking-vgg9": functools.partial(SpikingVGG, plan=VGG9),
    "spiking-vgg11": functools.partial(SpikingVGG, plan=VGG11),
    "spiking-vgg13": functools.partial(SpikingVGG, plan=VGG13),
    "tdbn-cifarnet": TdbnCifarNet,
    "tdbn-resnet18": functools.partial(
        TdbnResNet, blocks=(2, 2, 2, 2), channels=(64, 128, 256, 512), strides=(1, 1, 2, 2)
    ),
    "tdbn-resnet19": functools.partial(
        TdbnResNet, blocks=(3, 3, 2), channels=(128, 256, 512), strides=(1, 2, 2)
    ),
    "vggsnn": functools.partial(SpikingVGG, plan=VGGSNN, pooled=None),
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
    "FeedbackConv",
    "FeedbackConvStack",
    "FeedbackLinear",
    "Fire",
    "GraphNetwork",
    "MsResNet",
    "Network",
    "NetworkState",
    "PlifNet",
    "RunOutput",
    "SharedDropout",
    "SmallConv",
    "SpikingResNet",
    "SpikingVGG",
    "StepFire",
    "StepOutput",
    "TdbnCifarNet",
    "TdbnResNet",
    "WideNet7B",
    "build_network",
    "with_plain_weights",
]
