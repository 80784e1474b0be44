"""A network as the CPU executor runs it: layers of neurons, each with the products that make its current.

Batch norms are folded into weights, average poolings are sums whose division is folded into the weights behind them,
so that every product but the first has whole numbers as its input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from spikeserve.engine.choose import UnsupportedError
from spiketrain.convert.flow import INPUT, ExportError, Flow, Op, traced
from spiketrain.convert.folding import (
    without_adaptive_pools,
    without_batch_norms,
    without_idle,
)
from spiketrain.networks import Network
from spiketrain.neurons import NeuronLayer

LARGEST_SUM = 127
"""What a sum over a window may be at most, so that eight bits hold it on every machine."""


@dataclass(frozen=True)
class Product:
    """A convolution, [K, C, h, w], of the values called `source`; a linear layer is one of a single position."""

    name: str
    source: str
    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    flat: bool = False  # takes all values of its source as channels of one position


@dataclass(frozen=True)
class Pool:
    """Sums of the values called `source` over windows; `shape` is that of its result, [C, H, W]."""

    name: str
    source: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """Neurons [C, ...], whose current is all products, plus `gain` [C] times the spikes of `residual`.

    Without products it is the network's input, times `gain` plus `shift` where they are given.
    """

    name: str
    shape: tuple[int, ...]
    products: tuple[Product, ...]
    residual: str | None = None
    gain: Tensor | None = None
    shift: Tensor | None = None


@dataclass(frozen=True)
class Plan:
    """`steps` in the order in which they can run; the logits are the sum of `outputs`."""

    steps: tuple[Layer | Pool, ...]
    outputs: tuple[Product, ...]

    @property
    def multiplications(self) -> int:
        """Of one timestep of one sample, padding included."""
        total = sum(product.weight.numel() for product in self.outputs)
        for layer in self.layers:
            positions = math.prod(layer.shape[1:])
            total += sum(product.weight.numel() * positions for product in layer.products)
        return total

    @property
    def layers(self) -> tuple[Layer, ...]:
        return tuple(step for step in self.steps if isinstance(step, Layer))

    def shape_of(self, name: str) -> tuple[int, ...]:
        return next(step.shape for step in self.steps if step.name == name)


@torch.no_grad()
def plan_of(network: Network) -> Plan:
    """Raises UnsupportedError for a network that is not made of convolutions, linear layers, averages and sums."""
    for name, layer in network.neuron_layers().items():
        if not layer.config.spiking:
            raise UnsupportedError(f"{name}: its neurons give potentials, not spikes")
    like = next(network.parameters())
    encoded = network.encode(like.new_zeros(1, *network.input_shape))
    try:
        flow = traced(_Body(network), tuple(encoded.shape[1:]), (NeuronLayer,), prefix="network.")
        flow = without_adaptive_pools(without_batch_norms(without_idle(flow)))
    except ExportError as error:
        raise UnsupportedError(str(error)) from error
    return _Planner(flow).plan()


class _Body(nn.Module):
    """All of a network that follows its encoder, for one timestep."""

    timesteps = 1

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.body(x, self.fire)

    @property
    def fire(self) -> Any:
        return _Fire()


class _Fire:
    timesteps = 1

    def __call__(self, layer: NeuronLayer, current: Tensor) -> Any:
        return layer(current)


@dataclass(frozen=True)
class _Value:
    """Whole numbers between 0 and `largest`, called `name`; what the network means is `scale` times them."""

    name: str
    scale: float = 1.0
    largest: int = 1
    flat: bool = False


class _Planner:
    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.values: dict[str, _Value] = {}
        self.steps: list[Layer | Pool] = []
        self.input_taken = False

    def plan(self) -> Plan:
        for op in self.flow.ops:
            self._see(op)
        products, residuals, analog = self._parts(self.flow.output, "the output")
        if residuals or analog:
            raise UnsupportedError("the output: it is not made by layers of weights")
        if not self.steps:
            raise UnsupportedError("there is no layer of neurons")
        return Plan(tuple(self.steps), tuple(products))

    def _see(self, op: Op) -> None:
        if isinstance(op.module, NeuronLayer):
            self._see_neurons(op)
        elif isinstance(op.module, nn.AvgPool2d) and op.inputs[0] in self.values:
            self._see_pool(op, op.module)
        elif op.kind == "reshape" and op.inputs[0] in self.values:
            if len(op.shape) != 1:
                raise UnsupportedError(f"{op.name}: a reshape to {op.shape}")
            source = self.values[op.inputs[0]]
            self.values[op.name] = _Value(source.name, source.scale, source.largest, True)
        elif op.kind == "module" and not isinstance(op.module, nn.Conv2d | nn.Linear):
            raise UnsupportedError(
                f"{op.name}: a {type(op.module).__name__} is not among its layers"
            )

    def _see_neurons(self, op: Op) -> None:
        products, residuals, analog = self._parts(op.inputs[0], op.name)
        gain = shift = None
        residual = None
        if analog is not None:
            if products or residuals or self.input_taken:
                raise UnsupportedError(f"{op.name}: the input reaches more than one place")
            self.input_taken = True
            gain, shift = analog
        elif len(residuals) > 1 or not products:
            raise UnsupportedError(f"{op.name}: a current that is not made by layers of weights")
        elif residuals:
            residual, gain = residuals[0]
        self.steps.append(Layer(op.name, op.shape, tuple(products), residual, gain, shift))
        self.values[op.name] = _Value(op.name)

    def _see_pool(self, op: Op, pool: nn.AvgPool2d) -> None:
        source = self.values[op.inputs[0]]
        kernel, stride, padding = map(_pair, (pool.kernel_size, pool.stride, pool.padding))
        window = kernel[0] * kernel[1]
        if padding != (0, 0) or pool.ceil_mode or source.flat:
            raise UnsupportedError(f"{op.name}: a pooling with padding")
        if source.largest * window > LARGEST_SUM:
            raise UnsupportedError(
                f"{op.name}: a pooling over {window} values, whose sum is too large"
            )
        divisor = pool.divisor_override or window
        self.steps.append(Pool(op.name, source.name, kernel, stride, op.shape))
        self.values[op.name] = _Value(op.name, source.scale / divisor, source.largest * window)

    def _parts(
        self, name: str, where: str
    ) -> tuple[list[Product], list[tuple[str, Tensor]], tuple[Tensor, Tensor] | None]:
        """What adds up to the value called `name`: products, spikes with their gains, and the input with its affine."""
        if name == INPUT:
            channels = self.flow.input_shape[0]
            return [], [], (torch.ones(channels), torch.zeros(channels))
        if name in self.values:
            value = self.values[name]
            if value.flat or value.largest > 1:
                raise UnsupportedError(f"{where}: sums of spikes that reach neurons directly")
            channels = self.flow.shape_of(name)[0]
            return [], [(value.name, torch.full((channels,), value.scale))], None
        op = self.flow.op(name)
        if op.kind == "add":
            return self._sum(op, where)
        module = cast(nn.Conv2d | nn.Linear, op.module)
        if op.kind != "module" or op.inputs[0] not in self.values:
            return self._of_input(op, where)
        value = self.values[op.inputs[0]]
        diagonal = _diagonal(module)
        if diagonal is not None and module.bias is None and value.largest == 1 and not value.flat:
            return [], [(value.name, diagonal * value.scale)], None
        return [self._product(op, module, value)], [], None

    def _sum(
        self, op: Op, where: str
    ) -> tuple[list[Product], list[tuple[str, Tensor]], tuple[Tensor, Tensor] | None]:
        products, residuals = [], []
        for source in op.inputs:
            more, others, analog = self._parts(source, where)
            if analog is not None:
                raise UnsupportedError(f"{where}: the input is added to something else")
            products += more
            residuals += others
        return products, residuals, None

    def _of_input(
        self, op: Op, where: str
    ) -> tuple[list[Product], list[tuple[str, Tensor]], tuple[Tensor, Tensor] | None]:
        """The input, scaled by channel; anything more belongs into the network's encoder."""
        diagonal = _diagonal(op.module)
        if op.inputs != (INPUT,) or diagonal is None:
            raise UnsupportedError(f"{where}: {op.name} is applied to values that are no spikes")
        bias = cast(nn.Conv2d, op.module).bias
        return [], [], (diagonal, torch.zeros_like(diagonal) if bias is None else bias.detach())

    def _product(self, op: Op, module: nn.Conv2d | nn.Linear, value: _Value) -> Product:
        weight = module.weight.detach() * value.scale
        bias = None if module.bias is None else module.bias.detach()
        if isinstance(module, nn.Linear):
            shape = self._shape(value.name)
            if not value.flat and len(shape) > 1:
                raise UnsupportedError(f"{op.name}: a linear layer over one axis of several")
            if len(shape) == 3:  # the values lie channels last
                weight = weight.view(len(weight), *shape).permute(0, 2, 3, 1)
            weight = weight.reshape(len(weight), -1, 1, 1)
            return Product(op.name, value.name, weight, bias, flat=True)
        if module.padding_mode != "zeros" or isinstance(module.padding, str):
            raise UnsupportedError(f"{op.name}: a convolution with other than zero padding")
        return Product(
            op.name,
            value.name,
            weight,
            bias,
            _pair(module.stride),
            _pair(module.padding),
            _pair(module.dilation),
            module.groups,
        )

    def _shape(self, name: str) -> tuple[int, ...]:
        return next(step.shape for step in self.steps if step.name == name)


def _diagonal(module: nn.Module | None) -> Tensor | None:
    """The gains of a 1x1 convolution, or linear layer, that only scales each channel."""
    if not isinstance(module, nn.Conv2d | nn.Linear):
        return None
    weight = module.weight.detach()
    if weight.shape[0] != weight.shape[1] or math.prod(weight.shape[2:]) != 1:
        return None
    if isinstance(module, nn.Conv2d) and (
        module.groups != 1 or _pair(module.stride) != (1, 1) or _pair(module.padding) != (0, 0)
    ):
        return None
    matrix = weight.view(weight.shape[:2])
    gains = matrix.diagonal()
    return gains.clone() if torch.equal(torch.diag(gains), matrix) else None


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
