"""The executor for ONNX files: ONNX Runtime computes the step, the state of every slot is kept here.

A file has what `spiketrain export --to onnx` writes: x and each state in, logits, new states, spikes by layer and
synaptic operations out. Saved states have the form of the reference executor's, so that a stream can go on with the
checkpoint that the file was made of, and the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from spikeserve.engine.choose import UnsupportedError
from spikeserve.engine.executor import Frames, Sample, StateError, StepResult
from spikeserve.engine.state import pack_state, unpack_state
from spiketrain.convert.onnx_file import (
    MAX_BYTES,
    ONNXFileError,
    StateTensor,
    StepFile,
    parse_step_file,
)
from spiketrain.manifest import Manifest

_CONSTANT = "input"  # not the reference executor's: there it is encoded
_INPUT, _LOGITS, _OPERATIONS = "x", "logits", "synaptic_operations"
_SPIKES = "/spikes"
_TYPES = {"float32": "tensor(float)", "int64": "tensor(int64)"}

Array = NDArray[Any]


class OnnxModel(NamedTuple):
    """A file that was read and fits together. `layers` are those whose spikes it counts."""

    manifest: Manifest
    session: Any
    states: tuple[StateTensor, ...]
    layers: tuple[str, ...]


def load_onnx(path: Path, threads: int) -> OnnxModel:
    """Read and check a file; `threads` compute each step.

    Raises UnsupportedError where ONNX Runtime is not installed, OSError where the file cannot be read, and
    ONNXFileError, which names the file and the node, input, output or field, for one that cannot be served.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UnsupportedError(
            f"{path}: ONNX Runtime serves .onnx files, and it is not installed: pip install 'spikeserve[onnx]'"
        ) from error
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ONNXFileError(f"{path}: {size} bytes, more than the limit of {MAX_BYTES}")
    data = path.read_bytes()
    said = parse_step_file(data, str(path))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is in the exception
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common class of their own
        raise ONNXFileError(f"{path}: graph: ONNX Runtime cannot load it: {error}") from error
    return OnnxModel(said.manifest, session, said.states, _checked(session, said, str(path)))


def _checked(session: Any, said: StepFile, source: str) -> tuple[str, ...]:
    """The layers whose spikes the file counts. Raises ONNXFileError where the graph is not what the metadata say."""
    inputs = {value.name: value for value in session.get_inputs()}
    _check(source, "input", inputs, _INPUT, "tensor(float)", said.manifest.input.shape)
    outputs = {value.name: value for value in session.get_outputs()}
    classes = (len(said.manifest.classes),)
    _check(source, "output", outputs, _LOGITS, "tensor(float)", classes)
    for state in said.states:
        if state.type not in _TYPES:
            raise ONNXFileError(f"{source}: metadata.states: {state.name} has type {state.type!r}")
        _check(source, "input", inputs, state.name, _TYPES[state.type], state.shape)
        _check(source, "output", outputs, f"{state.name}/out", _TYPES[state.type], state.shape)
        try:
            _initial(state)
        except (ValueError, TypeError) as error:
            raise ONNXFileError(
                f"{source}: metadata.states: {state.name}: initial: {error}"
            ) from error
    if unknown := inputs.keys() - {_INPUT, *(state.name for state in said.states)}:
        raise ONNXFileError(f"{source}: input {min(unknown)!r} is not in metadata.states")
    if _OPERATIONS not in outputs:
        raise ONNXFileError(
            f"{source}: output {_OPERATIONS!r} is missing; export the checkpoint again with this release"
        )
    layers = tuple(name.removesuffix(_SPIKES) for name in outputs if name.endswith(_SPIKES))
    if not layers:
        raise ONNXFileError(f"{source}: no output counts spikes, LAYER{_SPIKES}")
    return layers


def _check(
    source: str,
    kind: str,
    values: dict[str, Any],
    name: str,
    wanted: str,
    shape: tuple[int, ...],
) -> None:
    value = values.get(name)
    if value is None:
        raise ONNXFileError(f"{source}: {kind} {name!r} is missing")
    if value.type != wanted:
        raise ONNXFileError(f"{source}: {kind} {name!r} is {value.type}, and should be {wanted}")
    if not value.shape or isinstance(value.shape[0], int):
        raise ONNXFileError(
            f"{source}: {kind} {name!r} has shape {value.shape}: its first axis, the batch, must be free"
        )
    if tuple(value.shape[1:]) != shape:
        raise ONNXFileError(
            f"{source}: {kind} {name!r} has shape {value.shape}, and one sample should be {list(shape)}"
        )


def _initial(state: StateTensor) -> Array:
    """Shape [1, ...]. Raises ValueError and TypeError where the value makes none of this shape."""
    value = np.asarray(state.initial, dtype=state.type)
    return np.broadcast_to(value, state.shape)[None]


class OnnxExecutor:
    def __init__(self, model: OnnxModel, slots: int) -> None:
        if slots < 1:
            raise ValueError(f"slots is {slots}: it must be at least 1")
        self._session = model.session
        self._layers = model.layers
        self._weights = model.manifest.digest
        self._shape = model.manifest.input.shape
        self._names = [state.name for state in model.states]
        self._keys = _saved_keys(model.states)
        self._fresh = {state.name: _initial(state) for state in model.states}
        self._states = {
            name: np.repeat(value, slots, axis=0) for name, value in self._fresh.items()
        }
        self._constants: list[Array | None] = [None] * slots
        self._outputs = [
            _LOGITS,
            _OPERATIONS,
            *(f"{layer}{_SPIKES}" for layer in self._layers),
            *(f"{name}/out" for name in self._names),
        ]

    @property
    def slots(self) -> int:
        return len(self._constants)

    @property
    def layers(self) -> tuple[str, ...]:
        return self._layers

    def admit(self, slot: int, sample: Sample) -> None:
        for name, value in self._fresh.items():
            self._states[name][slot] = value[0]
        self._constants[slot] = None if sample.constant is None else sample.constant.numpy().copy()

    def step(self, slots: Sequence[int], frames: Frames | None) -> StepResult:
        if len(set(slots)) != len(slots):
            raise ValueError(f"slots {list(slots)}: one is named twice")
        rows = list(slots)
        given = {name: values[rows] for name, values in self._states.items()}
        results = self._session.run(self._outputs, {_INPUT: self._input(slots, frames), **given})
        logits, operations = results[:2]
        counts = results[2 : 2 + len(self._layers)]
        for name, value in zip(self._names, results[2 + len(counts) :], strict=True):
            self._states[name][rows] = value
        return StepResult(
            logits=torch.from_numpy(logits),
            spikes=torch.from_numpy(np.stack(counts, axis=1).astype(np.float64)),
            synaptic_operations=torch.from_numpy(operations.astype(np.float64)),
        )

    def _input(self, slots: Sequence[int], frames: Frames | None) -> Array:
        rows = [self._constants[slot] for slot in slots]
        if frames is not None:
            for row, value in zip(frames.rows, frames.values.numpy(), strict=True):
                rows[row] = value
        present = [row for row in rows if row is not None]
        if len(present) != len(rows):
            raise ValueError(
                f"slot {slots[rows.index(None)]} has neither a constant input nor a frame"
            )
        return np.stack(present).astype(np.float32, copy=False)

    def save(self, slot: int) -> bytes:
        tensors = {
            key: torch.from_numpy(self._states[name][slot][None].copy())
            for name, key in self._keys.items()
        }
        constant = self._constants[slot]
        if constant is not None:
            tensors[_CONSTANT] = torch.from_numpy(constant)
        return pack_state(tensors, self._weights)

    def load(self, slot: int, state: bytes) -> None:
        for name, value in self._fresh.items():
            self._states[name][slot] = value[0]
        self._constants[slot] = None
        tensors = unpack_state(state, self._weights)
        constant = tensors.pop(_CONSTANT, None)
        if constant is not None and constant.shape != self._shape:
            raise StateError("state: its input has another shape")
        loaded = {}
        for name, key in self._keys.items():
            tensor, like = tensors.pop(key, None), self._fresh[name]
            if tensor is None or tensor.shape != like.shape or tensor.numpy().dtype != like.dtype:
                raise StateError(f"state: {name!r} is missing, or of another shape or type")
            loaded[name] = tensor.numpy()[0]
        if tensors:
            raise StateError(f"state: {min(tensors)!r} belongs to no layer of this model")
        for name, value in loaded.items():
            self._states[name][slot] = value
        self._constants[slot] = None if constant is None else constant.numpy()


def _saved_keys(states: Sequence[StateTensor]) -> dict[str, str]:
    """By name of the state what it is called in saved ones: LAYER/0, LAYER/1, in the order of its fields."""
    counts: dict[str, int] = {}
    keys = {}
    for state in states:
        number = counts.get(state.layer, 0)
        keys[state.name] = f"{state.layer}/{number}"
        counts[state.layer] = number + 1
    return keys
