"""Weights in eight bits, with one scale for each output channel.

    code = round(weight / scale), scale = largest |weight| of the channel / 127

Spikes are 0 or 1 and need no scale, so what is lost is the rounding of weights. A batch norm behind a layer only changes
its scales and adds a bias: folding it in leaves the codes as they are. What rounding shifts the mean current of a
channel by, measured on calibration data, is taken off again (bias correction).

On disk the codes have the weight's name, and the scales are beside them under that name with "_scale" added.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from spiketrain.manifest import Manifest, QuantisationRecord
from spiketrain.networks import Network
from spiketrain.rates import each_step

LARGEST = 127
_SCALE = "_scale"
_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Linear)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class QuantisationError(ValueError):
    """The model cannot be quantised, or its codes cannot be read. The message names the layer."""


def codes_by_channel(weight: Tensor, largest: int = LARGEST) -> tuple[Tensor, Tensor]:
    """Whole numbers from -largest to largest, int32, and scales float32 [K], whose product is nearly `weight`.

    The largest weight of each output channel, the first axis, gets the code `largest`.
    """
    exact = weight.detach().double()
    highest = exact.flatten(1).abs().amax(1)
    scale = torch.where(highest > 0, highest / largest, torch.ones_like(highest)).float()
    codes = (exact / _by_channel(scale.double(), weight)).round().clamp(-largest, largest)
    return codes.to(torch.int32), scale


def quantised_layers(network: Network) -> tuple[str, ...]:
    """Names of the layers of weights behind the encoder, which see spikes; those in it see analog values."""
    encoder: set[nn.Module] = set()
    names = {name: m for name, m in network.named_modules() if isinstance(m, _WEIGHTED)}
    hooks = [
        module.register_forward_hook(lambda module, x, y: encoder.add(module))
        for module in names.values()
    ]
    try:
        with torch.no_grad():
            network.encode(next(network.parameters()).new_zeros(1, *network.input_shape))
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(name for name, module in names.items() if module not in encoder)


@torch.no_grad()
def quantised_tensors(
    network: Network, calibration: Iterable[Tensor] | None = None
) -> dict[str, Tensor]:
    """The tensors of a quantised checkpoint of a network in evaluation mode.

    `calibration` are inputs [N, ...] or [T, N, ...] for the bias correction, which is left out without them. Raises
    QuantisationError for a network that has no layer to quantise.
    """
    layers = {name: network.get_submodule(name) for name in quantised_layers(network)}
    if not layers:
        raise QuantisationError("the network has no layer of weights behind its encoder")
    tensors = {name: value.clone() for name, value in network.state_dict().items()}
    errors: dict[str, Tensor] = {}
    for name, module in layers.items():
        weight = cast(Tensor, module.weight)
        codes, scale = codes_by_channel(weight)
        tensors[f"{name}.weight"] = codes.to(torch.int8)
        tensors[f"{name}.weight{_SCALE}"] = scale
        errors[name] = _weight(codes, scale).to(weight) - weight
    if calibration is not None:
        for name, shift in _mean_shifts(network, layers, errors, calibration).items():
            _take_off(network, tensors, name, shift)
    return tensors


def dequantised(manifest: Manifest, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the network, in float32; as they are for a checkpoint that is not quantised.

    Raises QuantisationError where codes or scales are missing or make no weights.
    """
    plain = dict(tensors)
    for name in () if manifest.quantisation is None else manifest.quantisation.layers:
        key = f"{name}.weight"
        codes, scale = plain.get(key), plain.pop(f"{key}{_SCALE}", None)
        if codes is None or codes.dtype != torch.int8 or codes.dim() < 2:
            raise QuantisationError(f"tensor {key!r} has no codes of eight bits")
        if scale is None or scale.dtype != torch.float32 or scale.shape != codes.shape[:1]:
            raise QuantisationError(
                f"tensor '{key}{_SCALE}' has not one float32 a channel of {key!r}"
            )
        if not bool(scale.isfinite().all() and (scale > 0).all()):
            raise QuantisationError(f"tensor '{key}{_SCALE}' has a value that is no scale")
        plain[key] = _weight(codes, scale)
    return plain


def quantisation_record(
    parent: Manifest, layers: Sequence[str], calibrated_on: str = ""
) -> QuantisationRecord:
    return QuantisationRecord(
        parent=parent.digest,
        parent_name=parent.name,
        layers=tuple(layers),
        calibrated_on=calibrated_on,
    )


def _weight(codes: Tensor, scale: Tensor) -> Tensor:
    return codes.float() * _by_channel(scale, codes)


def _by_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (like.dim() - 1))


def _mean_shifts(
    network: Network,
    layers: Mapping[str, nn.Module],
    errors: Mapping[str, Tensor],
    calibration: Iterable[Tensor],
) -> dict[str, Tensor]:
    """By layer, what the errors of its weights add to the mean of each output channel [K], float64."""
    network.neuron_shapes()  # found by a run of its own, which is no sample
    sums = {name: torch.zeros(len(error), dtype=torch.float64) for name, error in errors.items()}
    counts = dict.fromkeys(layers, 0)

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            shift = _apply(module, inputs[0], errors[name])
            sums[name] += shift.transpose(0, 1).flatten(1).sum(1, dtype=torch.float64)
            counts[name] += shift.numel() // shift.shape[1]

        return hook

    hooks = [module.register_forward_hook(watch(name)) for name, module in layers.items()]
    try:
        for x in calibration:
            for _ in each_step(network, x):
                pass
    finally:
        for hook in hooks:
            hook.remove()
    if not all(counts.values()):
        raise QuantisationError("bias correction: there are no calibration samples")
    return {name: sums[name] / counts[name] for name in sums}


def _apply(module: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    if isinstance(module, nn.Linear):
        return nn.functional.linear(x, weight)
    return cast(Any, module)._conv_forward(x, weight, None)  # type: ignore[no-any-return]


def _take_off(network: Network, tensors: dict[str, Tensor], name: str, shift: Tensor) -> None:
    """Subtract `shift` from what the layer gives: in its bias, or in the mean of the batch norm behind it."""
    if f"{name}.bias" in tensors:
        bias = tensors[f"{name}.bias"]
        tensors[f"{name}.bias"] = (bias.double() - shift).to(bias)
        return
    norm = _norm_behind(network, name)
    if norm is not None:
        mean = tensors[f"{norm}.running_mean"]
        tensors[f"{norm}.running_mean"] = (mean.double() + shift).to(mean)


def _norm_behind(network: Network, name: str) -> str | None:
    """The batch norm that alone takes the result of the layer called `name`."""
    from spiketrain.convert.flow import ExportError, network_flow

    try:
        flow = network_flow(network)
        (user,) = flow.users(name)
    except (ExportError, ValueError):
        return None
    return user.name if isinstance(user.module, _BATCH_NORMS) else None
