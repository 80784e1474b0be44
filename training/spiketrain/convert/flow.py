"""What a network does in one timestep, as a list of operations: what exporters write down.

The network's own code is traced once with `torch.fx`; nothing about a particular network is known here.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, fx, nn

from spiketrain.networks import Network
from spiketrain.neurons import NeuronLayer

INPUT = "input"

_ADDITIONS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add)
_RESHAPES: tuple[Any, ...] = ("flatten", "reshape", "view", torch.flatten, torch.reshape)


class ExportError(ValueError):
    """The model cannot be written as asked. The message names the layer and what stands in the way."""


@dataclass(frozen=True)
class Op:
    """One operation on its inputs: a module, a sum, or a reshape. `shape` is that of its output for one sample."""

    name: str
    kind: Literal["module", "add", "reshape"]
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    module: nn.Module | None = None


class Flow(NamedTuple):
    """Operations in an order in which they can run; those named `INPUT` take the network's input."""

    input_shape: tuple[int, ...]
    ops: tuple[Op, ...]
    output: str

    def shape_of(self, name: str) -> tuple[int, ...]:
        return self.input_shape if name == INPUT else self.op(name).shape

    def op(self, name: str) -> Op:
        return next(op for op in self.ops if op.name == name)

    def users(self, name: str) -> list[Op]:
        return [op for op in self.ops if name in op.inputs]

    def only_use(self, name: str) -> bool:
        """Whether exactly one operation, or only the output, takes this one's result, once."""
        uses = sum(op.inputs.count(name) for op in self.ops) + (self.output == name)
        return uses == 1


def network_flow(network: Network) -> Flow:
    """The operations of one timestep. Raises ExportError for what is neither module, sum nor reshape."""
    return traced(_OneStep(network), network.input_shape, (NeuronLayer,), prefix="network.")


class _OneStep(nn.Module):
    timesteps = 1

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.body(self.network.encode(x), self.fire)

    @property
    def fire(self) -> Any:
        return _Fire()


class _Fire:
    timesteps = 1

    def __call__(self, layer: NeuronLayer, current: Tensor) -> Any:
        return layer(current)


def traced(
    root: nn.Module,
    input_shape: tuple[int, ...],
    neurons: tuple[type, ...],
    prefix: str = "",
    containers: Callable[[nn.Module], bool] = lambda module: False,
) -> Flow:
    """`root`, which takes one timestep [N, ...], as operations. `containers` run their children in order."""
    tracer = _Tracer(containers)
    try:
        with _tracing:
            traced_graph = tracer.trace(root)
        graph = fx.GraphModule(root, traced_graph, class_name="Traced")
    except (fx.proxy.TraceError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise ExportError(f"the network's code cannot be followed: {error}") from error
    shapes = _Shapes(graph, neurons)
    parameters = [*root.parameters()]
    dtype = parameters[0].dtype if parameters else torch.float32
    with torch.no_grad():
        try:
            shapes.run(torch.zeros(1, *input_shape, dtype=dtype))
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            where = str(error).partition("\n")[0]
            raise ExportError(f"{shapes.at}: input of shape {input_shape}: {where}") from error
    return _flow(graph, shapes.found, tuple(input_shape), prefix)


# While it traces, torch.fx has its own code in place of every module's call, in all threads.
_tracing = threading.Lock()


class _Tracer(fx.Tracer):
    """Follows the thread that made it, and leaves modules that other threads call meanwhile alone."""

    def __init__(self, containers: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.containers = containers
        self._thread = threading.get_ident()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not self.containers(m) and (
            isinstance(m, NeuronLayer)
            or m.__module__.startswith(("torch.nn", "spiketrain.", "spikingjelly."))
        )

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        if self.containers(m):
            (x,) = args
            for child in m.children():
                x = child(x)
            return x
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


class _Shapes(fx.Interpreter):
    """Runs zeros through, with neurons that pass them on, and notes each value's shape."""

    def __init__(self, graph: fx.GraphModule, neurons: tuple[type, ...]) -> None:
        super().__init__(graph)
        self.neurons = neurons
        self.found: dict[str, tuple[int, ...]] = {}
        self.at = "the network"

    def run_node(self, n: fx.Node) -> Any:
        self.at = str(n.target)
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.found[n.name] = tuple(result.shape[1:])
        return result

    def call_module(self, target: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        if isinstance(module, self.neurons):
            return torch.zeros_like(args[0])
        training = module.training
        module.eval()
        try:
            return super().call_module(target, args, kwargs)
        finally:
            module.train(training)


def _flow(
    graph: fx.GraphModule,
    shapes: Mapping[str, tuple[int, ...]],
    input_shape: tuple[int, ...],
    prefix: str,
) -> Flow:
    names: dict[fx.Node, str] = {}
    ops: list[Op] = []
    taken = {INPUT}
    output = ""
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            names[node] = INPUT
            continue
        if node.op == "output":
            if not isinstance(node.args[0], fx.Node):
                raise ExportError("output: the network gives more than one tensor")
            output = names[node.args[0]]
            continue
        kind = _kind(node)
        wanted = str(node.target).removeprefix(prefix) if kind == "module" else node.name
        name, number = wanted, 2
        while name in taken:
            name, number = f"{wanted}_{number}", number + 1
        taken.add(name)
        names[node] = name
        sources = tuple(names[arg] for arg in node.args if isinstance(arg, fx.Node))
        module = graph.get_submodule(str(node.target)) if kind == "module" else None
        ops.append(Op(name, kind, sources, shapes[node.name], module))
    return Flow(input_shape, tuple(ops), output)


def _kind(node: fx.Node) -> Literal["module", "add", "reshape"]:
    if node.op == "call_module":
        return "module"
    if node.target in _ADDITIONS and len(node.all_input_nodes) > 0 and not node.kwargs:
        if all(isinstance(arg, fx.Node) for arg in node.args):
            return "add"
    elif node.target in _RESHAPES:
        return "reshape"
    raise ExportError(
        f"{node.name}: {node.op.replace('_', ' ')} {node.target!s}: only modules, sums and reshapes are understood"
    )


def without(flow: Flow, unwanted: Callable[[Op], bool]) -> Flow:
    """The flow with operations of one input left out, which then pass their input on."""
    passed: dict[str, str] = {}
    ops = []
    for op in flow.ops:
        inputs = tuple(passed.get(name, name) for name in op.inputs)
        if unwanted(op):
            (passed[op.name],) = inputs
        else:
            ops.append(replace(op, inputs=inputs))
    return Flow(flow.input_shape, tuple(ops), passed.get(flow.output, flow.output))


def insert_after(flow: Flow, name: str, new: Op, users: Iterable[str]) -> Flow:
    """`new`, which takes the result of `name`, between it and the operations called `users`."""
    chosen = set(users)
    ops: list[Op] = [] if name != INPUT else [new]
    for op in flow.ops:
        if op.name in chosen:
            op = replace(op, inputs=tuple(new.name if x == name else x for x in op.inputs))
        ops.append(op)
        if op.name == name:
            ops.append(new)
    return flow._replace(ops=tuple(ops))


def replaced(flow: Flow, name: str, **changes: Any) -> Flow:
    """The flow with changes to one operation."""
    ops = tuple(replace(op, **changes) if op.name == name else op for op in flow.ops)
    return flow._replace(ops=ops)
