"""What reaches one layer of neurons, and where its currents can be shifted and scaled by channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from spiketrain.convert.flow import INPUT, ExportError, Flow, network_flow
from spiketrain.convert.folding import affine_of
from spiketrain.networks import Network
from spiketrain.neurons import NeuronLayer

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_BIASED = (nn.Conv1d, nn.Conv2d, nn.Linear)

# Currents of one layer that are kept at once: more samples than fit are not looked at.
MOST_CURRENTS = 1 << 25


# What is no layer's name: where the logits come from.
LOGITS = ""


class _ReachedError(Exception):
    pass


@torch.no_grad()
def currents_of(network: Network, name: str, batches: Sequence[Tensor]) -> Tensor:
    """The currents [T, N, C, ...] that reach the layer called `name`, over inputs as `Network.forward` takes them.

    What lies behind the layer is not computed. Samples past `MOST_CURRENTS` values are left out, whole batches at a
    time, but for the first.
    """
    kept: list[Tensor] = []

    def keep(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        kept.append(arguments[0])
        raise _ReachedError

    handle = network.get_submodule(name).register_forward_pre_hook(keep)
    try:
        for x in batches:
            if kept and (len(kept) + 1) * kept[0].numel() > MOST_CURRENTS:
                break
            try:
                network(x)
            except _ReachedError:
                continue
            raise ValueError(f"{name}: the network never asks these neurons")
    finally:
        handle.remove()
    if not kept:
        raise ValueError(f"{name}: no inputs to calibrate with")
    # The same current at every timestep stays one in memory.
    if all(x.stride(0) == 0 for x in kept):
        return torch.cat([x[0] for x in kept]).expand(len(kept[0]), *[-1] * (kept[0].dim() - 1))
    return torch.cat(kept, 1)


class Moments(NamedTuple):
    """Mean and variance of currents by channel [C], float64."""

    mean: Tensor
    variance: Tensor


def moments_of(currents: Tensor) -> Moments:
    axes = [axis for axis in range(currents.dim()) if axis != 2]
    values = currents.double()
    return Moments(values.mean(axes), values.var(axes, correction=0))


class _Place(NamedTuple):
    module: nn.Module
    alone: bool  # whether it gives the currents, and not a sum that it is part of
    weights: nn.Module | None = None  # the layer of weights before, or the module itself


class Knobs:
    """The batch norms and biases through which the currents of each layer of neurons pass last."""

    def __init__(self, network: Network) -> None:
        self.places: dict[str, _Place] = {}
        try:
            flow = network_flow(network)
        except ExportError:  # a network whose code cannot be followed has no place that is known
            return
        last = _last_affine(flow, flow.output, flow.shape_of(flow.output)[0])
        if last is not None:
            self.places[LOGITS] = last
        for op in flow.ops:
            if isinstance(op.module, NeuronLayer):
                place = _last_affine(flow, op.inputs[0], op.shape[0])
                if place is not None:
                    self.places[op.name] = place

    def norm(self, name: str) -> nn.BatchNorm2d | None:
        """The batch norm that gives the layer its currents, None where something else does."""
        place = self.places.get(name)
        if place is None or not place.alone or not isinstance(place.module, _NORMS):
            return None
        return cast(nn.BatchNorm2d, place.module)

    def weights(self, name: str) -> nn.Conv2d | nn.Linear | None:
        """The layer of weights that alone gives the currents, through a batch norm or not; None for other kinds."""
        place = self.places.get(name)
        module = None if place is None or not place.alone else place.weights
        if isinstance(module, nn.Linear):
            return module
        if isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros":
            return None if isinstance(module.padding, str) else module
        return None

    def gain(self, name: str) -> Tensor:
        """By what the layer's batch norm multiplies, by channel [C]; ones without one."""
        norm = self.norm(name)
        if norm is not None:
            gain, _ = affine_of(norm, name)
            return gain.to(norm.weight)
        weights = self.weights(name)
        if weights is None:
            raise ValueError(f"{name}: no layer of weights gives its currents alone")
        return torch.ones(len(weights.weight)).to(weights.weight)

    @torch.no_grad()
    def shift(self, name: str, amount: Tensor) -> bool:
        """Add amount [C] to the layer's currents, or to the `LOGITS`. False where there is no bias to add it to."""
        place = self.places.get(name)
        if place is None:
            return False
        bias = cast(Tensor, place.module.bias)
        bias += amount.to(bias)
        return True

    @torch.no_grad()
    def standardise(self, name: str, found: Moments, wanted: Moments) -> bool:
        """Change a batch norm's statistics so that currents of moments `found` get those `wanted`.

        The parent's own statistics come from all of its training; the change is relative to them, so that what the
        few calibration samples have that the training set has not is in neither.
        """
        norm = self.norm(name)
        if norm is None or norm.running_mean is None or norm.running_var is None:
            return False
        least = 1e-4 * wanted.variance.mean().clamp(min=1e-12)
        ratio = ((found.variance + least) / (wanted.variance + least)).clamp(0.25, 4).sqrt()
        gain = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.affine:
            gain = gain * norm.weight.double()
        # gain / ratio (x - m') + shift has the wanted mean where gain (x - m) + shift had the one found.
        safe = torch.where(gain == 0, torch.ones_like(gain), gain)
        offset = norm.bias.double() if norm.affine else torch.zeros_like(gain)
        moved = (found.mean - offset) / safe - (wanted.mean - offset) * ratio / safe
        moved = torch.where(gain == 0, torch.zeros_like(moved), moved)
        norm.running_mean += moved.to(norm.running_mean)
        variance = (norm.running_var.double() + norm.eps) * ratio**2 - norm.eps
        norm.running_var.copy_(variance.clamp(min=0).to(norm.running_var))
        return True


def _last_affine(flow: Flow, source: str, channels: int) -> _Place | None:
    if source == INPUT or not flow.only_use(source):
        return None
    op = flow.op(source)
    if op.kind == "add":
        found = (_last_affine(flow, name, channels) for name in op.inputs)
        part = next((place for place in found if place is not None), None)
        return None if part is None else part._replace(alone=False)
    has_bias = getattr(op.module, "bias", None) is not None and op.shape[0] == channels
    if op.module is not None and isinstance(op.module, (*_NORMS, *_BIASED)) and has_bias:
        below = op.inputs[0] if isinstance(op.module, _NORMS) else op.name
        only = below != INPUT and (below == op.name or flow.only_use(below))
        return _Place(op.module, True, flow.op(below).module if only else None)
    return None
