"""A checkpoint as a NIR graph, for other simulators and for neuromorphic hardware (https://neuroir.org).

NIR's LIF, tau dv/dt = v_leak - v + r I with a hard reset, in steps of dt is exactly ours with tau = tau_steps dt, r =
tau/dt (1 where the input is decayed) and v_leak = rest. Batch norms are folded into weights, values of a layer or a
channel are spread over its neurons. Where several edges meet, their values are added up.

One difference cannot be written down: NIR fires above its threshold, our neurons at it too, unless their surrogate is
strict. With continuous currents no potential is ever at its threshold; with integer weights and event counts one may
be. Each neuron's metadata `fires_at_threshold` says which it was, and our importer goes by it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import nir
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from spiketrain.checkpoint import Checkpoint, write_atomically
from spiketrain.convert.flow import INPUT, ExportError, Flow, Op, insert_after, network_flow
from spiketrain.convert.folding import (
    affine,
    diagonal,
    without_adaptive_pools,
    without_batch_norms,
    without_idle,
)
from spiketrain.networks.graph import Scale
from spiketrain.neurons import LIF, PLIF, Integrator, NeuronLayer
from spiketrain.neurons.base import Value, per_channel

Array = NDArray[Any]

CONVERT = "convert it first: spiketrain convert CHECKPOINT --to lif --reset hard"


class NIRExport(NamedTuple):
    graph: nir.NIRGraph
    nodes: dict[str, str]  # by layer of neurons, the name of its node
    fires_at_threshold: bool  # whether neurons do, which NIR's do not


def nir_graph(checkpoint: Checkpoint, *, dt: float = 1e-4, fold_r: bool = False) -> NIRExport:
    """The graph, with nodes `input` and `output` and the others named by their layers, dots made underscores.

    `dt` is the length of a timestep in seconds. `fold_r` writes r = 1 and multiplies the weights before each layer of
    neurons by its tau instead, for simulators that ignore r.

    Raises ExportError, naming the layer, for what NIR cannot say; CheckpointError for weights that do not fit.
    """
    if not 0 < dt < float("inf"):
        raise ExportError(f"dt is {dt}: the length of a timestep, in seconds, is above 0")
    network = checkpoint.network()
    _check_neurons(network.neuron_layers())
    flow = without_idle(network_flow(network))
    flow = without_adaptive_pools(without_batch_norms(flow))
    if fold_r:
        flow = _with_unit_r(flow)
    flow = _without_double_edges(flow)
    writer = _Writer(flow, dt, fold_r)
    for op in flow.ops:
        writer.write(op)
    writer.connect("output", writer.sources(flow.output))
    writer.nodes["output"] = nir.Output(np.array(flow.shape_of(flow.output)))
    metadata = {
        "spiketrain": {"dt": dt, "manifest": checkpoint.manifest.model_dump_json()},
    }
    try:
        graph = nir.NIRGraph(writer.nodes, writer.edges, metadata=metadata)
    except (ValueError, AssertionError) as error:
        raise ExportError(f"nir refuses the graph: {error}") from error
    layers = {
        op.name: writer.names[op.name] for op in flow.ops if isinstance(op.module, NeuronLayer)
    }
    at_threshold = any(node.metadata.get("fires_at_threshold") for node in graph.nodes.values())
    return NIRExport(graph, layers, at_threshold)


def export_nir(
    checkpoint: Checkpoint, path: Path, *, dt: float = 1e-4, fold_r: bool = False
) -> NIRExport:
    """Write `nir_graph` to a file, whole or not at all."""
    exported = nir_graph(checkpoint, dt=dt, fold_r=fold_r)
    buffer = io.BytesIO()
    nir.write(buffer, exported.graph)
    write_atomically(path, buffer.getvalue())
    return exported


def _check_neurons(layers: dict[str, NeuronLayer]) -> None:
    for name, layer in layers.items():
        neuron, kind = layer.neuron(), layer.config.__class__.__name__.removesuffix("Config")
        if not isinstance(neuron, LIF | PLIF | Integrator):
            raise ExportError(f"{name}: NIR has no {kind} neuron; {CONVERT}")
        if neuron.reset != "hard" and layer.config.spiking:
            raise ExportError(
                f"{name}: a soft reset: NIR's neurons set their potential at a spike, none subtracts; {CONVERT}"
            )


def _with_unit_r(flow: Flow) -> Flow:
    for op in flow.ops:
        if not isinstance(op.module, NeuronLayer):
            continue
        neuron = op.module.neuron()
        if isinstance(neuron, Integrator):
            raise ExportError(f"{op.name}: r can only be folded into weights for LIF and PLIF")
        if isinstance(neuron, LIF | PLIF) and not neuron.decay_input:
            (source,) = flow.op(op.name).inputs
            gain = torch.full((op.shape[0],), _number(_tau(neuron)), dtype=torch.float64)
            flow = affine(flow, source, op.name, gain, torch.zeros_like(gain))
    return flow


def _without_double_edges(flow: Flow) -> Flow:
    """Nothing is added to itself: NIR has at most one edge from a node to another."""
    for op in flow.ops:
        if op.kind != "add":
            continue
        seen: set[str] = set()
        for name in flow.op(op.name).inputs:
            leaves = _leaves(flow, name)
            if len(set(leaves)) < len(leaves) or seen & set(leaves):
                one = torch.ones(flow.shape_of(name)[0], dtype=torch.float64)
                flow = insert_after(
                    flow, name, diagonal(flow, name, one, torch.zeros_like(one)), [op.name]
                )
                if (
                    flow.op(op.name).inputs.count(name) == 0
                    and len(set(flow.op(op.name).inputs)) == 1
                ):
                    raise ExportError(f"{op.name}: {name} is added to itself more than once")
            seen |= set(_leaves(flow, name))
    return flow


def _leaves(flow: Flow, name: str) -> list[str]:
    """What a value is the sum of."""
    if name == INPUT or flow.op(name).kind != "add":
        return [name]
    return [leaf for part in flow.op(name).inputs for leaf in _leaves(flow, part)]


class _Writer:
    def __init__(self, flow: Flow, dt: float, fold_r: bool) -> None:
        self.flow = flow
        self.dt = dt
        self.fold_r = fold_r
        self.names: dict[str, str] = {INPUT: "input"}
        self.nodes: dict[str, Any] = {"input": nir.Input(np.array(flow.input_shape))}
        self.edges: list[tuple[str, str]] = []

    def sources(self, name: str) -> list[str]:
        return _leaves(self.flow, name)

    def connect(self, node: str, sources: Sequence[str]) -> None:
        self.edges += [(self.names[source], node) for source in sources]

    def write(self, op: Op) -> None:
        if op.kind == "add":
            return
        before = self.flow.shape_of(op.inputs[0])
        node = self._node(op, before)
        self.names[op.name] = self._free(op.name)
        self.nodes[self.names[op.name]] = node
        self.connect(self.names[op.name], self.sources(op.inputs[0]))
        if isinstance(op.module, NeuronLayer):
            self._write_feedback(op.name, op.module)

    def _free(self, wanted: str) -> str:
        name = base = wanted.replace(".", "_")
        number = 2
        while name in self.nodes or name == "output":
            name, number = f"{base}_{number}", number + 1
        return name

    def _node(self, op: Op, before: tuple[int, ...]) -> Any:
        module = op.module
        match module:
            case None:
                if len(op.shape) != 1:
                    raise ExportError(f"{op.name}: NIR can flatten, not reshape to {op.shape}")
                return nir.Flatten(np.array(before), start_dim=0, end_dim=-1)
            case nn.Conv2d() | nn.Conv1d():
                return _convolution(op.name, module, before)
            case nn.Linear():
                return _linear(module.weight, cast("Tensor | None", module.bias))
            case Scale():
                return nir.Scale(_array(module.weight.expand(before)))
            case nn.AvgPool2d():
                return _pool(op.name, module)
            case NeuronLayer():
                return self._neurons(op.name, module, op.shape)
            case _:
                raise ExportError(
                    f"{op.name}: NIR has no {type(module).__name__}: average pooling, convolutions and linear layers "
                    "are what it can say"
                )

    def _neurons(self, name: str, layer: NeuronLayer, shape: tuple[int, ...]) -> Any:
        like = next((p for op in self.flow.ops if op.module for p in op.module.parameters()), None)
        dtype = torch.float32 if like is None else like.dtype

        def spread(value: Value) -> Array:
            zeros = torch.zeros(1, *shape, dtype=torch.float64)
            return _array((zeros + per_channel(_double(value), zeros))[0].to(dtype))

        neuron = layer.neuron()
        if isinstance(neuron, Integrator):
            return _integrator(name, neuron, self.dt, spread)
        if not isinstance(neuron, LIF | PLIF):
            raise ExportError(f"{name}: NIR has no such neuron; {CONVERT}")
        tau = _tau(neuron)
        plain = neuron.decay_input or self.fold_r
        return nir.LIF(
            tau=spread(_double(tau) * self.dt),
            r=spread(1.0 if plain else tau),
            v_leak=spread(neuron.rest),
            v_threshold=spread(neuron.threshold),
            v_reset=spread(neuron.reset_value),
            metadata=_fires(neuron.fire),
        )

    def _write_feedback(self, name: str, layer: NeuronLayer) -> None:
        neuron = layer.neuron()
        if not isinstance(neuron, Integrator) or neuron.feedback_weight is None:
            return
        recurrent = self._free(f"{name}_feedback")
        self.nodes[recurrent] = _linear(neuron.feedback_weight, neuron.feedback_bias)
        self.edges += [(self.names[name], recurrent), (recurrent, self.names[name])]


def _integrator(name: str, neuron: Integrator, dt: float, spread: Any) -> Any:
    leak = neuron.leak.detach().double()
    gain = neuron.gain.detach().double()
    fires: dict[str, Any] = {}
    if neuron.threshold is not None and neuron.reset_value is not None:
        fires = {
            "v_threshold": spread(neuron.threshold),
            "v_reset": spread(neuron.reset_value),
            "metadata": _fires(neuron.fire),
        }
    if bool((leak == 0).all()) and neuron.synapse_leak is None:
        if bool((neuron.rest != 0).any()):
            raise ExportError(
                f"{name}: NIR's integrators without a leak start at 0, this one does not"
            )
        return nir.IF(r=spread(gain / dt), **fires) if fires else nir.I(r=spread(gain / dt))
    if bool((leak == 0).any()):
        raise ExportError(f"{name}: NIR cannot say a leak of 0 beside others, nor behind a synapse")
    tau, r = spread(dt / leak), spread(gain / leak)
    if neuron.synapse_leak is None or neuron.synapse_gain is None:
        return (nir.LIF if fires else nir.LI)(tau=tau, r=r, v_leak=spread(neuron.rest), **fires)
    synapse = neuron.synapse_leak.detach().double()
    if bool((synapse == 0).any()):
        raise ExportError(f"{name}: NIR cannot say a synapse that does not leak")
    return (nir.CubaLIF if fires else nir.CubaLI)(
        tau_syn=spread(dt / synapse),
        tau_mem=tau,
        r=r,
        v_leak=spread(neuron.rest),
        w_in=spread(neuron.synapse_gain.detach().double() / synapse),
        **fires,
    )


def _linear(weight: Tensor, bias: Tensor | None) -> Any:
    if bias is None:
        return nir.Linear(_array(weight))
    return nir.Affine(_array(weight), _array(bias))


def _convolution(name: str, module: nn.Conv1d | nn.Conv2d, before: tuple[int, ...]) -> Any:
    if module.padding_mode != "zeros":
        raise ExportError(f"{name}: NIR's convolutions pad with zeros only")
    if len(set(module.kernel_size)) != 1:
        raise ExportError(f"{name}: nir works out the shapes of square kernels only")
    weight = _dense(module)
    bias = torch.zeros(len(weight)) if module.bias is None else module.bias
    one = isinstance(module, nn.Conv1d)
    padding: Any = module.padding
    if not isinstance(padding, str):
        padding = padding[0] if one else tuple(padding)
    return (nir.Conv1d if one else nir.Conv2d)(
        input_shape=before[1] if one else (before[1], before[2]),
        weight=_array(weight),
        stride=module.stride[0] if one else tuple(module.stride),
        padding=padding,
        dilation=module.dilation[0] if one else tuple(module.dilation),
        groups=1,
        bias=_array(bias.to(weight)),
    )


def _dense(module: nn.Conv1d | nn.Conv2d) -> Tensor:
    """Weights with the zeros that groups leave out: few readers of NIR know groups."""
    weight = module.weight.detach()
    if module.groups == 1:
        return weight
    outputs, inputs = len(weight) // module.groups, weight.shape[1]
    dense = weight.new_zeros(len(weight), inputs * module.groups, *weight.shape[2:])
    for group in range(module.groups):
        rows = slice(group * outputs, (group + 1) * outputs)
        dense[rows, group * inputs : (group + 1) * inputs] = weight[rows]
    return dense


def _pool(name: str, module: nn.AvgPool2d) -> Any:
    kernel, stride, padding = (
        _pair(v) for v in (module.kernel_size, module.stride, module.padding)
    )
    if module.ceil_mode or (any(padding) and not module.count_include_pad):
        raise ExportError(
            f"{name}: NIR's pooling leaves over what does not fit, and counts padding"
        )
    if module.divisor_override not in (None, 1):
        raise ExportError(f"{name}: NIR's pooling divides by the size of the window, or not at all")
    make = nir.AvgPool2d if module.divisor_override is None else nir.SumPool2d
    return make(kernel_size=np.array(kernel), stride=np.array(stride), padding=np.array(padding))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _tau(neuron: LIF | PLIF) -> Value:
    if isinstance(neuron, PLIF):
        return 1 / torch.sigmoid(neuron.w.detach().double())
    return neuron.tau


def _fires(surrogate: Any) -> dict[str, Any]:
    return {"fires_at_threshold": not getattr(surrogate, "strict", False)}


def _double(value: Value) -> Any:
    return value.detach().double() if isinstance(value, Tensor) else value


def _number(value: Value) -> float:
    return float(value)


def _array(tensor: Tensor) -> Array:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())
