"""A network whose structure is data: what NIR files and networks of other libraries become.

Nodes stand in a dictionary of operations joined by names; a node with several inputs adds them up, as NIR's do.
Feedback within one timestep is not possible: a recurrent layer carries it in its neurons (`neurons.integrator`).
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor, nn

from spiketrain.networks.base import Fire, Network, NeuronFactory, SharedDropout

INPUT = "input"

Positive = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
Pair = tuple[Positive, Positive]


class _Node(BaseModel):
    """`inputs` are names of nodes that come before, or "input"; several are added up."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=120)
    inputs: tuple[str, ...] = Field(min_length=1)


class Convolution(_Node):
    """One value of `kernel`, `stride`, `padding`, `dilation` a spatial axis: one or two axes."""

    op: Literal["convolution"] = "convolution"
    in_channels: Positive
    out_channels: Positive
    kernel: tuple[Positive, ...] = Field(min_length=1, max_length=2)
    stride: tuple[Positive, ...]
    padding: tuple[Natural, ...] | Literal["same", "valid"]
    dilation: tuple[Positive, ...]
    groups: Positive = 1
    bias: bool = True


class Linear(_Node):
    op: Literal["linear"] = "linear"
    in_features: Positive
    out_features: Positive
    bias: bool = True


class Norm(_Node):
    """Batch norm over channels of inputs [C] (`axes` 0) or [C, H, W] (2)."""

    op: Literal["batch-norm"] = "batch-norm"
    channels: Positive
    axes: Literal[0, 2]
    eps: float = Field(1e-5, ge=0)
    affine: bool = True


class Pool(_Node):
    """Padding counts in an average as zeros."""

    op: Literal["average-pool", "sum-pool", "max-pool"]
    kernel: Pair
    stride: Pair
    padding: tuple[Natural, Natural] = (0, 0)


class AdaptivePool(_Node):
    op: Literal["adaptive-average-pool"] = "adaptive-average-pool"
    size: Pair


class Reshape(_Node):
    """To `shape`, of one sample."""

    op: Literal["reshape"] = "reshape"
    shape: tuple[Positive, ...] = Field(min_length=1, max_length=4)


class Scaling(_Node):
    """Times a weight for each value; `shape` is that of one sample, or [C, 1, 1]."""

    op: Literal["scale"] = "scale"
    shape: tuple[Positive, ...] = Field(min_length=1, max_length=4)


class Drop(_Node):
    op: Literal["dropout"] = "dropout"
    p: float = Field(ge=0, lt=1)


class Neurons(_Node):
    op: Literal["neurons"] = "neurons"
    channels: Positive


GraphNode = Annotated[
    Convolution | Linear | Norm | Pool | AdaptivePool | Reshape | Scaling | Drop | Neurons,
    Field(discriminator="op"),
]
_NODES: TypeAdapter[tuple[GraphNode, ...]] = TypeAdapter(tuple[GraphNode, ...])


class Scale(nn.Module):
    """Multiplies by a weight for each value of a sample, or for each channel."""

    bias = None

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(*shape))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class GraphNetwork(Network):
    """`nodes` are `GraphNode`s as dictionaries, each after those it takes its inputs from; `output` names the last.

    Raises ValueError, naming the node, for nodes that make no network.
    """

    def __init__(
        self,
        neurons: NeuronFactory,
        input_shape: Sequence[int],
        classes: int,
        nodes: Sequence[Mapping[str, Any]],
        output: str | Sequence[str],
    ) -> None:
        super().__init__(tuple(input_shape), classes, neurons.timesteps)
        self._nodes = parsed_nodes(nodes)
        self._outputs = (output,) if isinstance(output, str) else tuple(output)
        self._check_order()
        for node in self._nodes:
            if not isinstance(node, Reshape):
                if hasattr(self, node.name):
                    raise ValueError(
                        f"node {node.name!r}: this name is taken, by another or by torch"
                    )
                self.add_module(node.name, node_module(node, neurons))
        if next(self.parameters(), None) is None:
            raise ValueError("nodes: none of them has a weight")
        self._encoder, self._rest = self._parts()

    def _check_order(self) -> None:
        known = {INPUT}
        for node in self._nodes:
            if node.name in known:
                raise ValueError(f"node {node.name!r}: two nodes have this name")
            for source in node.inputs:
                if source not in known:
                    raise ValueError(f"node {node.name!r}: inputs: {source!r} is no node before it")
            known.add(node.name)
        if not self._outputs or (missing := set(self._outputs) - known):
            raise ValueError(f"output: {min(missing, default='nothing')!r} is no node")
        if not any(isinstance(node, Neurons) for node in self._nodes):
            raise ValueError("nodes: there is no layer of neurons")

    def _parts(self) -> tuple[tuple[GraphNode, ...], tuple[GraphNode, ...]]:
        """The chain of stateless nodes that the input goes through before it forks or meets neurons; the others."""
        users: dict[str, int] = {}
        for source in (*self._outputs, *(source for node in self._nodes for source in node.inputs)):
            users[source] = users.get(source, 0) + 1
        chain: list[GraphNode] = []
        at = INPUT
        for node in self._nodes:
            stateless = not isinstance(node, Neurons | Drop)
            if not stateless or node.inputs != (at,) or users[at] != 1:
                break
            chain.append(node)
            at = node.name
        return tuple(chain), self._nodes[len(chain) :]

    def encode(self, x: Tensor) -> Tensor:
        for node in self._encoder:
            x = self._stateless(node, x)
        return x

    def body(self, x: Tensor, fire: Fire) -> Tensor:
        values = {self._encoder[-1].name if self._encoder else INPUT: x}
        for node in self._rest:
            current = _sum([values[source] for source in node.inputs], fire.timesteps)
            if isinstance(node, Neurons):
                layer: Any = self.get_submodule(node.name)
                values[node.name] = fire(layer, current)
            elif isinstance(node, Drop):
                values[node.name] = self.get_submodule(node.name)(current, fire.timesteps)
            else:
                values[node.name] = self._stateless(node, current)
        return _sum([values[source] for source in self._outputs], fire.timesteps)

    def _stateless(self, node: GraphNode, x: Tensor) -> Tensor:
        if isinstance(node, Reshape):
            return x.reshape(-1, *node.shape)
        return cast(Tensor, self.get_submodule(node.name)(x))


def free_name(wanted: str, taken: set[str]) -> str:
    """A name for a node like `wanted` that no node, module or keyword has; it is added to `taken`."""
    base = re.sub(r"\W", "_", wanted, flags=re.ASCII).lstrip("_")[:100] or "node"
    if not re.match("[A-Za-z_]", base) or keyword.iskeyword(base) or hasattr(_PLAIN, base):
        base = f"node_{base}"
    name, number = base, 2
    while name in taken or name == INPUT or hasattr(_PLAIN, name):
        name, number = f"{base}_{number}", number + 1
    taken.add(name)
    return name


def parsed_nodes(nodes: Sequence[Mapping[str, Any]]) -> tuple[GraphNode, ...]:
    try:
        return _NODES.validate_python(nodes)
    except ValidationError as error:
        first = error.errors()[0]
        where = first["loc"]
        name: Any = where[0] if where else ""
        if where and isinstance(where[0], int) and isinstance(nodes[where[0]], Mapping):
            name = nodes[where[0]].get("name", name)
        field = ".".join(map(str, where[2:]))
        raise ValueError(f"node {name!r}: {field or 'op'}: {first['msg']}") from error


def _sum(values: Sequence[Tensor], timesteps: int) -> Tensor:
    if timesteps > 1 and len(values) > 1:
        # An input that stays the same has one row a sample until it meets neurons, all else one a timestep.
        most = max(len(value) for value in values)
        values = [
            value if len(value) == most else value.expand(timesteps, *value.shape).flatten(0, 1)
            for value in values
        ]
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


def node_module(node: GraphNode, neurons: NeuronFactory) -> nn.Module:
    make: Callable[..., nn.Module]
    match node:
        case Convolution():
            return _convolution(node)
        case Linear():
            return nn.Linear(node.in_features, node.out_features, node.bias)
        case Norm():
            make = nn.BatchNorm2d if node.axes == 2 else nn.BatchNorm1d
            return make(node.channels, node.eps, affine=node.affine)
        case Pool(op="max-pool"):
            return nn.MaxPool2d(node.kernel, node.stride, node.padding)
        case Pool():
            divisor = 1 if node.op == "sum-pool" else None
            return nn.AvgPool2d(node.kernel, node.stride, node.padding, divisor_override=divisor)
        case AdaptivePool():
            return nn.AdaptiveAvgPool2d(node.size)
        case Scaling():
            return Scale(node.shape)
        case Drop():
            return SharedDropout(node.p)
        case Neurons():
            return neurons(node.name, node.channels)
        case _:
            raise ValueError(f"node {node.name!r}: a {node.op} is no module")


def _convolution(node: Convolution) -> nn.Module:
    axes = len(node.kernel)
    for field in ("stride", "padding", "dilation"):
        value = getattr(node, field)
        if not isinstance(value, str) and len(value) != axes:
            raise ValueError(f"node {node.name!r}: {field}: {axes} values are needed")
    make: Any = nn.Conv1d if axes == 1 else nn.Conv2d
    fields = ("kernel", "stride", "padding", "dilation", "groups", "bias")
    sizes = [getattr(node, field) for field in fields]
    try:
        module: nn.Module = make(node.in_channels, node.out_channels, *sizes)
    except ValueError as error:
        raise ValueError(f"node {node.name!r}: {error}") from error
    return module


class _Plain(Network):
    def body(self, x: Tensor, fire: Fire) -> Tensor:
        return x


_PLAIN = _Plain((1,), 1, 1)
