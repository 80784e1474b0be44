"""Where the tensors of the GLIF repository go: its ResNets for CIFAR, MS-ResNets for ImageNet, and 7B-wideNet.

A unit is a sequence of (conv, batch norm) and neuron: {unit}.0.0.weight, {unit}.0.1.*, {unit}.1.<gates>. T is the length
of every `conduct`, C that of the gates; layer-wise neurons have scalars, which hold for all channels.
Vth is the name of two things: a neuron's threshold (C,), and the scale of a threshold-dependent batch norm, a buffer
without axes. Where the buffer is not there, the batch norms are plain ones: training with several GPUs replaced them.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from spiketrain.convert.graph_builder import ForeignModelError
from spiketrain.importers.moving import Layout, Moving
from spiketrain.importers.said import Said
from spiketrain.neurons import GLIFConfig

_NAMES = {
    "alpha": "alpha",
    "beta": "beta",
    "gamma": "gamma",
    "tau": "tau",
    "Vth": "threshold",
    "leak": "leak",
    "reVth": "subtract",
    "conduct": "conduct",
}
_HALF = 1 / math.sqrt(2)
# By the widths of the blocks, and whether they are membrane blocks.
_RESNETS: dict[tuple[tuple[int, ...], bool], tuple[str, tuple[int, ...]]] = {
    ((64, 64, 128, 128, 256, 256, 512, 512), False): ("tdbn-resnet18", (2, 2, 2, 2)),
    ((128, 128, 128, 256, 256, 256, 512, 512), False): ("tdbn-resnet19", (3, 3, 2)),
    ((64, 64, 128, 128, 256, 256, 512, 512), True): ("ms-resnet18", (2, 2, 2, 2)),
    ((*(64,) * 3, *(128,) * 4, *(256,) * 6, *(512,) * 3), True): ("ms-resnet34", (3, 4, 6, 3)),
}


def layout(moving: Moving, said: Said) -> Layout:
    """Raises ForeignModelError, naming the key or the option that is wrong."""
    # Containers of SpikingJelly before 0.0.0.0.8 kept what they contain in an attribute of this name.
    moving.left = {key.replace(".module.", "."): value for key, value in moving.left.items()}
    steps = {
        len(tensor)
        for key, tensor in moving.left.items()
        if key.endswith(".conduct") and tensor.dim()
    }
    if len(steps) != 1:
        raise ForeignModelError(
            f"{moving.source}: 'conduct' of {', '.join(map(str, sorted(steps))) or 'no'} timesteps: "
            "a network of the GLIF repository has one number of them in all its neurons"
        )
    timesteps = steps.pop()
    if said.timesteps not in (None, timesteps):
        raise ForeignModelError(
            f"--timesteps: {moving.source} was trained with {timesteps} and has a conduct for each: no other number"
        )
    wide = "out.weight" in moving
    network, arguments = (_wide if wide else _resnet)(moving)
    return Layout(network, arguments, GLIFConfig(gates=said.gates), timesteps)


def _neuron(moving: Moving, theirs: str, ours: str, channels: int) -> None:
    for key, name in _NAMES.items():
        # Of a layer-wise neuron the values are scalars, and conduct has one axis, of time.
        axes = 1 if key == "conduct" else 0

        def by_channel(t: Tensor, axes: int = axes) -> Tensor:
            return t.unsqueeze(-1).expand(*t.shape, channels).clone() if t.dim() == axes else t

        moving.move(f"{theirs}.{key}", f"{ours}.{name}", by_channel)


def _norm(moving: Moving, theirs: str, ours: str, alpha: float = 1.0) -> None:
    scale = 1.0
    if f"{theirs}.Vth" in moving:
        threshold = moving.take(f"{theirs}.Vth")
        if threshold.numel() != 1:
            raise ForeignModelError(
                f"{moving.source}: '{theirs}.Vth' has shape {tuple(threshold.shape)}, a batch norm's has one value"
            )
        scale = alpha * threshold.item()
    moving.norm(theirs, ours, scale)


def _resnet(moving: Moving) -> tuple[str, dict[str, Any]]:
    stem = moving.of_axes("conv1.0.0.weight", 4)
    _unit(moving, "conv1", "conv1", "bn1", "neuron1")
    blocks = moving.indices(r"features\.(\d+)\.")
    membrane = "features.0.body.0.alpha" in moving
    last = "body.3" if membrane else "body.2"
    widths = tuple(len(moving.of_axes(f"features.{i}.{last}.0.weight", 4)) for i in blocks)
    if (widths, membrane) not in _RESNETS:
        raise ForeignModelError(
            f"{moving.source}: blocks of {', '.join(map(str, widths)) or 'no'} channels: not one of the GLIF "
            "repository's ResNet-18 or -19 for CIFAR or MS-ResNet-18 or -34"
        )
    network, counts = _RESNETS[widths, membrane]
    places = [f"layer{stage}.{i}" for stage, count in enumerate(counts, 1) for i in range(count)]
    inputs = len(stem)
    for i, (width, block) in enumerate(zip(widths, places, strict=True)):
        (_membrane_block if membrane else _block)(moving, f"features.{i}", block, inputs, width)
        inputs = width
    first = len(moving.of_axes("lastave.0.weight", 2))
    if "lastave.1.weight" not in moving:
        moving.weights("lastave.0", "linear", bias=False)
        return network, {"classes": first, "hidden": 0}
    moving.weights("lastave.0", "hidden", bias=False)
    classes = len(moving.weights("lastave.1", "linear", bias=False))
    return network, {"classes": classes, "hidden": first}


def _unit(moving: Moving, theirs: str, conv: str, norm: str, neuron: str) -> int:
    weight = moving.weights(f"{theirs}.0.0", conv, bias=False)
    _norm(moving, f"{theirs}.0.1", norm)
    _neuron(moving, f"{theirs}.1", neuron, len(weight))
    return len(weight)


def _block(moving: Moving, theirs: str, ours: str, inputs: int, outputs: int) -> None:
    _unit(moving, f"{theirs}.body", f"{ours}.conv1", f"{ours}.bn1", f"{ours}.neuron1")
    moving.weights(f"{theirs}.body.2.0", f"{ours}.conv2", bias=False)
    _norm(moving, f"{theirs}.body.2.1", f"{ours}.bn2", _HALF)
    _neuron(moving, f"{theirs}.lif", f"{ours}.neuron2", outputs)
    _shortcut(moving, theirs, ours)


def _membrane_block(moving: Moving, theirs: str, ours: str, inputs: int, outputs: int) -> None:
    _neuron(moving, f"{theirs}.body.0", f"{ours}.neuron1", inputs)
    moving.weights(f"{theirs}.body.1.0", f"{ours}.conv1", bias=False)
    _norm(moving, f"{theirs}.body.1.1", f"{ours}.bn1")
    _neuron(moving, f"{theirs}.body.2", f"{ours}.neuron2", outputs)
    moving.weights(f"{theirs}.body.3.0", f"{ours}.conv2", bias=False)
    _norm(moving, f"{theirs}.body.3.1", f"{ours}.bn2", _HALF)
    _shortcut(moving, theirs, ours)


def _shortcut(moving: Moving, theirs: str, ours: str) -> None:
    """A batch norm, or a convolution and a batch norm."""
    if f"{theirs}.downsample.0.0.weight" in moving:
        moving.weights(f"{theirs}.downsample.0.0", f"{ours}.shortcut.conv", bias=False)
        _norm(moving, f"{theirs}.downsample.0.1", f"{ours}.shortcut.bn", _HALF)
    else:
        _norm(moving, f"{theirs}.downsample.0", f"{ours}.shortcut.bn", _HALF)


def _wide(moving: Moving) -> tuple[str, dict[str, Any]]:
    """7B-wideNet: stem, four blocks, a unit that widens, three blocks; poolings between them have no tensors."""
    entries = moving.indices(r"conv\.(\d+)\.")
    blocks = [i for i in entries if f"conv.{i}.conv.0.0.0.weight" in moving]
    units = [i for i in entries if i not in blocks]
    if len(blocks) != 7 or len(units) != 2:
        raise ForeignModelError(
            f"{moving.source}: {len(blocks)} blocks and {len(units)} other units in conv: 7B-wideNet has 7 and 2"
        )
    for unit, ours in zip(units, ("stem", "widen"), strict=True):
        _unit(moving, f"conv.{unit}", f"{ours}.conv", f"{ours}.bn", f"{ours}.neuron")
    places = [*(f"layer1.{i}" for i in range(4)), *(f"layer2.{i}" for i in range(3))]
    for block, ours in zip(blocks, places, strict=True):
        for n in (0, 1):
            unit_ = f"{ours}.unit{n + 1}"
            _unit(
                moving, f"conv.{block}.conv.{n}", f"{unit_}.conv", f"{unit_}.bn", f"{unit_}.neuron"
            )
    weight = moving.weights("out", "linear", bias=True)
    return "sew-7b-wide", {"classes": len(weight)}
