"""What comes to the engine's thread from other threads, and the answers that it owes them. Everything under one lock."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, InvalidStateError

from torch import Tensor

from spikeserve.engine.executor import Sample
from spikeserve.engine.jobs import ImageJob, Job, Resident, RunResult, WindowJob
from spikeserve.errors import ErrorKind, ServiceError

# Windows of one stream that may wait for the engine; whoever feeds the stream waits for answers before that.
MAX_PENDING_WINDOWS = 64


class Inbox:
    """`accepting` is False while there is no executor. `name` is the model's, for messages."""

    def __init__(self, name: str, max_queue: int) -> None:
        self._name = name
        self._max_queue = max_queue
        self._order = itertools.count()
        self._condition = threading.Condition()
        self._entries: list[Job | Resident] = []  # a stream in it is to be closed
        self._unanswered: set[Job] = set()
        self._accepting = False
        self._draining = False
        self.stopping = False
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
        self, constant: Tensor, timesteps: int, deadline: float | None
    ) -> Future[RunResult]:
        with self._condition:
            self.check_picture()
            sample = Sample(constant, timesteps)
            job = ImageJob(next(self._order), time.monotonic(), deadline, sample, timesteps)
            self.waiting += 1
            self._accept(job)
        return job.future

    def submit_window(
        self, stream: Resident, frame: Tensor, deadline: float | None
    ) -> Future[RunResult]:
        with self._condition:
            if stream.lost is not None:
                raise stream.lost.again()
            self._check(new=False)
            if stream.unanswered >= MAX_PENDING_WINDOWS:
                raise ServiceError(
                    ErrorKind.UNAVAILABLE,
                    f"{MAX_PENDING_WINDOWS} windows of the stream wait already: wait for answers",
                    1.0,
                )
            job = WindowJob(next(self._order), time.monotonic(), deadline, stream, frame)
            stream.unanswered += 1
            self._accept(job)
        return job.future

    def close_stream(self, stream: Resident) -> None:
        with self._condition:
            self._entries.append(stream)
            self._condition.notify_all()

    def drain(self, seconds: float) -> bool:
        """Refuse what is new and wait until all is answered; False if `seconds` did not do."""
        with self._condition:
            self._draining = True
            return self._condition.wait_for(lambda: not self._unanswered, seconds)

    def stop(self) -> None:
        with self._condition:
            self.stopping = True
            self._condition.notify_all()

    # For the engine's thread.

    def open(self) -> None:
        with self._condition:
            self._accepting = True

    def take(self, has_work: bool) -> list[Job | Resident]:
        """What has come since the last time. Sleeps while there is nothing to do, until it is time to stop."""
        with self._condition:
            while not (self._entries or has_work or self.stopping):
                self._condition.wait()
            taken, self._entries = self._entries, []
            return taken

    def pause(self, seconds: float) -> None:
        """Sleep for so long, less when it is time to stop."""
        with self._condition:
            self._condition.wait_for(lambda: self.stopping, seconds)

    def count_waiting(self, taken: int) -> None:
        """`taken` pictures wait among those that were taken out; those in here are added."""
        with self._condition:
            self.waiting = taken + sum(isinstance(entry, ImageJob) for entry in self._entries)

    def answer(self, job: Job, result: RunResult) -> None:
        self._settle(job)
        with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
            job.future.set_result(result)

    def fail(self, jobs: Iterable[Job], error: ServiceError) -> None:
        for job in jobs:
            self._settle(job)
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
                if isinstance(job, WindowJob):
                    job.stream.lost = error
        self.fail(jobs, error)

    def _check(self, new: bool) -> None:
        if self.stopping or (self._draining and new):
            raise ServiceError(
                ErrorKind.UNAVAILABLE, "the server is shutting down: try another one", 1.0
            )
        if not self._accepting:
            raise ServiceError(
                ErrorKind.UNAVAILABLE, f"model {self._name} is restarting: try again", 1.0
            )

    def _accept(self, job: Job) -> None:
        self._unanswered.add(job)
        self._entries.append(job)
        self._condition.notify_all()

    def _settle(self, job: Job) -> None:
        with self._condition:
            self._unanswered.discard(job)
            if isinstance(job, WindowJob):
                job.stream.unanswered -= 1
            if not self._unanswered:
                self._condition.notify_all()
