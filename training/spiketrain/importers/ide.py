"""Where the tensors of the IDE-FSNN repository go: F400, 64C5s, AlexNet-F, CIFARNet-F.

Its files hold the same tensors three to five times; network_x, network_s and classifier are the ones that were trained,
the others are views or copies of them. The feedback's weight is stored as weight_w, gain weight_g and the vectors
weight_u and weight_v of its largest singular value. There the power iteration goes on in evaluation, once a batch; here
it is done once, on import. Threshold, leak and timesteps are not in the file.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn.functional import normalize

from spiketrain.convert.graph_builder import ForeignModelError
from spiketrain.importers.moving import Layout, Moving
from spiketrain.importers.said import Said, needed
from spiketrain.neurons import FeedbackLIFConfig

_COPIES = ("snn_func.", "snn_func_copy.", "snn_ide_conv.", "snn_ide_fc.")
_STRIDES = (2, 1, 2, 1, 1)
_STACKS = {
    (96, 256, 384, 384, 256): "feedback-alexnet",
    (128, 256, 512, 1024, 512): "feedback-cifarnet",
}


def layout(moving: Moving, said: Said, shape: tuple[int, ...]) -> Layout:
    """`shape` is the input's. Raises ForeignModelError, naming the key or the option."""
    keep = needed(
        said.keep, "keep", "what neurons keep of their potential is needed: 1 for IF, else lambda"
    )
    neuron = FeedbackLIFConfig(
        keep=keep, threshold=2.0 if said.threshold is None else said.threshold
    )
    moving.dropped(*_COPIES)
    if "network_x.fc.weight" in moving:
        network, arguments = _linear(moving)
    elif "network_s.conv.weight_w" in moving:
        network, arguments = _conv(moving, shape)
    elif "network_s5.convT.weight_w" in moving:
        network, arguments = _stack(moving)
    else:
        raise ForeignModelError(
            f"{moving.source}: 'network_x.fc.weight', 'network_s.conv.weight_w' or 'network_s5.convT.weight_w' is "
            "missing: no network of the IDE-FSNN repository"
        )
    weight = moving.weights("classifier", "linear", bias=True)
    return Layout(network, {"classes": len(weight), **arguments}, neuron)


def _feedback(moving: Moving, theirs: str) -> None:
    """With one more step of the power iteration, as their first batch would take it."""
    ours = "feedback.parametrizations.weight"
    moving.of_axes(f"{theirs}.weight_w", 2 if theirs.endswith("fc") else 4)
    moving.of_axes(f"{theirs}.weight_u", 1)
    weight = moving.move(f"{theirs}.weight_w", f"{ours}.original")
    moving.move(f"{theirs}.weight_g", f"{ours}.0.gain", lambda t: t.reshape(-1))
    u, v = moving.take(f"{theirs}.weight_u"), moving.take(f"{theirs}.weight_v")
    matrix = weight.flatten(1)
    if u.shape != matrix.shape[:1] or v.shape != matrix.shape[1:]:
        raise ForeignModelError(
            f"{moving.source}: '{theirs}.weight_u' has shape {tuple(u.shape)}, a weight of shape "
            f"{tuple(weight.shape)} needs {tuple(matrix.shape[:1])}"
        )
    v = normalize(torch.mv(matrix.T, u), dim=0)
    moving.made[f"{ours}.0.v"] = v
    moving.made[f"{ours}.0.u"] = normalize(torch.mv(matrix, v), dim=0)
    moving.origin |= {f"{ours}.0.u": f"{theirs}.weight_u", f"{ours}.0.v": f"{theirs}.weight_v"}


def _unit(moving: Moving, theirs: str, kind: str, ours: str) -> None:
    moving.weights(f"{theirs}.{kind}", f"{ours}.weights", bias=True)
    moving.norm(f"{theirs}.bn", f"{ours}.bn")


def _linear(moving: Moving) -> tuple[str, dict[str, Any]]:
    hidden = len(moving.of_axes("network_x.fc.weight", 2))
    _unit(moving, "network_x", "fc", "encoder.1")
    _feedback(moving, "network_s.fc")
    return "feedback-f400", {"hidden": hidden}


def _conv(moving: Moving, shape: tuple[int, ...]) -> tuple[str, dict[str, Any]]:
    channels, _, kernel, _ = moving.of_axes("network_x.conv.weight", 4).shape
    features = moving.of_axes("classifier.weight", 2).shape[1] // channels
    for padding in (2, 1):  # N-MNIST's as the paper counts it, and as the code has it
        sides = ((side + 2 * padding - kernel) // 2 + 1 for side in shape[1:])
        if math.prod(sides) == features:
            _unit(moving, "network_x", "conv", "encoder")
            _feedback(moving, "network_s.conv")
            return "feedback-64c5s", {"channels": channels, "kernel": kernel, "padding": padding}
    raise ForeignModelError(
        f"{moving.source}: 'classifier.weight': maps of {features} neurons do not come from inputs of {shape}"
    )


def _stack(moving: Moving) -> tuple[str, dict[str, Any]]:
    names = ["network_x", *(f"network_s{i}" for i in range(1, 5))]
    widths = tuple(len(moving.of_axes(f"{name}.conv.weight", 4)) for name in names)
    for i, name in enumerate(names):
        _unit(moving, name, "conv", f"units.{i - 1}" if i else "encoder")
    _feedback(moving, "network_s5.convT")
    if widths in _STACKS:
        return _STACKS[widths], {}
    plan = [list(layer) for layer in zip(widths, _STRIDES, strict=True)]
    return "feedback-alexnet", {"layers": plan}
