"""The server with an executor that computes nothing and takes a known time: what queues do, whatever the processor.

SLEEP_MS=4,1 python benchmarks/scale_delayed.py serve ...     4 ms for a timestep, and 1 ms for each sample in it
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence

import torch

from spikeserve.cli import main
from spikeserve.engine import choose
from spikeserve.engine.executor import Frames, Sample, StepResult
from spikeserve.engine.reference import ReferenceExecutor


class DelayedExecutor(ReferenceExecutor):
    """Answers that all classes are alike."""

    def __init__(self, model: choose.Model, fixed: float, each: float) -> None:
        super().__init__(model.network, model.slots, model.fan_out, model.weights)
        self._seconds = fixed, each
        self._classes = model.network.classes

    def admit(self, slot: int, sample: Sample) -> None:
        if sample.constant is None:
            super().admit(slot, sample)

    def step(self, slots: Sequence[int], frames: Frames | None) -> StepResult:
        fixed, each = self._seconds
        time.sleep(fixed + each * len(slots))
        count = len(slots)
        return StepResult(
            torch.zeros(count, self._classes),
            torch.zeros(count, len(self.layers), dtype=torch.float64),
            torch.zeros(count, dtype=torch.float64),
        )


def delayed(model: choose.Model) -> Iterator[choose.Candidate]:
    fixed, each = (float(value) / 1e3 for value in os.environ["SLEEP_MS"].split(","))
    yield choose.Candidate("delayed", lambda: DelayedExecutor(model, fixed, each))


if __name__ == "__main__":
    choose.EXECUTORS["reference"] = delayed
    main()
