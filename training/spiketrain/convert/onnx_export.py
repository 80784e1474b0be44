"""A checkpoint as an ONNX file: one timestep with its state as inputs and outputs, or a whole sequence.

    form "step":  x [N, ...] and each state tensor [N, ...] in;
                  logits [N, classes], each state tensor, and each layer's number of spikes [N] out
    form "scan":  x [T, N, ...] and the first states in;
                  logits [T, N, classes], the last states, and spikes [T, N] out: one Scan node around the step

A state tensor is called LAYER/FIELD, stages.0.neuron/v for one, its new value LAYER/FIELD/out, the layer's spikes
LAYER/spikes. N is free, T too. The file's metadata has `manifest`, the model's manifest, `form`, and `states`: name,
shape of one sample, type and initial value of each (a number, or a nested list that broadcasts to the shape).

A file is written only when ONNX Runtime agrees with torch over several timesteps that start from a state that is not
the initial one: from the initial state, a file that had lost its state would agree.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import compose, helper
from torch import Tensor, nn

from spiketrain.checkpoint import Checkpoint
from spiketrain.convert.flow import ExportError
from spiketrain.networks import Network, NetworkState, StepOutput

Form = Literal["step", "scan"]

LEAST_OPSET = 17
VERIFIED_STEPS = 10
VERIFIED_BATCH = 3

# ONNX Runtime and torch round differently. Values that differ by more than this share are different.
TOLERANCE = 1e-3
# Where a potential is within rounding of its threshold the spike may differ: this share of a layer's neurons may.
MOST_FLIPS = 1e-3
# What is behind it is changed by it, in untrained deep networks beyond recognition, and says nothing. The other
# samples and timesteps do: each value must be seen in this share of them.
LEAST_SEEN = 0.25


class ONNXExport(NamedTuple):
    """`states` is the list in the file's metadata; `different` is the share of compared values that differ by more than rounding."""

    path: Path
    opset: int
    states: list[dict[str, Any]]
    different: float


def export_onnx(
    checkpoint: Checkpoint, path: Path, *, opset: int = 18, form: Form = "step"
) -> ONNXExport:
    """Write the file, verified or not at all.

    Raises ExportError for an opset below 17 or that torch cannot write, and where ONNX Runtime does not agree;
    CheckpointError for weights that do not fit their network.
    """
    if opset < LEAST_OPSET:
        raise ExportError(f"opset is {opset}: {LEAST_OPSET} is the least")
    network = checkpoint.network().requires_grad_(False)
    step = _Step(network)
    model = _step_model(step, opset)
    states = step.described()
    if form == "scan":
        model = _scanned(model, step)
    onnx_metadata = {
        "manifest": checkpoint.manifest.model_dump_json(),
        "form": form,
        "states": json.dumps(states),
    }
    helper.set_model_props(model, onnx_metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        try:
            onnx.checker.check_model(model)
            onnx.save_model(model, name)
        except (
            ValueError,
            onnx.checker.ValidationError,
        ) as error:  # more than protobuf's 2 GiB, for one
            raise ExportError(f"{path}: onnx: {error}") from error
        different = verify_onnx(checkpoint, temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return ONNXExport(path, opset, states, different)


def verify_onnx(
    checkpoint: Checkpoint, path: Path, *, steps: int = VERIFIED_STEPS, seed: int = 0
) -> float:
    """Run a file beside the network, over `steps` timesteps of random inputs, from a state that is not the initial one.

    Each timestep starts both from torch's state, so that no difference adds up. Returns the share of values (states,
    spike counts, logits) that differ by more than rounding; raises ExportError where they are too many.
    """
    network = checkpoint.network().requires_grad_(False)
    step = _Step(network)
    session = _session(path)
    form = session.get_modelmeta().custom_metadata_map.get("form", "step")
    tally = _Tally(step)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(steps + 2, VERIFIED_BATCH, *network.input_shape, generator=generator)
    # The inputs of random networks vary in what they excite: twice as large, most layers fire.
    x = 2 * x
    with torch.no_grad():
        state = network.initial_state(VERIFIED_BATCH)
        for t in range(len(x)):
            before, output = state, network.step(x[t], state)
            state = output.state
            if t >= 2:  # two timesteps to leave the initial state
                given = x[t : t + 1] if form == "scan" else x[t]
                found = _run(session, {"x": given, **step.flat(before)})
                if form == "scan":
                    found = {k: v if k.endswith("/out") else v[0] for k, v in found.items()}
                tally.add(step.results(output), found)
        if form == "scan":
            tally.add(*_sequence(network, step, session, x))
    tally.check(path)
    return tally.share


def _sequence(
    network: Network, step: _Step, session: Any, x: Tensor
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A whole sequence from the initial state: what torch says of its last timestep, and what the file does."""
    first = network.initial_state(x.shape[1])
    found = _run(session, {"x": x[:3], **step.flat(first)})
    state = first
    for frame in x[:3]:
        output = network.step(frame, state)
        state = output.state
    return step.results(output), {k: v if k.endswith("/out") else v[-1] for k, v in found.items()}


class _Step(nn.Module):
    """One timestep as a function of tensors only, and the names of these tensors."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.initial: NetworkState = network.initial_state(1)
        self.state_names = [
            f"{layer}/{field}" for layer, state in self.initial.items() for field in state._fields
        ]
        layers = network.neuron_layers()
        self.spiking = [name for name in self.initial if layers[name].config.spiking]
        self.output_names = [
            "logits",
            *(f"{name}/out" for name in self.state_names),
            *(f"{layer}/spikes" for layer in self.spiking),
        ]

    def forward(self, x: Tensor, *flat: Tensor) -> tuple[Tensor, ...]:
        parts = iter(flat)
        state = {
            layer: type(like)(*(next(parts) for _ in like)) for layer, like in self.initial.items()
        }
        return tuple(self.results(self.network.step(x, state)).values())

    def flat(self, state: NetworkState) -> dict[str, Tensor]:
        tensors = (tensor for layer in self.initial for tensor in state[layer])
        return dict(zip(self.state_names, tensors, strict=True))

    def results(self, output: StepOutput) -> dict[str, Tensor]:
        counts = [output.spikes[layer].flatten(1).sum(1) for layer in self.spiking]
        tensors = (output.logits, *self.flat(output.state).values(), *counts)
        return dict(zip(self.output_names, tensors, strict=True))

    def described(self) -> list[dict[str, Any]]:
        described = []
        for name, tensor in self.flat(self.initial).items():
            first = tensor[0]
            uniform = first.numel() == 0 or bool((first == first.flatten()[0]).all())
            by_channel = first.flatten(1)[:, 0] if first.dim() > 1 else first
            initial = first.flatten()[0].item() if uniform else first.tolist()
            if not uniform and first.dim() > 1 and bool((by_channel == first.flatten(1).T).all()):
                initial = by_channel.view(-1, *(1,) * (first.dim() - 1)).tolist()
            described.append(
                {
                    "name": name,
                    "shape": list(first.shape),
                    "type": str(tensor.dtype).removeprefix("torch."),
                    "initial": initial,
                }
            )
        return described


def _step_model(step: _Step, opset: int) -> onnx.ModelProto:
    # Two samples: the exporter takes a size of 1 for a constant.
    state = step.network.initial_state(2)
    example = (torch.zeros(2, *step.network.input_shape), *step.flat(state).values())
    batch = torch.export.Dim("N", min=1)
    free = ({0: batch}, tuple({0: batch} for _ in example[1:]))
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                step,
                example,
                input_names=["x", *step.state_names],
                output_names=step.output_names,
                opset_version=opset,
                dynamic_shapes=free,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except (RuntimeError, ValueError, TypeError, torch.onnx.errors.OnnxExporterError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ExportError(f"torch cannot export the network: {reason}") from error
    finally:
        logger.setLevel(level)
    if program is None:
        raise ExportError("torch gave no ONNX program")
    model = program.model_proto
    written = next(entry.version for entry in model.opset_import if entry.domain == "")
    if written != opset:
        raise ExportError(f"opset is {opset}: torch could write only {written}; choose this")
    return model


def _scanned(step_model: onnx.ModelProto, step: _Step) -> onnx.ModelProto:
    """The step as the body of one Scan node over the first axis of x."""
    # Names inside must differ from those outside.
    inner = compose.add_prefix(step_model, "step:")
    body = inner.graph
    if inner.functions:
        raise ExportError("form 'scan': the step uses local functions, which a Scan cannot hold")
    by_name = {value.name: value for value in body.input}
    states = [f"step:{name}" for name in step.state_names]
    inputs = [by_name[name] for name in (*states, "step:x")]
    outputs = {value.name: value for value in body.output}
    series = ["logits", *(f"{layer}/spikes" for layer in step.spiking)]
    ordered = [outputs[f"{name}/out"] for name in states]
    ordered += [outputs[f"step:{name}"] for name in series]
    weights = list(body.initializer)
    subgraph = helper.make_graph(list(body.node), "step", inputs, ordered)
    node = helper.make_node(
        "Scan",
        inputs=[*step.state_names, "x"],
        outputs=[*(f"{name}/out" for name in step.state_names), *series],
        body=subgraph,
        num_scan_inputs=1,
    )
    outer_inputs = [_outer(by_name["step:x"], "x", "T")]
    outer_inputs += [_outer(by_name[f"step:{name}"], name) for name in step.state_names]
    outer_outputs = [
        _outer(outputs[f"step:{name}"], name, "T" if name in series else None)
        for name in step.output_names
    ]
    graph = helper.make_graph(
        [node], step_model.graph.name, outer_inputs, outer_outputs, initializer=weights
    )
    return helper.make_model(
        graph, opset_imports=list(step_model.opset_import), ir_version=step_model.ir_version
    )


def _outer(value: onnx.ValueInfoProto, name: str, axis: str | None = None) -> onnx.ValueInfoProto:
    """A value of the body as one of the graph around it, with one more axis in front where it is named."""
    tensor = value.type.tensor_type
    shape: list[Any] = [d.dim_param or d.dim_value for d in tensor.shape.dim]
    return helper.make_tensor_value_info(
        name, tensor.elem_type, shape if axis is None else [axis, *shape]
    )


def _session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common class of their own
        raise ExportError(f"{path}: ONNX Runtime cannot load it: {error}") from error


def _run(session: Any, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    wanted = {value.name for value in session.get_inputs()}
    if lost := inputs.keys() - wanted:
        raise ExportError(f"the file has no input {min(lost)!r}")
    names = [value.name for value in session.get_outputs()]
    try:
        results = session.run(names, {name: value.numpy() for name, value in inputs.items()})
    except Exception as error:
        raise ExportError(f"ONNX Runtime cannot run the file: {error}") from error
    return dict(zip(names, results, strict=True))


class _Tally:
    """Compares layer by layer, in the order in which current reaches them, each sample for itself.

    Up to the first layer with a spike that differs, values must be equal but for rounding; that layer may have very
    few such spikes, and what is behind it in this sample and timestep is left out. So a deep network, in which one
    spike changes everything behind, is not taken for a wrong one, and a wrong one is found where it is wrong.
    """

    def __init__(self, step: _Step) -> None:
        self.stages = [
            *(
                [f"{layer}/{field}/out" for field in state._fields]
                for layer, state in step.initial.items()
            ),
            ["logits"],
        ]
        self.counts = {layer: f"{layer}/spikes" for layer in step.spiking}
        self.exact: dict[str, tuple[int, int]] = {}  # values, and those that differ
        self.seen: dict[str, int] = {}  # in how many samples and timesteps
        self.samples = 0

    def add(self, expected: Mapping[str, Tensor], found: Mapping[str, Any]) -> None:
        if missing := expected.keys() - found.keys():
            raise ExportError(f"the file has no output {min(missing)!r}")
        pairs = {
            name: (tensor.double().numpy(), np.asarray(found[name], dtype=np.float64))
            for name, tensor in expected.items()
        }
        for name, (reference, value) in pairs.items():
            if reference.shape != value.shape:
                raise ExportError(
                    f"{name}: ONNX Runtime gives shape {value.shape}, torch {reference.shape}"
                )
        for sample in range(len(pairs["logits"][0])):
            self._add_sample({name: (a[sample], b[sample]) for name, (a, b) in pairs.items()})

    def _add_sample(self, pairs: Mapping[str, tuple[Any, Any]]) -> None:
        self.samples += 1
        for names in self.stages:
            flips = sum(self._compare(name, *pairs[name]) for name in names)
            if flips:
                return
            if (count := self.counts.get(names[0].rsplit("/", 2)[0])) is not None:
                self._compare(count, *pairs[count])

    def _compare(self, name: str, reference: Any, value: Any) -> int:
        close = np.abs(reference - value) <= TOLERANCE * (1 + np.abs(reference))
        different = close.size - int(close.sum())
        total, before = self.exact.get(name, (0, 0))
        self.exact[name] = total + close.size, before + different
        self.seen[name] = self.seen.get(name, 0) + 1
        return different

    @property
    def share(self) -> float:
        totals = [sum(column) for column in zip(*self.exact.values(), strict=True)]
        return float(totals[1] / totals[0])

    def check(self, path: Path) -> None:
        for name, (total, different) in self.exact.items():
            if different > max(2, MOST_FLIPS * total):
                raise ExportError(
                    f"{path}: ONNX Runtime does not agree with torch: of {total} values of {name!r} {different} differ"
                )
        for name in (*itertools.chain(*self.stages), *self.counts.values()):
            if self.seen.get(name, 0) < LEAST_SEEN * self.samples:
                raise ExportError(
                    f"{path}: ONNX Runtime and torch differ by single spikes before {name!r} in nearly every sample: "
                    "the file could not be verified"
                )
