"""Whether an ONNX file does what the network does: both run beside each other, and are compared layer by layer."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from spiketrain.checkpoint import Checkpoint
from spiketrain.convert.flow import ExportError
from spiketrain.convert.onnx_step import OPERATIONS, StepFunction
from spiketrain.networks import Network

VERIFIED_STEPS = 10
VERIFIED_BATCH = 3

# ONNX Runtime and torch round differently. Values that differ by more than this share are different.
TOLERANCE = 1e-3
# Where a potential is within rounding of its threshold the spike may differ: this share of a layer's neurons may.
MOST_FLIPS = 1e-3
# What is behind it is changed by it, in untrained deep networks beyond recognition, and says nothing. The other
# samples and timesteps do: each value must be seen in this share of them.
LEAST_SEEN = 0.25


def verify_onnx(
    checkpoint: Checkpoint, path: Path, *, steps: int = VERIFIED_STEPS, seed: int = 0
) -> float:
    """Run a file beside the network, over `steps` timesteps of random inputs, from a state that is not the initial one.

    Each timestep starts both from torch's state, so that no difference adds up. Returns the share of compared
    values (states, spike counts, logits) that differ by more than rounding; raises ExportError where they are too many.
    """
    network = checkpoint.network().requires_grad_(False)
    step = StepFunction(network)
    session = _session(path)
    form = session.get_modelmeta().custom_metadata_map.get("form", "step")
    tally = _Tally(step)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(steps + 2, VERIFIED_BATCH, *network.input_shape, generator=generator)
    x = 2 * x  # so that most layers fire
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
    network: Network, step: StepFunction, session: Any, x: Tensor
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A whole sequence from the initial state: what torch says of its last timestep, and what the file does."""
    first = network.initial_state(x.shape[1])
    found = _run(session, {"x": x[:3], **step.flat(first)})
    state = first
    for frame in x[:3]:
        output = network.step(frame, state)
        state = output.state
    return step.results(output), {k: v if k.endswith("/out") else v[-1] for k, v in found.items()}


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

    def __init__(self, step: StepFunction) -> None:
        self.stages = [
            *(
                [f"{layer}/{field}/out" for field in state._fields]
                for layer, state in step.initial.items()
            ),
            ["logits", *([] if step.reach is None else [OPERATIONS])],
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
        different = int(close.size - close.sum())
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
