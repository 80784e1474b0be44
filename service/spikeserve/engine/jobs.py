"""What waits for the engine and what it answers."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from spikeserve.engine.executor import Sample
from spikeserve.errors import ErrorKind, ServiceError

Array = NDArray[Any]


@dataclass(frozen=True)
class RunResult:
    """What came of a picture's timesteps, or of one window of a stream."""

    logits: Array  # [timesteps, classes]
    spikes: Array  # [layers], summed over the timesteps, in the order of the executor's layers
    synaptic_operations: float
    queue_seconds: float
    compute_seconds: float


class Job:
    """Something that the engine has accepted and owes one answer, through `future`.

    A client that has left cancels the future. `order` is the order of arrival, over all kinds of jobs; times are
    those of time.monotonic().
    """

    def __init__(self, order: int, now: float, deadline: float | None) -> None:
        self.order = order
        self.submitted = now
        self.deadline = deadline
        self.future: Future[RunResult] = Future()

    def over(self, now: float) -> bool:
        """Whether there is no use in going on."""
        return (self.deadline is not None and self.deadline <= now) or self.future.done()


class ImageJob(Job):
    """A sample with a constant input. It holds a slot from its first timestep to its last."""

    def __init__(
        self, order: int, now: float, deadline: float | None, sample: Sample, timesteps: int
    ) -> None:
        super().__init__(order, now, deadline)
        self.sample = sample
        self.timesteps = timesteps
        self.admitted = now
        self.logits: list[Array] = []
        self.spikes: Array | float = 0.0
        self.synaptic_operations = 0.0

    def add(self, logits: Array, spikes: Array, synaptic_operations: float) -> bool:
        """Take in one timestep; whether it was the last one."""
        self.logits.append(logits)
        self.spikes = self.spikes + spikes
        self.synaptic_operations += synaptic_operations
        return len(self.logits) >= self.timesteps

    def result(self, now: float) -> RunResult:
        return RunResult(
            np.stack(self.logits),
            np.asarray(self.spikes),
            self.synaptic_operations,
            self.admitted - self.submitted,
            now - self.admitted,
        )


class WindowJob(Job):
    """One timestep of a stream."""

    def __init__(
        self, order: int, now: float, deadline: float | None, stream: Resident, frame: Tensor
    ) -> None:
        super().__init__(order, now, deadline)
        self.stream = stream
        self.frame = frame


@dataclass(eq=False)
class Resident:
    """A stream as the engine's thread sees it: its windows in order, and where its state is.

    The state is in `slot`; or in `saved` while others needed the slot; or nowhere yet, before the first window.
    """

    pending: deque[WindowJob] = field(default_factory=deque)
    unanswered: int = 0  # windows that the engine owes an answer, guarded by the scheduler's lock
    slot: int | None = None
    saved: bytes | None = None
    queued: bool = False  # waits for a slot
    closed: bool = False
    lost: ServiceError | None = None  # set once the state is gone


def deadline_passed() -> ServiceError:
    return ServiceError(ErrorKind.DEADLINE, "the deadline passed before the answer was ready")
