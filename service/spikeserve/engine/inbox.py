"""What comes to the engine's thread from other threads, and the answers that it owes them. Everything under one lock."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError

from torch import Tensor

from spikeserve.engine.exit import ExitPolicy
from spikeserve.engine.jobs import (
    ImageJob,
    Job,
    JobFuture,
    Priority,
    QueueLimit,
    Resident,
    RunResult,
    SnapshotJob,
    StreamJob,
    Turn,
    WindowJob,
)
from spikeserve.errors import ErrorKind, ServiceError

# Jobs of one stream that may wait for the engine; whoever feeds the stream waits for answers before that.
MAX_PENDING_WINDOWS = 64

Entry = ImageJob | StreamJob | Resident
"""A stream in itself is one that is to be closed."""


class Inbox:
    """`name` is the model's, for messages. A job's turn is the time at which it came; one of low priority is put off by
    `patience` seconds, and one of high priority is as much earlier."""

    def __init__(
        self, name: str, max_queue: int, patience: float, clock: Callable[[], float]
    ) -> None:
        self._name = name
        self._max_queue = max_queue
        self._patience = patience
        self._clock = clock
        self._order = itertools.count()
        self._condition = threading.Condition()
        self._entries: list[Entry] = []
        self._unanswered: set[Job] = set()
        self._accepting = False  # False while there is no executor
        self._draining = False
        self._asleep = False
        self._clients_left = False
        self.stopping = False
        self._why_stopped = "the server is shutting down: try another one"
        self.waiting = 0

    # For other threads.

    def check_new(self) -> None:
        """Raises the ServiceError with which anything new is refused."""
        with self._condition:
            self._check(new=True)

    def check_picture(self) -> None:
        """Raises the ServiceError with which a picture is refused: as above, or because too many wait."""
        with self._condition:
            self._check(new=True)
            if self.waiting >= self._max_queue:
                raise ServiceError(
                    ErrorKind.UNAVAILABLE,
                    f"the queue of model {self._name} is full ({self._max_queue} wait): try again later",
                    1.0,
                )

    def submit_picture(
        self,
        constant: Tensor,
        timesteps: int,
        deadline: float | None,
        priority: Priority,
        exit_policy: ExitPolicy | None,
        queue_limit: QueueLimit | None,
    ) -> Future[RunResult]:
        future = JobFuture(self._client_left)
        with self._condition:
            self.check_picture()
            now = self._clock()
            turn = self._turn(now, priority)
            self._accept(
                ImageJob(turn, now, deadline, future, constant, timesteps, exit_policy, queue_limit)
            )
            self.waiting += 1
        return future

    def submit_window(
        self, stream: Resident, frame: Tensor, deadline: float | None
    ) -> Future[RunResult]:
        future = JobFuture(self._client_left)
        with self._condition:
            self._check_stream(stream)
            now = self._clock()
            turn = self._turn(now, Priority.NORMAL)
            stream.unanswered += 1
            self._accept(WindowJob(turn, now, deadline, future, stream, frame))
        return future

    def submit_snapshot(self, stream: Resident) -> Future[bytes]:
        future = JobFuture(self._client_left)
        with self._condition:
            self._check_stream(stream)
            now = self._clock()
            turn = self._turn(now, Priority.NORMAL)
            stream.unanswered += 1
            self._accept(SnapshotJob(turn, now, future, stream))
        return future

    def close_stream(self, stream: Resident) -> None:
        with self._condition:
            self._entries.append(stream)
            self._wake()

    def drain(self, seconds: float) -> bool:
        """Refuse what is new and wait until all is answered; False if `seconds` did not do."""
        with self._condition:
            self._draining = True
            return self._condition.wait_for(lambda: not self._unanswered, seconds)

    def stop(self, reason: str | None = None) -> None:
        with self._condition:
            if reason is not None and not self.stopping:
                self._why_stopped = reason
            self.stopping = True
            self._condition.notify_all()

    # For the engine's thread.

    def open(self) -> None:
        with self._condition:
            self._accepting = True

    def take(self, has_work: bool) -> tuple[list[Entry], bool]:
        """What has come since the last time, and whether a client has left since then.

        Sleeps while there is nothing to do, until it is time to stop.
        """
        with self._condition:
            while not (self._entries or has_work or self.stopping):
                self._asleep = True
                self._condition.wait()
            self._asleep = False
            taken, self._entries = self._entries, []
            left, self._clients_left = self._clients_left, False
            return taken, left

    def pause(self, seconds: float) -> None:
        """Sleep for so long, less when it is time to stop."""
        with self._condition:
            self._condition.wait_for(lambda: self.stopping, seconds)

    def seated(self, pictures: int) -> None:
        """So many have a slot now, or will never need one."""
        if pictures:
            with self._condition:
                self.waiting -= pictures

    def answer(self, answers: Sequence[tuple[Job, RunResult | bytes]]) -> None:
        with self._settled([job for job, _ in answers]):
            for job, result in answers:
                with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
                    job.future.set_result(result)

    def fail(self, jobs: Sequence[Job], error: ServiceError) -> None:
        with self._settled(jobs):
            for job in jobs:
                with contextlib.suppress(InvalidStateError):
                    job.future.set_exception(error.again())

    def fail_all(self, error: ServiceError) -> None:
        """Accept nothing any more, and fail everything that was accepted; its streams are lost."""
        with self._condition:
            self._accepting = False
            self.waiting = 0
            jobs = list(self._unanswered)
            self._entries = [entry for entry in self._entries if isinstance(entry, Resident)]
            for job in jobs:
                if isinstance(job, StreamJob):
                    job.stream.lost = error
        self.fail(jobs, error)

    def _check(self, new: bool) -> None:
        if self.stopping or (self._draining and new):
            raise ServiceError(ErrorKind.UNAVAILABLE, self._why_stopped, 1.0)
        if not self._accepting:
            raise ServiceError(
                ErrorKind.UNAVAILABLE, f"model {self._name} is restarting: try again", 1.0
            )

    def _check_stream(self, stream: Resident) -> None:
        if stream.lost is not None:
            raise stream.lost.again()
        self._check(new=False)
        if stream.unanswered >= MAX_PENDING_WINDOWS:
            raise ServiceError(
                ErrorKind.UNAVAILABLE,
                f"{MAX_PENDING_WINDOWS} windows of the stream wait already: wait for answers",
                1.0,
            )

    def _turn(self, now: float, priority: Priority) -> Turn:
        return now + priority * self._patience, next(self._order)

    def _accept(self, job: ImageJob | StreamJob) -> None:
        self._unanswered.add(job)
        self._entries.append(job)
        self._wake()

    def _wake(self) -> None:
        # A thread that is at work looks into the inbox by itself.
        if self._asleep:
            self._condition.notify_all()

    def _client_left(self) -> None:
        with self._condition:
            self._clients_left = True

    @contextlib.contextmanager
    def _settled(self, jobs: Sequence[Job]) -> Iterator[None]:
        """What is done in between answers these jobs."""
        if not jobs:
            yield
            return
        with self._condition:
            # Before the answer, so that whoever has it may submit again.
            for job in jobs:
                if isinstance(job, StreamJob):
                    job.stream.unanswered -= 1
        yield
        with self._condition:
            # After the answer, so that whoever waits for all answers finds them given.
            self._unanswered.difference_update(jobs)
            if not self._unanswered:
                self._condition.notify_all()
