"""LIF that repeats its parent, with constants calibrated on a few hundred unlabelled samples.

Families
    soft       a spike subtracts a value of its channel, which need not be the threshold
    hard       a spike sets the potential to a value of its layer; rest is 0, or moves with the value
    nir        the same with values and thresholds of channels, and spikes only above the threshold: what NIR's LIF says
    portable   a spike sets the potential to 0, spikes only above the layer's threshold: what all readers of NIR run alike

Parts, each of which can be left out
    closed-form   reset values that are the mean of what the parent's spikes did (`closed_form`)
    refinement    layer by layer, behind those converted already: values and thresholds that repeat most spikes
    batch-norms   statistics of the batch norms, so that currents have the mean and variance of the parent's
    bias          the mean current of each channel made the parent's, where there is no batch norm to do it, and the mean
                  logit of each class
    weights       the weights of each layer, by least squares, so that its currents come nearest the parent's
    line-search   all values scaled and shifted together, by the KL divergence of the logits from the parent's

The samples are the training split's, without labels; nothing is chosen by accuracy. What comes after, where it is asked for,
is `fine_tune`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from spiketrain.checkpoint import Checkpoint, model_digest
from spiketrain.convert.closed_form import closed_form, reset_moments
from spiketrain.convert.layerwise import Knobs, currents_of, moments_of
from spiketrain.convert.lif_form import ConversionError
from spiketrain.convert.lif_layers import config_of, move_rest, narrow, value_field, widen
from spiketrain.convert.logits import correct_logits, line_search
from spiketrain.convert.refine import AT_ZERO, HARD, SOFT, Choice, refined
from spiketrain.convert.to_lif import ResetValue, Rest, convert_to_lif
from spiketrain.convert.weights import fit_weights
from spiketrain.networks import Network
from spiketrain.neurons.lif import Reset
from spiketrain.surrogate import Rectangle

Family = Literal["soft", "hard", "nir", "portable"]
Part = Literal["closed-form", "refinement", "batch-norms", "bias", "weights", "line-search"]

FAMILIES: tuple[Family, ...] = get_args(Family)
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class Calibration:
    """How to calibrate. `per_channel` None: as the family has it, channels for soft and nir, layers for the others.

    `rest` "reset", for the family hard: the leak leads to the reset value, and the potential starts there.
    """

    family: Family = "soft"
    parts: tuple[Part, ...] = PARTS
    per_channel: bool | None = None
    rest: Rest = "zero"

    @property
    def reset(self) -> Reset:
        return "soft" if self.family == "soft" else "hard"

    @property
    def stays_at_zero(self) -> bool:
        """Whether thresholds are searched in place of values; those of a rest that moves are made of them."""
        return self.family == "portable" or self.rest == "reset"

    @property
    def by_channel(self) -> bool:
        return self.family in ("soft", "nir") if self.per_channel is None else self.per_channel

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ConversionError(f"family {self.family!r}: {', '.join(FAMILIES)}")
        if unknown := set(self.parts) - set(PARTS):
            raise ConversionError(f"part {min(unknown)!r}: {', '.join(PARTS)}")
        if self.rest == "reset" and (self.family != "hard" or self.per_channel):
            raise ConversionError(
                "a rest that moves with the reset value is for the family hard, with values of layers"
            )


def calibrate(
    checkpoint: Checkpoint,
    inputs: Iterable[Tensor],
    calibration: Calibration | None = None,
    *,
    calibrated_on: str = "",
    name: str | None = None,
    progress: Callable[[str], None] = lambda doing: None,
) -> Checkpoint:
    """The checkpoint converted to LIF and calibrated on inputs [N, ...] or [T, N, ...], which are kept in memory.

    `progress` hears what is being done. Raises ConversionError where the model cannot be converted, or nothing fires.
    """
    how = calibration or Calibration()
    batches = list(inputs)
    parent = checkpoint.network().requires_grad_(False)
    progress("closed form")
    child = _start(checkpoint, parent, batches, how, name)
    network = child.network().requires_grad_(False)
    thresholds = [config_of(layer).threshold for layer in network.neuron_layers().values()]
    for layer in network.neuron_layers().values():
        widen(layer)
    knobs = Knobs(network)
    if {"refinement", "batch-norms", "bias", "weights"} & set(how.parts):
        for layer_name in network.neuron_shapes():
            progress(layer_name)
            _refine_layer(parent, network, knobs, layer_name, batches, how)
    if "line-search" in how.parts and not how.stays_at_zero:
        progress("line search")
        line_search(parent, network, batches, how.reset)
    if "bias" in how.parts:
        correct_logits(parent, network, knobs, batches)
    for layer in network.neuron_layers().values():
        narrow(layer)
    if how.rest == "reset":
        for (layer_name, layer), threshold in zip(
            network.neuron_layers().items(), thresholds, strict=True
        ):
            move_rest(layer_name, layer, threshold)
    return _finished(child, network, how, calibrated_on)


def _start(
    checkpoint: Checkpoint,
    parent: Network,
    batches: Sequence[Tensor],
    how: Calibration,
    name: str | None,
) -> Checkpoint:
    """Where calibration starts: closed form, or without it the literature's soft reset or hard reset to 0."""
    plain = None if how.reset == "soft" else 0.0
    start = convert_to_lif(checkpoint, reset=how.reset, value=plain, name=name)
    if not batches:
        raise ConversionError("calibration needs inputs, and there are none")
    if "closed-form" in how.parts and not how.stays_at_zero:
        values: dict[str, ResetValue] = dict(closed_form(reset_moments(parent, batches), how.reset))
        start = convert_to_lif(checkpoint, reset=how.reset, per_layer=values, name=name)
    if how.family not in ("nir", "portable"):
        return start
    manifest = start.manifest
    changes = {
        "neuron": _strict(manifest.neuron),
        "layers": {key: _strict(config) for key, config in manifest.layers.items()},
    }
    return start._replace(manifest=manifest.model_copy(update=changes))


def _strict(config: Any) -> Any:
    surrogate = config.surrogate
    width = surrogate.width if isinstance(surrogate, Rectangle) else 1.0
    return config.model_copy(update={"surrogate": Rectangle(width=width, strict=True)})


def _refine_layer(
    parent: Network,
    child: Network,
    knobs: Knobs,
    name: str,
    batches: Sequence[Tensor],
    how: Calibration,
) -> None:
    before = currents_of(parent, name, batches)
    present = currents_of(child, name, batches)
    changed = False
    if "batch-norms" in how.parts:
        changed = knobs.standardise(name, moments_of(present), moments_of(before))
        present = currents_of(child, name, batches) if changed else present
    if "bias" in how.parts and not changed:
        drift = moments_of(before).mean - moments_of(present).mean
        changed = knobs.shift(name, drift)
        present = currents_of(child, name, batches) if changed else present
    if "weights" in how.parts and fit_weights(child, knobs, name, batches, before):
        present = currents_of(child, name, batches)
    if "refinement" not in how.parts:
        return
    layer = child.neuron_layers()[name]
    config = config_of(layer)
    value, threshold = layer.get_parameter(value_field(config)), layer.get_parameter("threshold")
    choice = refined(
        config,
        Choice(value.double(), threshold.double()),
        present,
        parent.neuron_layers()[name](before)[0],
        AT_ZERO if how.stays_at_zero else SOFT if how.reset == "soft" else HARD,
        how.by_channel,
    )
    value.copy_(choice.value)
    threshold.copy_(choice.threshold)


def _finished(
    child: Checkpoint, network: Network, how: Calibration, calibrated_on: str
) -> Checkpoint:
    layers = {name: config_of(layer) for name, layer in network.neuron_layers().items()}
    common = max(layers.values(), key=list(layers.values()).count)
    tensors = {key: tensor.detach().clone() for key, tensor in network.state_dict().items()}
    manifest = child.manifest
    if manifest.conversion is None:
        raise ConversionError(f"{manifest.name} is not a conversion")
    arguments: dict[str, Any] = {
        "family": how.family,
        "parts": list(how.parts),
        "per_channel": how.by_channel,
        "rest": how.rest,
        "calibrated_on": calibrated_on,
    }
    record = manifest.conversion.model_copy(
        update={
            "method": manifest.conversion.method.partition(",")[0] + f", {how.family}, calibrated",
            "arguments": arguments,
        }
    )
    changes = {
        "neuron": common,
        "layers": {name: config for name, config in layers.items() if config != common},
        "conversion": record,
    }
    manifest = manifest.model_copy(update=changes)
    digest = model_digest(manifest, tensors)
    return Checkpoint(manifest.model_copy(update={"digest": digest}), tensors)
