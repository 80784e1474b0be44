"""A NIR graph as a checkpoint of ours.

NIR's differential equations are stepped as `neurons.integrator` says, forward Euler with steps of dt, where possible
as plain LIF layers. Neurons fire above their threshold, as NIR says, unless a node's metadata `fires_at_threshold`
says that they fire at it too. A value over a recurrent edge arrives one timestep later.

Understood: Input, Output, LIF, CubaLIF, IF, LI, CubaLI, I, Threshold, Affine, Linear, Scale, Conv1d, Conv2d,
AvgPool2d, SumPool2d, Flatten, nested graphs, several edges into one node, and a recurrent edge of a layer of neurons
[N] onto itself, directly or through one Linear, Affine or Scale. Anything else is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spiketrain.checkpoint import Checkpoint
from spiketrain.convert.graph_builder import About, ForeignModelError, GraphBuilder
from spiketrain.convert.nir_file import GraphFile, Node, graph_of, read_graph
from spiketrain.convert.nir_neurons import NEURONS, Feedback, neurons_of
from spiketrain.networks.graph import INPUT

if TYPE_CHECKING:
    import nir

DEFAULT_DT = 1e-4
_WIDEST_FEEDBACK = 8192


def import_nir(graph: Path | nir.NIRGraph, about: About, *, dt: float | None = None) -> Checkpoint:
    """The checkpoint. `dt` is the length of a timestep in seconds: what the file says, else 0.0001, unless given.

    Raises ForeignModelError, naming node and field, for files that are damaged, no NIR, or say what we cannot;
    OSError where the file cannot be read.
    """
    file = read_graph(graph) if isinstance(graph, Path) else graph_of(graph.to_dict(), "the graph")
    dt = dt if dt is not None else _dt(file)
    if not 0 < dt < float("inf"):
        raise ForeignModelError(f"{file.source}: dt is {dt}: the length of a timestep is above 0")
    return _Importer(file, about, dt).run()


def input_shape(graph: Path) -> tuple[int, ...]:
    """The shape of one sample that a file's input node says."""
    return _shape(_only(read_graph(graph), "Input"))


def _dt(file: GraphFile) -> float:
    ours = file.metadata.get("spiketrain")
    value = ours.get("dt") if isinstance(ours, Mapping) else None
    return DEFAULT_DT if value is None else float(value)


def _only(file: GraphFile, kind: str) -> Node:
    found = [node for node in file.nodes.values() if node.type == kind and "." not in node.name]
    if len(found) != 1:
        raise ForeignModelError(
            f"{file.source}: {len(found)} nodes of type {kind}, exactly one is needed"
        )
    return found[0]


def _shape(node: Node) -> tuple[int, ...]:
    shape = node.array("shape").reshape(-1)
    if not 1 <= shape.size <= 4 or (shape < 1).any() or (shape != shape.astype(int)).any():
        raise node.wrong("shape", f"{shape.tolist()} is no shape of one sample")
    return tuple(int(x) for x in shape)


class _Importer:
    def __init__(self, file: GraphFile, about: About, dt: float) -> None:
        self.file = file
        self.about = about
        self.dt = dt
        self.builder = GraphBuilder(file.source, about.input.shape, about.timesteps, file.digest)
        self.built: dict[str, tuple[str, ...]] = {}  # by node, the values whose sum it is
        self.before: dict[str, list[str]] = {name: [] for name in file.nodes}
        for start, end in file.edges:
            self.before[end].append(start)
        self.feedback = self._take_feedback()

    def run(self) -> Checkpoint:
        start, end = _only(self.file, "Input"), _only(self.file, "Output")
        for name in self._order():
            node = self.file.nodes[name]
            if node is start:
                self.built[name] = (self._input(node),)
                continue
            if any(name == recurrent.name for recurrent in self.feedback_nodes):
                continue
            inputs = tuple(x for source in self.before[name] for x in self.built.get(source, ()))
            if not inputs:
                raise ForeignModelError(
                    f"{self.file.source}: node {name!r} ({node.type}): no edge leads to it"
                )
            if len(set(inputs)) < len(inputs):
                raise ForeignModelError(
                    f"{self.file.source}: node {name!r} ({node.type}): edges: a value reaches it twice"
                )
            passes = node.type in ("Input", "Output")
            self.built[name] = inputs if passes else (self._build(node, inputs),)
        return self.builder.checkpoint(
            self.built[end.name], self.about, f"nir import, dt {self.dt:g}"
        )

    def _order(self) -> list[str]:
        try:
            return list(TopologicalSorter(self.before).static_order())
        except CycleError as error:
            cycle = " -> ".join(reversed(error.args[1]))
            raise ForeignModelError(
                f"{self.file.source}: edges: a loop that cannot be expressed, {cycle}: a layer of neurons may feed "
                "itself, directly or through one Linear, Affine or Scale"
            ) from error

    def _take_feedback(self) -> dict[str, Feedback]:
        """Finds the loops of layers of neurons onto themselves, and takes their edges out."""
        found: dict[str, Feedback] = {}
        self.feedback_nodes: list[Node] = []
        after: dict[str, list[str]] = {name: [] for name in self.file.nodes}
        for start, end in self.file.edges:
            after[start].append(end)
        for name, node in self.file.nodes.items():
            if node.type not in NEURONS:
                continue
            loops = [
                other
                for other in self.before[name]
                if other == name
                or (
                    self.file.nodes[other].type in ("Linear", "Affine", "Scale")
                    and self.before[other] == [name]
                    and after[other] == [name]
                )
            ]
            if not loops:
                continue
            if len(loops) > 1:
                raise ForeignModelError(
                    f"{self.file.source}: node {name!r} ({node.type}): it feeds itself over several ways"
                )
            self.before[name].remove(loops[0])
            if loops[0] != name:
                self.feedback_nodes.append(self.file.nodes[loops[0]])
                self.before[loops[0]] = []
            found[name] = self._feedback(node, self.file.nodes[loops[0]])
        return found

    def _feedback(self, node: Node, way: Node) -> Feedback:
        if way.type in ("Linear", "Affine"):
            bias = _tensor(way.array("bias")) if way.type == "Affine" else None
            return Feedback(way, _tensor(way.array("weight")), bias)
        size = node.array("v_threshold" if "v_threshold" in node.fields else "r").size
        if size > _WIDEST_FEEDBACK:
            raise node.wrong("edges", f"feedback of {size} neurons onto themselves is too wide")
        scale = torch.ones(size) if way is node else _tensor(way.array("scale"))
        if scale.dim() != 1:
            raise way.wrong("scale", "recurrent layers have one axis")
        return Feedback(way, torch.diag(scale), None)

    def _input(self, node: Node) -> str:
        shape = _shape(node)
        if shape == self.about.input.shape:
            return INPUT
        return self.builder.add(f"{node.name}_shape", [INPUT], "reshape", shape=list(shape))

    def _build(self, node: Node, inputs: Sequence[str]) -> str:
        builder, name = self.builder, node.name
        shape = builder.shape_of(inputs, name)
        if node.type in NEURONS:
            config, tensors = neurons_of(node, shape, self.dt, self.feedback.get(name))
            return builder.add_neurons(name, inputs, config, tensors)
        match node.type:
            case "Linear" | "Affine":
                return self._linear(node, inputs, shape)
            case "Conv1d" | "Conv2d":
                return self._convolution(node, inputs)
            case "AvgPool2d" | "SumPool2d":
                op = "average-pool" if node.type == "AvgPool2d" else "sum-pool"
                return builder.add(
                    name,
                    inputs,
                    op,
                    kernel=node.integers("kernel_size", 2),
                    stride=node.integers("stride", 2),
                    padding=node.integers("padding", 2),
                )
            case "Flatten":
                return builder.add(name, inputs, "reshape", shape=_flattened(node, shape))
            case "Scale":
                scale = _tensor(node.array("scale"))
                if scale.dim() == 0 or scale.numel() == 1:
                    scale = scale.reshape((1,) * len(shape))
                return builder.add(
                    name, inputs, "scale", {"weight": scale}, shape=list(scale.shape)
                )
            case _:
                raise ForeignModelError(
                    f"{self.file.source}: node {name!r}: type: {node.type} is not understood"
                )

    def _linear(self, node: Node, inputs: Sequence[str], shape: tuple[int, ...]) -> str:
        weight = _tensor(node.array("weight"))
        if weight.dim() != 2:
            raise node.wrong("weight", f"shape {tuple(weight.shape)}: a matrix is needed")
        if len(shape) != 1:
            raise node.wrong(
                "weight", f"takes values in a row, and gets {shape}: flatten them first"
            )
        tensors = {"weight": weight}
        if node.type == "Affine":
            tensors["bias"] = _tensor(node.array("bias"))
        return self.builder.add(
            node.name,
            inputs,
            "linear",
            tensors,
            in_features=weight.shape[1],
            out_features=weight.shape[0],
            bias="bias" in tensors,
        )

    def _convolution(self, node: Node, inputs: Sequence[str]) -> str:
        axes = 1 if node.type == "Conv1d" else 2
        weight = _tensor(node.array("weight"))
        if weight.dim() != axes + 2:
            raise node.wrong("weight", f"shape {tuple(weight.shape)}: {axes + 2} axes are needed")
        (groups,) = node.integers("groups", 1)
        bias = _tensor(node.array("bias"))
        if (gains := _diagonal(node, weight, bias)) is not None:
            # What a shortcut becomes where batch norms are folded: one operation a spike, not one for each channel.
            scale = gains.reshape(-1, *(1,) * axes)
            return self.builder.add(
                node.name, inputs, "scale", {"weight": scale}, shape=list(scale.shape)
            )
        padding: Any = node.text("padding")
        if padding is None:
            padding = node.integers("padding", axes)
        return self.builder.add(
            node.name,
            inputs,
            "convolution",
            {"weight": weight, "bias": bias},
            in_channels=weight.shape[1] * groups,
            out_channels=weight.shape[0],
            kernel=tuple(weight.shape[2:]),
            stride=node.integers("stride", axes),
            padding=padding,
            dilation=node.integers("dilation", axes),
            groups=groups,
            bias=True,
        )


def _flattened(node: Node, shape: tuple[int, ...]) -> list[int]:
    (start,), (end,) = node.integers("start_dim", 1), node.integers("end_dim", 1)
    first, last = (x + len(shape) if x < 0 else x for x in (start, end))
    if not 0 <= first <= last < len(shape):
        raise node.wrong(
            "start_dim", f"axes {start} to {end} of values of shape {shape} (without the batch)"
        )
    middle = 1
    for size in shape[first : last + 1]:
        middle *= size
    return [*shape[:first], middle, *shape[last + 1 :]]


def _diagonal(node: Node, weight: Tensor, bias: Tensor) -> Tensor | None:
    """The factors [C] of a convolution that only multiplies each channel."""
    square = weight.shape[0] == weight.shape[1] == weight.numel() // len(weight)
    plain = bool((node.array("stride") == 1).all()) and node.integers("groups", 1) == (1,)
    if not square or not plain or (node.text("padding") is None and node.array("padding").any()):
        return None
    matrix = weight.flatten(1)
    gains = matrix.diagonal()
    return gains if torch.equal(matrix, torch.diag(gains)) and not bool(bias.any()) else None


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(array.astype("float64")).float()
