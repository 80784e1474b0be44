"""What waits for the engine and what it answers."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from spikeserve.engine.executor import Sample
from spikeserve.engine.exit import ExitPolicy
from spikeserve.errors import ErrorKind, ServiceError

Array = NDArray[Any]

Turn = tuple[float, int]
"""Where somebody stands in the queue, a time and a number: the lowest goes first. No two jobs have the same."""


class Priority(IntEnum):
    """Streams are NORMAL."""

    HIGH = -1
    NORMAL = 0
    LOW = 1


@dataclass(frozen=True)
class RunResult:
    """What came of a picture's timesteps, or of one window of a stream."""

    logits: Array  # [timesteps, classes]
    spikes: Array  # [layers], summed over the timesteps, in the order of the executor's layers
    first_spikes: Array  # [layers], of the first timestep
    synaptic_operations: float
    queue_seconds: float
    compute_seconds: float


class JobFuture(Future[Any]):
    """Says so at once when its client has left."""

    def __init__(self, left: Callable[[], None]) -> None:
        super().__init__()
        self._left = left

    def cancel(self) -> bool:
        if not super().cancel():
            return False
        self._left()
        return True


class QueueLimit(NamedTuple):
    """How long a picture may wait for a slot, and what the limit is called in a message to the client."""

    seconds: float
    name: str


class Job:
    """Something that the engine has accepted and owes one answer, through `future`.

    `submitted` and `deadline` are times of the scheduler's clock.
    """

    __slots__ = ("deadline", "future", "submitted", "turn")

    def __init__(
        self, turn: Turn, submitted: float, deadline: float | None, future: JobFuture
    ) -> None:
        self.turn = turn
        self.submitted = submitted
        self.deadline = deadline
        self.future = future

    def over(self, now: float) -> bool:
        """Whether there is no use in going on."""
        return (self.deadline is not None and self.deadline <= now) or self.future.done()

    @property
    def soonest(self) -> float:
        """The job is not over before this, unless its client leaves."""
        return math.inf if self.deadline is None else self.deadline

    def failure(self, now: float) -> ServiceError:
        """With which it fails when it is over."""
        return deadline_passed()


class ImageJob(Job):
    """A sample with a constant input. It holds a slot from its first timestep to its last."""

    __slots__ = ("admitted", "exit", "queue_limit", "sample", "timesteps")

    def __init__(
        self,
        turn: Turn,
        submitted: float,
        deadline: float | None,
        future: JobFuture,
        constant: Tensor,
        timesteps: int,
        exit_policy: ExitPolicy | None,
        queue_limit: QueueLimit | None = None,
    ) -> None:
        super().__init__(turn, submitted, deadline, future)
        self.queue_limit = queue_limit  # None once it has a slot
        self.sample = Sample(constant, timesteps if exit_policy is None else None)
        self.timesteps = timesteps
        self.exit = exit_policy
        self.admitted = submitted

    def over(self, now: float) -> bool:
        return super().over(now) or self._overdue <= now

    @property
    def soonest(self) -> float:
        return min(super().soonest, self._overdue)

    def failure(self, now: float) -> ServiceError:
        if self.queue_limit is None or self._overdue > now or super().over(now):
            return deadline_passed()
        seconds, name = self.queue_limit
        return ServiceError(
            ErrorKind.UNAVAILABLE,
            f"the picture waited {seconds:g} s for a slot, the limit ({name}): try again later",
            seconds,
        )

    @property
    def _overdue(self) -> float:
        return math.inf if self.queue_limit is None else self.submitted + self.queue_limit.seconds


class WindowJob(Job):
    """One timestep of a stream."""

    __slots__ = ("frame", "stream")

    def __init__(
        self,
        turn: Turn,
        submitted: float,
        deadline: float | None,
        future: JobFuture,
        stream: Resident,
        frame: Tensor,
    ) -> None:
        super().__init__(turn, submitted, deadline, future)
        self.stream = stream
        self.frame = frame


class SnapshotJob(Job):
    """A stream's state as bytes, after the windows submitted before."""

    __slots__ = ("stream",)

    def __init__(self, turn: Turn, submitted: float, future: JobFuture, stream: Resident) -> None:
        super().__init__(turn, submitted, None, future)
        self.stream = stream


StreamJob = WindowJob | SnapshotJob


@dataclass(eq=False)
class Resident:
    """A stream as the engine's thread sees it: its jobs in order, and where its state is.

    The state is in `slot`; or in `saved` while others needed the slot, or where it was brought along; or nowhere yet,
    before the first window.
    """

    saved: bytes | None = None
    pending: deque[StreamJob] = field(default_factory=deque)
    unanswered: int = 0  # jobs that the engine owes an answer, guarded by the inbox's lock
    slot: int | None = None
    computed: int = 0  # windows
    not_before: Turn = (-np.inf, 0)  # its turn is not earlier than this
    queued: bool = False  # waits for a slot
    closed: bool = False
    lost: ServiceError | None = None  # set once the state is gone

    @property
    def turn(self) -> Turn:
        """Of its next job."""
        return max(self.pending[0].turn, self.not_before)


def deadline_passed() -> ServiceError:
    return ServiceError(ErrorKind.DEADLINE, "the deadline passed before the answer was ready")
