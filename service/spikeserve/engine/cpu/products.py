"""Products of whole numbers with weights: in float32, with 8-bit weights, or with weights of two 8-bit parts.

The input of a product is spikes, or sums of a few, as whole numbers. With 8-bit weights the sums over them are exact
in 32-bit integers, so they do not depend on the batch or on the machine; one weight is off by up to 1/254 of the
largest of its output channel. `int16` is the same twice: codes of 15 bits and a sign as 256 high + low, each part with
a product of its own, whose results are added in float32; what little is missing is made up for by `exact.py`.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from spikeserve.engine.cpu import amx, windows
from spikeserve.engine.cpu.plan import Product, plan_of
from spikeserve.engine.cpu.tiles import Tiles
from spiketrain.networks import Network
from spiketrain.quantise import codes_by_channel

Precision = Literal["float32", "int16", "int8"]

_LARGEST: dict[Precision, int] = {"int8": 127, "int16": 127 * 256 + 127}

# Positions of a map that is small, and rows to try it with.
_SMALL_MAP = 16
_ROWS = 16
_RUNS = 5

# How far a weight may be from its code, in steps of the code, to be that of a checkpoint with 8-bit weights.
_ROUNDING = 1e-3


def faithful_precisions(network: Network) -> tuple[Precision, ...]:
    """Those that give the checkpoint's own answers: 8 bits only where its weights are of 8 bits already.

    Raises UnsupportedError for a network that the CPU executor does not run.
    """
    plan = plan_of(network)
    products = [product for layer in plan.layers for product in layer.products]
    exact = all(_is_exact(product.weight) for product in products)
    return ("int8", "float32") if exact else ("int16", "float32")


def _is_exact(weight: Tensor) -> bool:
    codes, scale = codes_by_channel(weight)
    steps = weight.double() / scale.double().view(-1, *(1,) * (weight.dim() - 1))
    return bool(((steps - codes).abs() <= _ROUNDING).all())


def rounded(weight: Tensor, precision: Precision) -> Tensor:
    """The weights that a precision stands for, float64."""
    if precision == "float32":
        return weight.float().double()
    codes, scale = codes_by_channel(weight, _LARGEST[precision])
    return codes.double() * scale.double().view(-1, *(1,) * (weight.dim() - 1))


class Multiply(Protocol):
    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """Values [rows, C, H, W], channels last, to currents whose sum is meant; their memory is channels last."""


def multiply(product: Product, precision: Precision, input_shape: tuple[int, ...]) -> Multiply:
    """`input_shape` is that of the values it will be given, [C, H, W].

    Whole numbers are multiplied in the processor's tiles where it has some. Elsewhere small maps are tried as a matrix
    product, too: which is faster depends on the processor. Both give the same.
    """
    if precision == "float32":
        return _Float(product, input_shape)
    if product.groups == 1 and amx.available():
        codes, scale = codes_by_channel(product.weight, _LARGEST[precision])
        return Tiles(product, codes, scale, two=precision == "int16")
    convolution = _Whole(product, precision, input_shape)
    if product.groups > 1 or product.dilation != (1, 1) or product.weight[0, 0].numel() == 1:
        return convolution
    if input_shape[1] * input_shape[2] > _SMALL_MAP:
        return convolution
    unfolded = _Unfolded(product, precision)
    x = torch.zeros(_ROWS, *input_shape, dtype=torch.uint8)
    x = x.contiguous(memory_format=torch.channels_last)
    ways: tuple[Multiply, ...] = (convolution, unfolded)
    return min(ways, key=lambda way: _seconds(way, x))


def _seconds(way: Multiply, x: Tensor) -> float:
    """The fastest of some runs, after one that prepares."""
    way(x)
    times = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        way(x)
        times.append(time.perf_counter() - start)
    return min(times)


class _Float:
    def __init__(self, product: Product, shape: tuple[int, ...]) -> None:
        self._geometry = (list(product.padding), list(product.stride), list(product.dilation))
        self._groups, self._bias = product.groups, product.bias
        weight = product.weight.float().contiguous(memory_format=torch.channels_last)
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(
            weight, *self._geometry, product.groups, [4, *shape]
        )

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self._weight, self._bias, *self._geometry, self._groups, "none", [], ""
        )
        return (y.contiguous(memory_format=torch.channels_last),)


class _Whole:
    def __init__(self, product: Product, precision: Precision, shape: tuple[int, ...]) -> None:
        self._geometry = (list(product.stride), list(product.padding), list(product.dilation))
        self._groups = product.groups
        self._bias = None if product.bias is None else product.bias.float()
        self._zeros = torch.zeros(len(product.weight), dtype=torch.int32)
        codes, scale = codes_by_channel(product.weight, _LARGEST[precision])
        parts = [(codes, scale)]
        if precision == "int16":
            high = torch.div(codes + 128, 256, rounding_mode="floor")
            parts = [(high, scale * 256), (codes - 256 * high, scale)]
        self._parts = [
            (self._prepacked(part.to(torch.int8), scale, shape), scale) for part, scale in parts
        ]

    def _prepacked(self, codes: Tensor, scale: Tensor, shape: tuple[int, ...]) -> Tensor:
        packed: Tensor = torch.ops.onednn.qconv_prepack(
            codes, scale, 1.0, 0, *self._geometry, self._groups, [4, *shape]
        )
        return packed

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        results: list[Any] = []
        for number, (weight, scale) in enumerate(self._parts):
            results.append(
                torch.ops.onednn.qconv2d_pointwise(
                    x,
                    1.0,
                    0,
                    weight,
                    scale,
                    self._zeros,
                    None if number else self._bias,
                    *self._geometry,
                    self._groups,
                    1.0,
                    0,
                    torch.float32,
                    "none",
                    [],
                    "",
                )
            )
        return tuple(results)


class _Unfolded:
    """A convolution as one matrix product, of windows that are copied out of the map."""

    def __init__(self, product: Product, precision: Precision) -> None:
        self._kernel = tuple(product.weight.shape[2:])
        self._stride, self._padding = product.stride, product.padding
        weight = product.weight.permute(0, 2, 3, 1).reshape(len(product.weight), -1, 1, 1)
        flat = replace(product, weight=weight, stride=(1, 1), padding=(0, 0))
        self._multiply = _Whole(flat, precision, (weight.shape[1], 64, 1))

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        values = x.permute(0, 2, 3, 1).numpy()
        rows, *size, channels = values.shape
        height, width = (
            (before + 2 * pad - kernel) // stride + 1
            for before, pad, kernel, stride in zip(
                size, self._padding, self._kernel, self._stride, strict=True
            )
        )
        copies = np.empty((rows, height, width, *self._kernel, channels), values.dtype)
        windows.unfold(values, self._kernel, self._stride, self._padding, copies)
        # All windows as the positions of one map.
        flat = torch.from_numpy(copies).view(1, rows * height * width, 1, -1).permute(0, 3, 1, 2)
        return tuple(
            part.permute(0, 2, 3, 1).reshape(rows, height, width, -1).permute(0, 3, 1, 2)
            for part in self._multiply(flat)
        )
