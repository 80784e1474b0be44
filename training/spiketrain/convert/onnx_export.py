"""A checkpoint as an ONNX file: one timestep with its state as inputs and outputs, or a whole sequence.

    form "step":  x [N, ...] and each state tensor [N, ...] in;
                  logits [N, classes], each state tensor, each layer's number of spikes [N], and synaptic_operations [N] out
    form "scan":  x [T, N, ...] and the first states in;
                  logits [T, N, classes], the last states, spikes and operations [T, N] out: one Scan node around the step

A state tensor is called LAYER/FIELD, stages.0.neuron/v for one, its new value LAYER/FIELD/out, the layer's spikes
LAYER/spikes. N is free, T too. The file's metadata has `manifest`, the model's manifest, `form`, and `states`: name,
shape of one sample, type and initial value of each (a number, or a nested list that broadcasts to the shape); and a
`seal` (`onnx_file`). Operations are left out for a network in which their number per spike is not a constant.

A file is written only when ONNX Runtime agrees with torch over several timesteps that start from a state that is not
the initial one: from the initial state, a file that had lost its state would agree.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple

import onnx
import torch
from onnx import compose, helper

from spiketrain.checkpoint import Checkpoint
from spiketrain.convert.flow import ExportError
from spiketrain.convert.onnx_file import SEAL, UNSEALED, sealed
from spiketrain.convert.onnx_step import StepFunction
from spiketrain.convert.onnx_verify import verify_onnx

Form = Literal["step", "scan"]

LEAST_OPSET = 17


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
    step = StepFunction(network)
    model = _step_model(step, opset)
    states = step.described()
    if form == "scan":
        model = _scanned(model, step)
    onnx_metadata = {
        "manifest": checkpoint.manifest.model_dump_json(),
        "form": form,
        "states": json.dumps(states),
        SEAL: UNSEALED,
    }
    helper.set_model_props(model, onnx_metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        try:
            onnx.checker.check_model(model)
            temporary.write_bytes(sealed(model.SerializeToString(), str(path)))
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


def _step_model(step: StepFunction, opset: int) -> onnx.ModelProto:
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


def _scanned(step_model: onnx.ModelProto, step: StepFunction) -> onnx.ModelProto:
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
    series = [name for name in step.output_names if not name.endswith("/out")]
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
