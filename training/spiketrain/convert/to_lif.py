"""A checkpoint whose neurons are LIF, from one with other neurons. The weights stay as they are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ValidationError
from torch import Tensor

from spiketrain.checkpoint import Checkpoint, model_digest
from spiketrain.convert.lif_form import ConversionError, LIFForm, lif_form
from spiketrain.manifest import ConversionRecord, Manifest
from spiketrain.neurons import LIFConfig, NeuronLayer
from spiketrain.neurons.lif import Reset

# Where the rest of a hard reset is: at the reset value (SpikingJelly's v_reset is both), or at 0.
Rest = Literal["reset", "zero"]

# A number for a layer, or one for each of its channels [C].
ResetValue = float | Tensor


def convert_to_lif(
    checkpoint: Checkpoint,
    *,
    reset: Reset,
    value: float | None = None,
    rest: Rest = "zero",
    per_layer: Mapping[str, ResetValue] | None = None,
    name: str | None = None,
) -> Checkpoint:
    """The checkpoint with LIF in place of every neuron.

    reset "soft": a spike subtracts `value`; None subtracts the threshold, as the CLIF authors' conversion does.
    `rest` means nothing then, and the parent's stays.
    reset "hard": a spike sets the potential to `value`. With rest "reset" the leak leads to `value` too and the
    potential starts there, which for an undecayed input is a threshold higher by -value and a reset to 0; with rest
    "zero" the leak leads to 0, and only the potential after a spike is `value`.
    `per_layer` gives values that go before `value` to the layers that it names.

    The child names its parent by digest; accuracy and firing rates, which are the parent's, are left out.
    Raises ConversionError for a neuron that no LIF stands for and values that make no neuron, CheckpointError for a
    checkpoint whose weights do not fit its network.
    """
    layers = checkpoint.network().neuron_layers()
    own = dict(per_layer or {})
    if unknown := own.keys() - layers.keys():
        raise ConversionError(
            f"no layer of neurons is called {min(unknown)!r}: there are {', '.join(layers)}"
        )
    tensors = {
        key: tensor for key, tensor in checkpoint.tensors.items() if not _is_neurons(key, layers)
    }
    configs: dict[str, LIFConfig] = {}
    for layer_name, layer in layers.items():
        form = lif_form(layer_name, layer)
        chosen = own.get(layer_name, value)
        configs[layer_name], added = _with_reset(layer_name, form, reset, chosen, rest)
        tensors |= {f"{layer_name}.{key}": tensor for key, tensor in added.items()}
    # The neuron that most layers have is the model's; the others are named.
    common = Counter(configs.values()).most_common(1)[0][0]
    parent = checkpoint.manifest
    record = ConversionRecord(
        parent=parent.digest or model_digest(parent, checkpoint.tensors),
        parent_name=parent.name,
        method=f"{parent.neuron.kind} to lif, {reset} reset",
        arguments=_arguments(reset, value, rest, own),
    )
    changes = {
        "name": name or f"{parent.name[:60]}-lif",
        "neuron": common,
        "layers": {key: config for key, config in configs.items() if config != common},
        "accuracy": (),
        "firing_rates": {},
        "exit": None,
        "conversion": record,
    }
    child = _changed(parent, changes)
    digest = model_digest(child, tensors)
    return Checkpoint(child.model_copy(update={"digest": digest}), tensors)


def _is_neurons(key: str, layers: Mapping[str, NeuronLayer]) -> bool:
    return key.rpartition(".")[0] in layers


def _with_reset(
    name: str, form: LIFForm, reset: Reset, value: ResetValue | None, rest: Rest
) -> tuple[LIFConfig, dict[str, Tensor]]:
    tensors = dict(form.tensors)
    field = "subtract" if reset == "soft" else "reset_value"
    changes: dict[str, Any] = {"reset": reset, "subtract": None, "reset_value": 0.0}
    number = value
    if isinstance(value, Tensor):
        tensors[field] = value.detach().clone()
        number = value.mean().item()
    if number is None and reset == "hard":
        raise ConversionError(
            f"{name}: a hard reset needs a value, what the potential is after a spike"
        )
    if isinstance(number, float | int) and not math.isfinite(number):
        raise ConversionError(f"{name}: a reset value of {number}: a number is needed")
    changes[field] = number
    if reset == "hard":
        if rest == "reset" and isinstance(value, Tensor):
            raise ConversionError(
                f"{name}: values by channel need rest 'zero': a LIF has one rest for a layer"
            )
        changes["rest"] = number if rest == "reset" else 0.0
        if changes["rest"] >= form.config.threshold:
            raise ConversionError(
                f"{name}: rest at {number} is not below the threshold of {form.config.threshold}: "
                "the neuron would fire without input"
            )
    changes["per_channel"] = tuple(key for key in ("threshold", field) if key in tensors)
    try:
        return LIFConfig.model_validate(form.config.model_dump() | changes), tensors
    except ValidationError as error:
        first = error.errors()[0]
        raise ConversionError(
            f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from error


def _arguments(
    reset: Reset, value: float | None, rest: Rest, per_layer: Mapping[str, ResetValue]
) -> dict[str, Any]:
    arguments: dict[str, Any] = {"reset": reset, "value": value}
    if reset == "hard":
        arguments["rest"] = rest
    if per_layer:
        arguments["per_layer"] = {
            name: own.tolist() if isinstance(own, Tensor) else own
            for name, own in per_layer.items()
        }
    return arguments


def _changed(parent: Manifest, changes: dict[str, Any]) -> Manifest:
    try:
        return Manifest.model_validate(parent.model_dump() | changes)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConversionError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
