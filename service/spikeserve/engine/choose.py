"""Which executor runs a model: the one that is asked for, or the fastest by a short measurement.

A new executor is one function here and its line in `EXECUTORS`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from spikeserve.engine.executor import Executor, Sample
from spikeserve.engine.reference import ReferenceExecutor
from spiketrain.convert.flow import ExportError
from spiketrain.networks import Network

logger = logging.getLogger(__name__)

Precision = Literal["auto", "float32", "bfloat16", "int16", "int8"]

_BATCH = 8
_SECONDS = 0.15
_FEWEST_RUNS = 2
_MOST_RUNS = 20


class UnsupportedError(ValueError):
    """An executor that cannot run this network, here or with this precision. The message says why."""


@dataclass(frozen=True)
class Model:
    """What an executor is made for. `weights` names the weights; `fan_out` as for `ReferenceExecutor`."""

    name: str
    network: Network
    slots: int
    fan_out: Mapping[str, Tensor]
    weights: str
    precision: Precision = "auto"


@dataclass(frozen=True)
class Candidate:
    """`make` raises UnsupportedError where the executor cannot run the model after all."""

    label: str
    make: Callable[[], Executor]


def _reference(model: Model) -> Iterator[Candidate]:
    if model.precision not in ("auto", "float32"):
        raise UnsupportedError(
            f"the reference executor computes in float32, not in {model.precision}"
        )
    yield Candidate(
        "reference",
        lambda: ReferenceExecutor(model.network, model.slots, model.fan_out, model.weights),
    )


def _cpu(model: Model) -> Iterator[Candidate]:
    try:
        from spikeserve.engine.cpu import CpuExecutor, faithful_precisions
    except ImportError as error:
        raise UnsupportedError(f"the CPU executor needs numba ({error})") from error
    if model.precision == "bfloat16":
        raise UnsupportedError("the CPU executor does not compute in bfloat16")
    precisions = (
        faithful_precisions(model.network) if model.precision == "auto" else (model.precision,)
    )
    for precision in precisions:
        yield Candidate(
            f"cpu, {precision}",
            lambda precision=precision: CpuExecutor(  # type: ignore[misc]
                model.network, model.slots, model.fan_out, model.weights, precision
            ),
        )


def _cuda(model: Model) -> Iterator[Candidate]:
    if not torch.cuda.is_available():
        raise UnsupportedError("torch sees no NVIDIA GPU here")
    try:
        from spikeserve.engine.cuda import CudaExecutor
    except ImportError as error:
        raise UnsupportedError(f"the executor for GPUs needs Triton ({error})") from error
    dtypes = {"auto": torch.bfloat16, "bfloat16": torch.bfloat16, "float32": torch.float32}
    if model.precision not in dtypes:
        raise UnsupportedError(f"a GPU computes in bfloat16 or float32, not in {model.precision}")
    dtype = dtypes[model.precision]

    def make() -> Executor:
        try:
            return CudaExecutor(model.network, model.slots, model.fan_out, model.weights, dtype)
        except ExportError as error:
            raise UnsupportedError(str(error)) from error

    yield Candidate(f"cuda, {str(dtype).removeprefix('torch.')}", make)


EXECUTORS: dict[str, Callable[[Model], Iterator[Candidate]]] = {
    "cuda": _cuda,
    "cpu": _cpu,
    "reference": _reference,
}


class Chooser:
    """Makes executors of one model: the first time after comparing, later, after a crash, the same kind again."""

    def __init__(self, model: Model, wanted: str) -> None:
        if wanted != "auto" and wanted not in EXECUTORS:
            raise ValueError(f"executor {wanted!r}: there are auto, {', '.join(sorted(EXECUTORS))}")
        self._model = model
        self._wanted = wanted
        self._chosen: Candidate | None = None

    @property
    def label(self) -> str | None:
        """What was chosen, such as "cpu, int16"; None before the first call."""
        return None if self._chosen is None else self._chosen.label

    def __call__(self) -> Executor:
        """Raises UnsupportedError where no executor can run the model as asked."""
        if self._chosen is not None:
            return self._chosen.make()
        candidates, reasons = self._candidates()
        executor, seconds = self._fastest(candidates, reasons)
        if executor is None and self._wanted == "auto" and self._model.precision != "auto":
            # A precision is for the models that can have it; the others are served all the same.
            anyway = list(_reference(replace(self._model, precision="auto")))
            executor, seconds = self._fastest(anyway, reasons)
        label = self.label
        if label is None or executor is None:
            raise UnsupportedError(
                f"{self._model.name}: no executor can run it: {'; '.join(reasons)}"
            )
        figures = ", ".join(f"{label} {1e3 * took:.3g} ms" for label, took in seconds.items())
        details = f": a timestep of one sample takes {figures}" if seconds else ""
        notes = f" ({'; '.join(reasons)})" if reasons else ""
        logger.info("%s runs on: %s%s%s", self._model.name, label, details, notes)
        return executor

    def _candidates(self) -> tuple[list[Candidate], list[str]]:
        names = EXECUTORS if self._wanted == "auto" else (self._wanted,)
        candidates: list[Candidate] = []
        reasons: list[str] = []
        for name in names:
            try:
                candidates += EXECUTORS[name](self._model)
            except UnsupportedError as error:
                reasons.append(f"not {name}: {error}")
        return candidates, reasons

    def _fastest(
        self, candidates: list[Candidate], reasons: list[str]
    ) -> tuple[Executor | None, dict[str, float]]:
        best: Executor | None = None
        seconds: dict[str, float] = {}
        for candidate in candidates:
            try:
                executor = candidate.make()
            except UnsupportedError as error:
                reasons.append(f"not {candidate.label}: {error}")
                continue
            if len(candidates) > 1:
                took = seconds_per_timestep(executor, self._model.network)
                better = not seconds or took < min(seconds.values())
                seconds[candidate.label] = took
                if not better:
                    continue
            best, self._chosen = executor, candidate
        return best, seconds


def seconds_per_timestep(executor: Executor, network: Network) -> float:
    """Of one sample in a batch of several that run all their timesteps: the fastest of some runs."""
    count = min(executor.slots, _BATCH)
    inputs = torch.rand(count, *network.input_shape, generator=torch.Generator().manual_seed(0))
    fastest = float("inf")
    began = time.perf_counter()
    for run in range(_MOST_RUNS):
        start = time.perf_counter()
        for slot in range(count):
            executor.admit(slot, Sample(inputs[slot], network.timesteps))
        for _ in range(network.timesteps):
            executor.step(range(count), None)
        now = time.perf_counter()
        fastest = min(fastest, now - start)
        # The first run prepares and compiles.
        if run >= _FEWEST_RUNS and now - began > _SECONDS:
            break
    return fastest / (count * network.timesteps)
