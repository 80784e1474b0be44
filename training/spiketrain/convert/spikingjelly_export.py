"""A checkpoint as a SpikingJelly network, and as a Python file that needs SpikingJelly only."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spiketrain.checkpoint import Checkpoint, write_atomically
from spiketrain.convert.flow import INPUT, ExportError, Flow, Op, network_flow, without
from spiketrain.convert.spikingjelly_nodes import Call, node_of
from spiketrain.networks import SharedDropout
from spiketrain.networks.graph import Scale
from spiketrain.neurons import NeuronLayer


class _Layer(NamedTuple):
    """One module of the network: where it is put, what it is, and its tensors."""

    path: str
    inputs: tuple[str, ...]
    call: Call | None  # None: its inputs are added up
    tensors: dict[str, Tensor]


class SpikingJellyNetwork(nn.Module):
    """SpikingJelly's layers and neurons in the order of our network.

    In step mode "m" it takes [T, N, ...] and gives logits [T, N, classes], in "s" one timestep of each; their
    `functional.set_step_mode` and `reset_net` work as ever. Modules have the names that they have in our network.
    """

    def __init__(self, layers: Sequence[_Layer], output: str) -> None:
        super().__init__()
        self._order = tuple(layer._replace(tensors={}) for layer in layers)
        self._output = output
        for layer in layers:
            if layer.call is not None:
                _put(self, layer.path, layer.call.build())

    def forward(self, x: Tensor) -> Tensor:
        values = {INPUT: x}
        for layer in self._order:
            total = values[layer.inputs[0]]
            for name in layer.inputs[1:]:
                total = total + values[name]
            module = None if layer.call is None else self.get_submodule(layer.path)
            values[layer.path] = total if module is None else module(total)
        return values[self._output]


def to_spikingjelly(checkpoint: Checkpoint) -> SpikingJellyNetwork:
    """The network in evaluation mode and step mode "m".

    A GLIF network knows "m" only, with as many timesteps as it was trained with: SpikingJelly's GatedLIFNode does.
    Raises ExportError, naming the layer, for what SpikingJelly cannot say.
    """
    layers, output = _layers(checkpoint)
    network = SpikingJellyNetwork(layers, output)
    tensors = {f"{layer.path}.{key}": t for layer in layers for key, t in layer.tensors.items()}
    network.load_state_dict(tensors)
    for module in network.modules():
        if hasattr(module, "step_mode"):
            setattr(module, "step_mode", "m")  # noqa: B010 (the attribute is typed as a module)
    return network.eval()


def export_spikingjelly(checkpoint: Checkpoint, path: Path) -> Path:
    """Write PATH, a Python module with a class `Network` and a function `load`, and its weights beside it as .pt.

    Returns the path of the weights.
    """
    if path.suffix != ".py":
        raise ExportError(f"{path}: what is written is a Python module: name it .py")
    layers, output = _layers(checkpoint)
    tensors = {
        f"{layer.path}.{key}": tensor.detach().clone()
        for layer in layers
        for key, tensor in layer.tensors.items()
    }
    weights = path.with_suffix(".pt")
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    write_atomically(weights, buffer.getvalue())
    write_atomically(path, _source(checkpoint, layers, output).encode())
    return weights


def _layers(checkpoint: Checkpoint) -> tuple[list[_Layer], str]:
    flow = network_flow(checkpoint.network())
    flow = without(flow, lambda op: isinstance(op.module, nn.Identity))
    return [_layer(flow, op) for op in flow.ops], flow.output


def _layer(flow: Flow, op: Op) -> _Layer:
    if op.kind == "add":
        return _Layer(op.name, op.inputs, None, {})
    tensors = {} if op.module is None else dict(op.module.state_dict())
    module = op.module
    match module:
        case None:
            if len(op.shape) != 1:
                raise ExportError(f"{op.name}: a reshape to {op.shape}: only flattening is written")
            call = Call("layer", "Flatten", {})
        case NeuronLayer():
            call, own = node_of(op.name, module, op.shape)
            tensors = {key: value.detach() for key, value in own.items()}
        case nn.Conv1d() | nn.Conv2d():
            call = _convolution(op.name, module)
        case nn.Linear():
            sizes = {"in_features": module.in_features, "out_features": module.out_features}
            call = Call("layer", "Linear", {**sizes, "bias": module.bias is not None})
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            name = "BatchNorm2d" if isinstance(module, nn.BatchNorm2d) else "BatchNorm1d"
            arguments = {"eps": module.eps, "momentum": module.momentum, "affine": module.affine}
            call = Call("layer", name, {"num_features": module.num_features, **arguments})
        case nn.AvgPool2d() if module.divisor_override is None:
            call = Call("layer", "AvgPool2d", _window(module))
        case nn.MaxPool2d():
            call = Call("layer", "MaxPool2d", _window(module))
        case nn.AdaptiveAvgPool2d():
            call = Call("layer", "AdaptiveAvgPool2d", {"output_size": module.output_size})
        case SharedDropout():
            call = Call("layer", "Dropout", {"p": module.p})
        case Scale() if len(op.shape) == 3 and module.weight.numel() == op.shape[0]:
            arguments = {"kernel_size": 1, "groups": op.shape[0], "bias": False}
            channels = {"in_channels": op.shape[0], "out_channels": op.shape[0]}
            call = Call("layer", "Conv2d", {**channels, **arguments})
            tensors = {"weight": module.weight.detach().reshape(-1, 1, 1, 1)}
        case _:
            raise ExportError(f"{op.name}: {type(module).__name__}: not written for SpikingJelly")
    return _Layer(op.name, op.inputs, call, tensors)


def _window(module: nn.AvgPool2d | nn.MaxPool2d) -> dict[str, Any]:
    if module.ceil_mode:
        raise ExportError("ceil_mode: poolings that reach over the edge are not written")
    return {
        "kernel_size": module.kernel_size,
        "stride": module.stride,
        "padding": module.padding,
    }


def _convolution(name: str, module: nn.Conv1d | nn.Conv2d) -> Call:
    if module.padding_mode != "zeros":
        raise ExportError(f"{name}: padding mode {module.padding_mode}: only zeros are written")
    arguments = {
        "in_channels": module.in_channels,
        "out_channels": module.out_channels,
        "kernel_size": module.kernel_size,
        "stride": module.stride,
        "padding": module.padding,
        "dilation": module.dilation,
        "groups": module.groups,
        "bias": module.bias is not None,
    }
    return Call("layer", "Conv2d" if isinstance(module, nn.Conv2d) else "Conv1d", arguments)


def _put(root: nn.Module, path: str, module: nn.Module) -> None:
    *parents, last = path.split(".")
    for name in parents:
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    root.add_module(last, module)


_FILE = '''"""{name}, for SpikingJelly 2: `load()` gives the network with its weights, from the .pt file beside this one.

It takes [T, N, {shape}] and gives logits [T, N, {classes}]. Call `functional.reset_net` between sequences.
"""

from pathlib import Path

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn


class Network(nn.Module):
    def __init__(self):
        super().__init__()
{modules}

    def _put(self, path, module):
        parent = self
        *parents, last = path.split(".")
        for name in parents:
            if name not in parent._modules:
                parent.add_module(name, nn.Module())
            parent = parent.get_submodule(name)
        parent.add_module(last, module)

    def forward(self, x):
{steps}
        return {output}


def load():
    network = Network()
    network.load_state_dict(torch.load(Path(__file__).with_suffix(".pt"), weights_only=True))
    for module in network.modules():
        if hasattr(module, "step_mode"):
            module.step_mode = "m"
    return network.eval()
'''


def _source(checkpoint: Checkpoint, layers: Sequence[_Layer], output: str) -> str:
    names = {INPUT: "x"}
    modules, steps = [], []
    for number, layer in enumerate(layers):
        names[layer.path] = f"x{number}"
        total = " + ".join(names[source] for source in layer.inputs)
        if layer.call is not None:
            modules.append(f'        self._put("{layer.path}", {layer.call.source()})')
            total = f'self.get_submodule("{layer.path}")({total})'
        steps.append(f"        x{number} = {total}")
    manifest = checkpoint.manifest
    return _FILE.format(
        name=manifest.name,
        shape=", ".join(map(str, manifest.input.shape)),
        classes=len(manifest.classes),
        modules="\n".join(modules),
        steps="\n".join(steps),
        output=names[output],
    )
