"""Where the tensors of the CLIF repository go, and of the ILIF repository, which grew from it.

ResNets: conv1, layer{1-4}.{i}.{bn1,conv1,bn2,conv2,shortcut}, bn1, linear; their neurons are called relu1 and relu2.
VGGs: layer{k} is a sequence of conv, batch norm, neuron and dropout, four indices each, and a pooling at the end;
classifier.1 is the linear layer. VGGSNN and the networks of five layers: features.{i}.fwd is conv and batch norm, act the neuron; classifier.
LIF, CLIF and ILIF have no tensors, so a file fits each of them and does not say which it was; PLIF has one scalar a
layer, w.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from spiketrain.convert.graph_builder import ForeignModelError
from spiketrain.importers.moving import Layout, Moving
from spiketrain.importers.said import Said, needed
from spiketrain.networks.snn5 import SNN5, SNN5_STRIDED, Layer
from spiketrain.networks.vgg import VGG9, VGG11, VGG13, VGGSNN, Plan
from spiketrain.neurons import AnyNeuronConfig, CLIFConfig, ILIFConfig, LIFConfig, PLIFConfig

_RESNETS = {(2, 2, 2, 2): "spiking-resnet18", (3, 4, 6, 3): "spiking-resnet34"}
_VGGS = {VGG9: "spiking-vgg9", VGG11: "spiking-vgg11", VGG13: "spiking-vgg13"}
_POOLED = 7 * 7


def _places(plan: Plan) -> dict[str, int]:
    """The units of a VGG's plan, with their channels."""
    return {
        f"layer{stage}.{i}": width
        for stage, widths in enumerate(plan, 1)
        for i, width in enumerate(widths)
        if isinstance(width, int)
    }


def _five(layers: Sequence[Layer]) -> dict[str, int]:
    return {f"layers.{i}": layer.channels for i, layer in enumerate(layers)}


# Which network has layers of these channels, and where they are in it.
_FEATURES = {
    tuple(units.values()): (network, tuple(units))
    for network, units in (
        ("vggsnn", _places(VGGSNN)),
        ("snn5", _five(SNN5)),
        ("snn5-strided", _five(SNN5_STRIDED)),
    )
}


def layout(moving: Moving, said: Said) -> Layout:
    """Raises ForeignModelError, naming the key or the option that is missing."""
    neuron = _neuron(moving, said)
    network, arguments = _kind(moving)(moving, isinstance(neuron, PLIFConfig))
    if said.dropout:
        arguments["dropout"] = said.dropout
    return Layout(network, arguments, neuron)


def _kind(moving: Moving) -> Callable[[Moving, bool], tuple[str, dict[str, Any]]]:
    if "features.0.fwd.0.weight" in moving:
        return _features
    return _vgg if "classifier.1.weight" in moving else _resnet


def _neuron(moving: Moving, said: Said) -> AnyNeuronConfig:
    learned = any(key.endswith(".w") for key in moving.left)
    kind = needed(
        "plif" if learned and said.neuron is None else said.neuron,
        "neuron",
        "lif, clif, ilif or plif is needed: these files do not say, and no folder of the run does",
    )
    if learned != (kind == "plif"):
        has = "has PLIF's w" if learned else "has no PLIF's w"
        raise ForeignModelError(f"{moving.source}: {has}, and --neuron says {kind}")
    threshold = 1.0 if said.threshold is None else said.threshold
    if kind == "plif":
        tau = 2.0 if said.tau is None else said.tau
        return PLIFConfig(
            initial_tau=tau,
            threshold=threshold,
            decay_input=False,
            reset="soft",
            detach_reset=False,
            surrogate=LIFConfig().surrogate,
        )
    tau = needed(said.tau, "tau", "the leak's time constant is needed; the published runs have 2.0")
    match kind:
        case "lif":
            return LIFConfig(tau=tau, threshold=threshold)
        case "clif":
            return CLIFConfig(tau=tau, threshold=threshold)
        case _:
            return ILIFConfig(tau=tau, threshold=threshold)


def _resnet(moving: Moving, learned: bool) -> tuple[str, dict[str, Any]]:
    counts = tuple(len(moving.indices(rf"layer{stage}\.(\d+)\.")) for stage in range(1, 5))
    if counts not in _RESNETS:
        raise ForeignModelError(
            f"{moving.source}: layer1 to layer4 have {', '.join(map(str, counts))} blocks, and no classifier.1: "
            "neither a ResNet-18 or -34 nor a VGG of these repositories"
        )
    moving.weights("conv1", "conv1", bias=False)
    for stage, count in enumerate(counts, 1):
        for i in range(count):
            block = f"layer{stage}.{i}"
            for n in ("1", "2"):
                moving.norm(f"{block}.bn{n}", f"{block}.bn{n}")
                moving.weights(f"{block}.conv{n}", f"{block}.conv{n}", bias=True)
                if learned:
                    moving.move(f"{block}.relu{n}.w", f"{block}.neuron{n}.w")
            if stage > 1 and i == 0:
                moving.weights(f"{block}.shortcut", f"{block}.shortcut", bias=True)
    moving.norm("bn1", "bn1")
    if learned:
        moving.move("relu1.w", "neuron1.w")
    classes = len(moving.weights("linear", "linear", bias=True))
    return _RESNETS[counts], {"classes": classes}


def _vgg(moving: Moving, learned: bool) -> tuple[str, dict[str, Any]]:
    plan: list[tuple[int | str, ...]] = []
    for stage in range(1, 6):
        widths: list[int | str] = []
        # A convolution is the first of four modules, its batch norm the next, then its neuron.
        starts = [i for i in moving.indices(rf"layer{stage}\.(\d+)\.weight$") if i % 4 == 0]
        for i, start in enumerate(starts):
            unit = f"layer{stage}.{i}"
            weight = moving.weights(f"layer{stage}.{start}", f"{unit}.conv", bias=True)
            moving.norm(f"layer{stage}.{start + 1}", f"{unit}.bn")
            if learned:
                moving.move(f"layer{stage}.{start + 2}.w", f"{unit}.neuron.w")
            widths.append(len(weight))
        plan.append((*widths, "M"))
    if tuple(plan) not in _VGGS:
        raise ForeignModelError(
            f"{moving.source}: layers of {plan}: only VGG-9, -11 and -13 are known"
        )
    classifier = moving.of_axes("classifier.1.weight", 2)
    if classifier.shape[1] != int(plan[-1][-2]) * _POOLED:
        raise ForeignModelError(
            f"{moving.source}: 'classifier.1.weight' has {classifier.shape[1]} inputs, 7 by 7 maps have "
            f"{int(plan[-1][-2]) * _POOLED}"
        )
    moving.weights("classifier.1", "linear", bias=True)
    return _VGGS[tuple(plan)], {"classes": len(classifier)}


def _features(moving: Moving, learned: bool) -> tuple[str, dict[str, Any]]:
    layers = moving.indices(r"features\.(\d+)\.fwd\.0\.weight$")
    widths = tuple(len(moving.left[f"features.{i}.fwd.0.weight"]) for i in layers)
    if widths not in _FEATURES:
        raise ForeignModelError(
            f"{moving.source}: layers of {', '.join(map(str, widths))} channels: of these networks only VGGSNN, snn5 "
            "and snn5_noAP are known"
        )
    network, units = _FEATURES[widths]
    for layer, unit in zip(layers, units, strict=True):
        moving.weights(f"features.{layer}.fwd.0", f"{unit}.conv", bias=True)
        moving.norm(f"features.{layer}.fwd.1", f"{unit}.bn")
        if learned:
            moving.move(f"features.{layer}.act.w", f"{unit}.neuron.w")
    classes = len(moving.weights("classifier", "linear", bias=True))
    return network, {"classes": classes}
