"""Rewrites of a flow that keep what it computes: batch norms folded into weights, adaptive poolings made plain."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn

from spiketrain.convert.flow import INPUT, ExportError, Flow, Op, insert_after, replaced, without
from spiketrain.networks import SharedDropout

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Linear)


def without_idle(flow: Flow) -> Flow:
    """Without what does nothing in evaluation: dropouts, identities, reshapes to the same shape."""
    flow = without(
        flow,
        lambda op: isinstance(op.module, nn.Identity | SharedDropout | nn.Dropout | nn.Dropout2d),
    )
    return without(
        flow, lambda op: op.kind == "reshape" and op.shape == flow.shape_of(op.inputs[0])
    )


def without_batch_norms(flow: Flow) -> Flow:
    """Each batch norm folded into the weights before it; where there are none, made a 1x1 convolution.

    Through a sum it is folded into all that is added up.
    """
    for op in [op for op in flow.ops if isinstance(op.module, BATCH_NORMS)]:
        gain, shift = affine_of(cast(nn.BatchNorm2d, op.module), op.name)
        (source,) = flow.op(op.name).inputs
        flow = affine(flow, source, op.name, gain, shift)
        flow = without(flow, lambda other, name=op.name: other.name == name)  # type: ignore[misc]
    return flow


def affine(flow: Flow, source: str, user: str, gain: Tensor, shift: Tensor) -> Flow:
    """The flow in which `user` gets gain [C] times what `source` gives, plus shift [C], both float64."""
    if bool((gain == 1).all()) and bool((shift == 0).all()):
        return flow
    if source != INPUT and flow.only_use(source):
        op = flow.op(source)
        if isinstance(op.module, WEIGHTED) and op.shape[0] == len(gain):
            return replaced(flow, source, module=_scaled(op.module, gain, shift))
        if op.kind == "add" and len(set(op.inputs)) == len(op.inputs):
            for number, name in enumerate(op.inputs):
                added = shift if number == 0 else torch.zeros_like(shift)
                flow = affine(flow, name, source, gain, added)
            return flow
    return insert_after(flow, source, diagonal(flow, source, gain, shift), [user])


def diagonal(flow: Flow, source: str, gain: Tensor, shift: Tensor) -> Op:
    """A layer of weights that multiplies each channel of `source` by its gain and adds its shift."""
    shape = flow.shape_of(source)
    channels, bias = shape[0], bool((shift != 0).any())
    dtype = next((p.dtype for op in flow.ops if op.module for p in op.module.parameters()), None)
    module: nn.Linear | nn.Conv1d | nn.Conv2d
    if len(shape) == 1:
        module = nn.Linear(channels, channels, bias=bias)
    elif len(shape) == 2:
        module = nn.Conv1d(channels, channels, 1, bias=bias)
    elif len(shape) == 3:
        module = nn.Conv2d(channels, channels, 1, bias=bias)
    else:
        raise ExportError(f"{source}: values of shape {shape} cannot be scaled by channel")
    module = module.to(dtype)
    with torch.no_grad():
        module.weight.copy_(torch.diag(gain).view(module.weight.shape))
        if module.bias is not None:
            module.bias.copy_(shift)
    name, number = f"{source}.scale", 2
    while any(op.name == name for op in flow.ops):
        name, number = f"{source}.scale{number}", number + 1
    return Op(name, "module", (source,), shape, module)


def without_adaptive_pools(flow: Flow) -> Flow:
    """Adaptive average poolings as plain ones, or, where they enlarge, as part of the linear layer behind them.

    Raises ExportError where neither is possible.
    """
    for op in [op for op in flow.ops if isinstance(op.module, nn.AdaptiveAvgPool2d)]:
        before, after = flow.shape_of(flow.op(op.name).inputs[0])[1:], op.shape[1:]
        if before == after:
            flow = without(flow, lambda other, name=op.name: other.name == name)  # type: ignore[misc]
        elif all(a % b == 0 for a, b in zip(before, after, strict=True)):
            window = (before[0] // after[0], before[1] // after[1])
            flow = replaced(flow, op.name, module=nn.AvgPool2d(window))
        else:
            flow = _pool_in_linear(flow, op)
    return flow


def _pool_in_linear(flow: Flow, pool: Op) -> Flow:
    reshape = flow.users(pool.name)
    linear = flow.users(reshape[0].name) if len(reshape) == 1 else []
    if (
        not flow.only_use(pool.name)
        or reshape[0].kind != "reshape"
        or len(linear) != 1
        or not flow.only_use(reshape[0].name)
        or not isinstance(linear[0].module, nn.Linear)
    ):
        raise ExportError(
            f"{pool.name}: an adaptive pooling whose windows differ in size, and no linear layer behind it to take "
            "it over"
        )
    shape = flow.shape_of(pool.inputs[0])
    module = linear[0].module
    channels, positions = shape[0], shape[1] * shape[2]
    # Each input position alone, pooled: the pooling as a matrix [positions, pooled].
    basis = torch.eye(positions, dtype=torch.float64).view(positions, 1, *shape[1:])
    matrix = cast(nn.AdaptiveAvgPool2d, pool.module)(basis).flatten(1)
    weight = module.weight.detach().double().view(len(module.weight), channels, -1)
    folded = nn.Linear(channels * positions, len(module.weight), module.bias is not None)
    folded = folded.to(module.weight)
    with torch.no_grad():
        folded.weight.copy_((weight @ matrix.T).flatten(1))
        if module.bias is not None:
            folded.bias.copy_(module.bias)
    flow = without(flow, lambda op: op.name == pool.name)
    flow = replaced(flow, reshape[0].name, shape=(channels * positions,))
    return replaced(flow, linear[0].name, module=folded)


def affine_of(norm: nn.BatchNorm2d, name: str) -> tuple[Tensor, Tensor]:
    if norm.running_mean is None or norm.running_var is None:
        raise ExportError(f"{name}: a batch norm without running statistics cannot be folded")
    gain = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.affine:
        gain = gain * norm.weight.detach().double()
    shift = -norm.running_mean.double() * gain
    return gain, shift + norm.bias.detach().double() if norm.affine else shift


def _scaled(module: nn.Module, gain: Tensor, shift: Tensor) -> nn.Module:
    scaled = cast(nn.Conv2d, copy.deepcopy(module))
    weight = scaled.weight.detach()
    scaled.weight = nn.Parameter(
        (weight.double() * gain.view(-1, *(1,) * (weight.dim() - 1))).to(weight)
    )
    bias = shift if scaled.bias is None else scaled.bias.detach().double() * gain + shift
    if scaled.bias is not None or bool((shift != 0).any()):
        scaled.bias = nn.Parameter(bias.to(weight))
    return scaled
