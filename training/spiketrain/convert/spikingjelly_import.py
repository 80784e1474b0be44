"""SpikingJelly's networks and weights as checkpoints of ours."""

from __future__ import annotations

import copy
import hashlib
import io
import pickle
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spiketrain.checkpoint import Checkpoint, CheckpointError, model_digest
from spiketrain.convert.flow import INPUT, ExportError, Op, traced, without
from spiketrain.convert.graph_builder import About, ForeignModelError, GraphBuilder
from spiketrain.convert.spikingjelly_nodes import GLIF_NAMES, config_of
from spiketrain.manifest import ConversionRecord
from spiketrain.neurons import GLIFConfig

MAX_BYTES = 4 << 30
_WRAPPERS = ("state_dict", "model", "net", "model_state_dict")
_CONTAINERS = {"MultiStepContainer", "SeqToANNContainer", "StepModeContainer"}


def from_spikingjelly(module: nn.Module, about: About, source: str = "the network") -> Checkpoint:
    """A network of SpikingJelly's layers as a checkpoint.

    Sequences of convolutions, batch norms, poolings, flattenings, linear layers, dropouts and neurons (IF, LIF, PLIF,
    CLIF, CUBALIF, GLIF), nested as they like, and modules of one's own whose forward only calls modules, adds, and
    flattens. Neither the step mode nor the state of the neurons matters.

    Raises ForeignModelError, naming the layer, for anything else.
    """
    from spikingjelly.activation_based import base

    network = copy.deepcopy(module).eval()
    neurons = (base.MemoryModule,)
    for part in network.modules():
        if hasattr(part, "step_mode") and not isinstance(part, neurons):
            setattr(part, "step_mode", "s")  # noqa: B010 (the attribute is typed as a module)
    try:
        flow = traced(network, about.input.shape, neurons, containers=_is_container)
    except ExportError as error:
        raise ForeignModelError(f"{source}: {error}") from error
    flow = without(flow, lambda op: isinstance(op.module, nn.Identity))
    builder = GraphBuilder(source, about.input.shape, about.timesteps)
    names: dict[str, tuple[str, ...]] = {INPUT: (INPUT,)}
    for op in flow.ops:
        inputs = tuple(x for name in op.inputs for x in names[name])
        if len(set(inputs)) < len(inputs):
            raise ForeignModelError(f"{source}: {op.name!r}: a value is added to itself")
        names[op.name] = inputs if op.kind == "add" else (_add(builder, op, inputs),)
    return builder.checkpoint(names[flow.output], about, "spikingjelly import")


def _is_container(module: nn.Module) -> bool:
    return type(module) is nn.Sequential or type(module).__name__ in _CONTAINERS


def _add(builder: GraphBuilder, op: Op, inputs: Sequence[str]) -> str:
    module: Any = op.module
    if op.kind == "reshape" or isinstance(module, nn.Flatten):
        return builder.add(op.name, inputs, "reshape", shape=list(op.shape))
    kind = type(module).__name__
    tensors = {key: value.detach().clone() for key, value in module.state_dict().items()}
    match module:
        case nn.Conv1d() | nn.Conv2d() if type(module).__name__ in ("Conv1d", "Conv2d"):
            _plain(builder, op, padding_mode="zeros")
            return builder.add(
                op.name,
                inputs,
                "convolution",
                tensors,
                in_channels=module.in_channels,
                out_channels=module.out_channels,
                kernel=module.kernel_size,
                stride=module.stride,
                padding=module.padding,
                dilation=module.dilation,
                groups=module.groups,
                bias=module.bias is not None,
            )
        case nn.Linear() if kind == "Linear":
            sizes = {"in_features": module.in_features, "out_features": module.out_features}
            bias = module.bias is not None
            return builder.add(op.name, inputs, "linear", tensors, bias=bias, **sizes)
        case nn.BatchNorm1d() | nn.BatchNorm2d() if kind in ("BatchNorm1d", "BatchNorm2d"):
            _plain(builder, op, track_running_stats=True)
            axes = 2 if kind == "BatchNorm2d" else 0
            fields = {"channels": module.num_features, "eps": module.eps, "affine": module.affine}
            return builder.add(op.name, inputs, "batch-norm", tensors, axes=axes, **fields)
        case nn.AvgPool2d():
            _plain(builder, op, ceil_mode=False, divisor_override=None, count_include_pad=True)
            return builder.add(op.name, inputs, "average-pool", **_window(module))
        case nn.MaxPool2d():
            _plain(builder, op, ceil_mode=False, dilation=1, return_indices=False)
            return builder.add(op.name, inputs, "max-pool", **_window(module))
        case nn.AdaptiveAvgPool2d():
            return builder.add(op.name, inputs, "adaptive-average-pool", size=list(op.shape[1:]))
        case _ if kind in ("Dropout", "Dropout2d"):
            return builder.add(op.name, inputs, "dropout", p=float(module.p))
        case _:
            config, own = config_of(builder.source, op.name, module)
            return builder.add_neurons(op.name, inputs, config, own)


def _plain(builder: GraphBuilder, op: Op, **expected: Any) -> None:
    for field, value in expected.items():
        if (found := getattr(op.module, field)) != value:
            raise ForeignModelError(
                f"{builder.source}: layer {op.name!r} ({type(op.module).__name__}): {field}: {found} is not "
                f"understood, only {value}"
            )


def _window(module: Any) -> dict[str, Any]:
    return {
        "kernel": _pair(module.kernel_size),
        "stride": _pair(module.stride),
        "padding": _pair(module.padding),
    }


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a file of `torch.save`; nothing else in it is loaded, and no code of it run.

    Raises ForeignModelError for other files, OSError where it cannot be read.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ForeignModelError(f"{path}: more than the limit of {MAX_BYTES} bytes")
    raw = path.read_bytes()
    try:
        data = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ForeignModelError(
            f"{path}: no plain weights: a pickled module runs code when it is loaded, which is refused; "
            "save module.state_dict() instead"
        ) from error
    except Exception as error:  # the unpickler raises whatever damage leads it to
        reason = str(error).partition("\n")[0]
        raise ForeignModelError(
            f"{path}: damaged, or no file of torch.save: {reason or type(error).__name__}"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(data, Mapping) and isinstance(data.get(wrapper), Mapping):
            data = data[wrapper]
    if not isinstance(data, Mapping) or not data:
        raise ForeignModelError(f"{path}: no state_dict: names with tensors are needed")
    for name, tensor in data.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ForeignModelError(f"{path}: {name!r}: is no tensor")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ForeignModelError(f"{path}: {name!r}: has values that are not finite")
    return {new: data[old] for old, new in present_names(data).items()}


def present_names(names: Iterable[str]) -> dict[str, str]:
    """Names as they are now, by the name as it is in a file, without constants of surrogates, which change no answer.

    DataParallel puts a prefix before all names, and containers of SpikingJelly before 0.0.0.0.8 had a level more.
    """
    names = list(names)
    parallel = all(name.startswith("module.") for name in names)
    return {
        name: (name.removeprefix("module.") if parallel else name).replace(".module.", ".")
        for name in names
        if not name.endswith("surrogate_function.alpha")
    }


def from_state_dict(
    state: Mapping[str, Tensor] | Path, like: Checkpoint, *, name: str | None = None
) -> Checkpoint:
    """SpikingJelly's weights in the network of the checkpoint `like`, which says all that a state_dict does not.

    Weights are matched by name; where the names are others, by their order, and each shape must fit. Raises
    ForeignModelError, naming the tensor, where they do not.
    """
    source = str(state) if isinstance(state, Path) else "the state_dict"
    digest = ""
    if isinstance(state, Path):
        with state.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        state = read_state_dict(state)
    network = like.network()
    glif = {n for n, m in network.neuron_layers().items() if isinstance(m.config, GLIFConfig)}
    expected = network.state_dict()
    theirs = {_their_name(key, glif): key for key in expected}
    if theirs.keys() == state.keys():
        pairs = [(key, name) for name, key in theirs.items()]
    else:
        pairs = _by_order(source, list(expected), list(state))
    tensors = {}
    for ours, other in pairs:
        value, needed = state[other].detach(), expected[ours]
        if value.shape != needed.shape:
            raise ForeignModelError(
                f"{source}: tensor {other!r}: shape {tuple(value.shape)}, and {ours!r} needs {tuple(needed.shape)}"
            )
        tensors[ours] = value.to(needed.dtype).contiguous().clone()
    parent = like.manifest
    record = ConversionRecord(parent=digest, parent_name=source, method="spikingjelly import")
    manifest = parent.model_copy(
        update={
            "name": name or parent.name,
            "accuracy": (),
            "firing_rates": {},
            "training": None,
            "conversion": record,
        }
    )
    manifest = manifest.model_copy(update={"digest": model_digest(manifest, tensors)})
    checkpoint = Checkpoint(manifest, tensors)
    try:
        checkpoint.network()
    except CheckpointError as error:
        raise ForeignModelError(f"{source}: {error}") from error
    return checkpoint


def _their_name(key: str, glif: set[str]) -> str:
    layer, _, last = key.rpartition(".")
    return f"{layer}.{GLIF_NAMES.get(last, last)}" if layer in glif else key


def _by_order(source: str, ours: list[str], theirs: list[str]) -> list[tuple[str, str]]:
    if len(ours) != len(theirs):
        raise ForeignModelError(
            f"{source}: {len(theirs)} tensors, and the network has {len(ours)}: not weights of this network"
        )
    return list(zip(ours, theirs, strict=True))
