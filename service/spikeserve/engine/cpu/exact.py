"""Which neurons are computed once more in float32, because rounded weights could make them fire otherwise.

Weights of 16 bits are off by so little that only a neuron whose potential comes very near its threshold can be wrong. There
are few of them, so that their currents can be computed again, one by one, with the weights as they are. Without that, one
wrong spike makes others, from layer to layer, until a network that is not sure of its answer gives another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spikeserve.engine.cpu.cells import tiled
from spikeserve.engine.cpu.plan import Layer, Plan, Pool, Product
from spikeserve.engine.cpu.products import Precision, rounded

Array = NDArray[Any]

_DEVIATIONS = 4.0
"""How many standard deviations of the error of a potential are near. Fewer than one in 10,000 errors are larger."""

_FLOAT = 2e-6
"""What float32 adds to the error of a potential."""


@dataclass(frozen=True)
class Exact:
    """As `loops.advance` wants it; `products` are weights [K, h, w, C], geometry, name and shape [H, W, C] of the source.

    `margin` [width of a block] is empty where nothing is computed again.
    """

    margin: Array
    bias: Array
    layout: Array
    products: tuple[tuple[Array, Array, str, tuple[int, int, int]], ...] = ()


def exact_of(plan: Plan, layer: Layer, precision: Precision) -> Exact:
    """For the other precisions, and for layers of more products than the loops take, it is empty."""
    products = layer.products
    simple = 0 < len(products) <= 2 and all(product.groups == 1 for product in products)
    layout = np.zeros(6, np.int64)
    if precision != "int16" or not simple:
        return Exact(np.empty(0, np.float32), np.empty(0, np.float32), layout)
    channels, _, width = (*layer.shape, 1, 1)[:3]
    layout[:2] = channels, width
    bias = sum((p.bias for p in products if p.bias is not None), torch.zeros(channels)).float()
    variance = torch.stack([_variance(plan, product) for product in products]).sum(0)
    # A leak of a half keeps a third more than what one timestep adds; others up to several times that.
    margin = _DEVIATIONS * (2 * variance).sqrt() + _FLOAT
    return Exact(
        tiled(margin.view(1, -1))[0],
        bias.contiguous().numpy(),
        layout,
        tuple(_weights(plan, product) for product in products),
    )


def _variance(plan: Plan, product: Product) -> torch.Tensor:
    """By channel [K], of the error of a current: half of the inputs at their most."""
    error = (product.weight.double() - rounded(product.weight, "int16")).flatten(1)
    return (error.square().sum(1) * (largest(plan, product.source) ** 2 / 4)).float()


def largest(plan: Plan, name: str) -> int:
    """The largest of the values called `name`: 1 for spikes, more for sums of them."""
    step = next(step for step in plan.steps if step.name == name)
    if isinstance(step, Pool):
        return step.kernel[0] * step.kernel[1] * largest(plan, step.source)
    return 1


def _weights(plan: Plan, product: Product) -> tuple[Array, Array, str, tuple[int, int, int]]:
    channels, height, width = (*plan.shape_of(product.source), 1, 1)[:3]
    shape = (height, width, channels)
    if product.flat:
        shape = (1, 1, channels * height * width)
    geometry = np.array([*product.stride, *product.padding, *product.dilation], np.int64)
    weights: Array = product.weight.float().permute(0, 2, 3, 1).contiguous().numpy()
    return weights, geometry, product.source, shape
