"""One thread owns a model's executor; requests reach it through a queue and are answered through futures.

At every timestep it takes in newcomers, drops those whose client has left or whose deadline has passed, runs one step of
all slots with something to do, and answers those that are done. With nothing to do it sleeps until it is woken.

An exception in the executor fails every job that it had accepted, as their states are gone, and makes the scheduler
unhealthy until a fresh executor has been made.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Protocol

import torch
from torch import Tensor

from spikeserve.engine.executor import Executor, Frames, Sample
from spikeserve.engine.jobs import ImageJob, Job, Resident, RunResult, WindowJob, deadline_passed
from spikeserve.engine.pool import Pool
from spikeserve.errors import ErrorKind, ServiceError, new_incident

logger = logging.getLogger(__name__)

# Windows of one stream that may wait for the engine; whoever feeds the stream waits for answers before that.
MAX_PENDING_WINDOWS = 64
_FIRST_RESTART_PAUSE = 1.0
_LONGEST_RESTART_PAUSE = 30.0


class EngineObserver(Protocol):
    """Told by the engine's thread what it does; must not block."""

    def stepped(self, batch: int) -> None: ...

    def restarted(self) -> None: ...


class Scheduler:
    """`make_executor` makes a warm executor; it is called in the scheduler's thread, at the start and after a crash.

    `slots` and `layers` are the executor's, from `start` on.
    """

    def __init__(
        self,
        make_executor: Callable[[], Executor],
        *,
        name: str,
        max_queue: int,
        observer: EngineObserver | None = None,
        stall_seconds: float = 60.0,
    ) -> None:
        self._make_executor = make_executor
        self._name = name
        self._max_queue = max_queue
        self._observer = observer
        self._stall_seconds = stall_seconds
        self._order = itertools.count()
        self._condition = threading.Condition()
        # Everything below is guarded by the condition, but for the pool, which is the thread's own.
        self._inbox: list[Job | Resident] = []  # a stream in it is to be closed
        self._unanswered: set[Job] = set()
        self._waiting = 0
        self._healthy = False
        self._draining = False
        self._stopping = False
        self._step_began: float | None = None
        self._pool: Pool | None = None
        self._thread: threading.Thread | None = None
        self.slots = 0
        self.layers: tuple[str, ...] = ()

    def start(self) -> None:
        """Make the executor; returns when it is warm. Raises what `make_executor` raised."""
        if self._thread is not None:
            raise RuntimeError(f"the engine of {self._name} was started before")
        started: Future[None] = Future()
        # A daemon, so that a program that forgot to stop it can still end.
        self._thread = threading.Thread(
            target=self._run, args=(started,), name=f"engine {self._name}", daemon=True
        )
        self._thread.start()
        started.result()

    @property
    def slots_in_use(self) -> int:
        pool = self._pool
        return 0 if pool is None else pool.slots_in_use

    @property
    def waiting(self) -> int:
        """Pictures accepted that have no slot yet."""
        return self._waiting

    @property
    def healthy(self) -> bool:
        """Whether requests can be answered: a warm executor, and no step that never ends."""
        began = self._step_began
        return self._healthy and (began is None or time.monotonic() - began < self._stall_seconds)

    def check(self) -> None:
        """Raises the ServiceError with which a picture submitted now would be refused."""
        with self._condition:
            self._refuse(new=True)
            self._refuse_when_full()

    def submit(
        self, constant: Tensor, timesteps: int, deadline: float | None = None
    ) -> Future[RunResult]:
        """Run `timesteps` timesteps with a constant input [C, H, W]. Cancel the future when nobody waits any more.

        Raises ServiceError UNAVAILABLE at once when the queue is full or the engine takes nothing new.
        """
        sample = Sample(constant, timesteps)
        with self._condition:
            self._refuse(new=True)
            self._refuse_when_full()
            job = ImageJob(next(self._order), time.monotonic(), deadline, sample, timesteps)
            self._waiting += 1
            self._accept(job)
        return job.future

    def open_stream(self) -> EngineStream:
        """A sample whose inputs come one by one. It has a slot only while it needs one."""
        with self._condition:
            self._refuse(new=True)
        return EngineStream(self, Resident())

    def drain(self, seconds: float) -> bool:
        """Refuse new pictures and streams, and wait until nothing is left to answer; False if `seconds` did not do."""
        with self._condition:
            self._draining = True
            return self._condition.wait_for(lambda: not self._unanswered, seconds)

    def stop(self) -> None:
        """End the thread after the present timestep. Jobs not answered by then fail as UNAVAILABLE."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        if self._thread is not None:
            self._thread.join()

    # What follows here is called by EngineStream.

    def submit_window(
        self, stream: Resident, frame: Tensor, deadline: float | None
    ) -> Future[RunResult]:
        with self._condition:
            if stream.lost is not None:
                raise stream.lost.again()
            self._refuse(new=False)
            if stream.unanswered >= MAX_PENDING_WINDOWS:
                raise ServiceError(
                    ErrorKind.UNAVAILABLE,
                    f"{MAX_PENDING_WINDOWS} windows of the stream wait already: wait for answers",
                    1.0,
                )
            stream.unanswered += 1
            job = WindowJob(next(self._order), time.monotonic(), deadline, stream, frame)
            self._accept(job)
        return job.future

    def close_stream(self, stream: Resident) -> None:
        with self._condition:
            self._inbox.append(stream)
            self._condition.notify_all()

    def _accept(self, job: Job) -> None:
        self._unanswered.add(job)
        self._inbox.append(job)
        self._condition.notify_all()

    def _refuse(self, new: bool) -> None:
        if self._stopping or (self._draining and new):
            raise ServiceError(
                ErrorKind.UNAVAILABLE, "the server is shutting down: try another one", 1.0
            )
        if not self._healthy:
            raise ServiceError(
                ErrorKind.UNAVAILABLE, f"model {self._name} is restarting: try again", 1.0
            )

    def _refuse_when_full(self) -> None:
        if self._waiting >= self._max_queue:
            raise ServiceError(
                ErrorKind.UNAVAILABLE,
                f"the queue of model {self._name} is full ({self._max_queue} wait): try again later",
                1.0,
            )

    # All below runs in the engine's thread.

    def _run(self, started: Future[None]) -> None:
        try:
            self._pool = Pool(self._make_executor())
        except BaseException as error:
            started.set_exception(error)
            return
        self.slots = self._pool.executor.slots
        self.layers = self._pool.executor.layers
        self._healthy = True
        started.set_result(None)
        going = True
        while going:
            try:
                going = self._take_inbox(self._pool) and self._turn(self._pool)
            except BaseException as error:  # a thread that dies would leave its jobs unanswered
                going = self._restart(error)
        self._end()

    def _take_inbox(self, pool: Pool) -> bool:
        """Wait for something to do and sort it in; False when it is time to stop."""
        with self._condition:
            while not (self._inbox or pool.has_work or self._stopping):
                self._condition.wait()
            if self._stopping:
                return False
            inbox, self._inbox = self._inbox, []
        for entry in inbox:
            if isinstance(entry, ImageJob):
                pool.add_image(entry)
            elif isinstance(entry, WindowJob):
                self._add_window(pool, entry)
            elif isinstance(entry, Resident):
                self._close(pool, entry)
        return True

    def _add_window(self, pool: Pool, job: WindowJob) -> None:
        stream = job.stream
        if stream.lost is not None:
            self._fail([job], stream.lost)
        elif stream.closed:
            self._fail([job], ServiceError(ErrorKind.CANCELLED, "the stream was closed"))
        else:
            pool.add_window(job)

    def _close(self, pool: Pool, stream: Resident) -> None:
        if stream.closed:
            return
        stream.closed = True
        pending = list(stream.pending)
        stream.pending.clear()
        pool.remove_stream(stream)
        self._fail(pending, ServiceError(ErrorKind.CANCELLED, "the stream was closed"))

    def _turn(self, pool: Pool) -> bool:
        now = time.monotonic()
        self._fail(pool.drop_over(now), deadline_passed())
        self._step_began = now
        batch = pool.assemble(now)
        with self._condition:
            queued = sum(isinstance(entry, ImageJob) for entry in self._inbox)
            self._waiting = pool.waiting_images + queued
        if batch:
            self._step(pool, batch)
        self._step_began = None
        return True

    def _step(self, pool: Pool, batch: list[tuple[int, Job]]) -> None:
        began = time.monotonic()
        rows = [i for i, (_, job) in enumerate(batch) if isinstance(job, WindowJob)]
        frames = [job.frame for _, job in batch if isinstance(job, WindowJob)]
        result = pool.executor.step(
            [slot for slot, _ in batch],
            Frames(tuple(rows), torch.stack(frames)) if frames else None,
        )
        logits, spikes = result.logits.numpy(), result.spikes.numpy()
        operations = result.synaptic_operations.tolist()
        if not len(logits) == len(spikes) == len(operations) == len(batch):
            raise RuntimeError(f"the executor answered {len(logits)} rows for {len(batch)} slots")
        now = time.monotonic()
        for i, (slot, job) in enumerate(batch):
            if isinstance(job, ImageJob):
                if job.add(logits[i], spikes[i], operations[i]):
                    pool.finish_image(slot)
                    self._answer(job, job.result(now))
            elif isinstance(job, WindowJob):
                pool.finish_window(job.stream)
                waited = began - job.submitted
                answer = RunResult(logits[i : i + 1], spikes[i], operations[i], waited, now - began)
                self._answer(job, answer)
        if self._observer is not None:
            self._observer.stepped(len(batch))

    def _answer(self, job: Job, result: RunResult) -> None:
        self._settle(job)
        with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
            job.future.set_result(result)

    def _fail(self, jobs: list[Job] | list[WindowJob], error: ServiceError) -> None:
        for job in jobs:
            self._settle(job)
            with contextlib.suppress(InvalidStateError):
                job.future.set_exception(error.again())

    def _settle(self, job: Job) -> None:
        with self._condition:
            self._unanswered.discard(job)
            if isinstance(job, WindowJob):
                job.stream.unanswered -= 1
            if not self._unanswered:
                self._condition.notify_all()

    def _restart(self, error: BaseException) -> bool:
        """Fail what was accepted and make a fresh executor; False when it is time to stop."""
        incident = new_incident()
        logger.error("engine of %s crashed, incident %s", self._name, incident, exc_info=error)
        failure = ServiceError(
            ErrorKind.INTERNAL,
            f"model {self._name} failed and is being restarted; the log has the details under {incident}",
            incident=incident,
        )
        with self._condition:
            self._healthy = False
            self._step_began = None
            self._waiting = 0
            unanswered = list(self._unanswered)
            self._inbox = [entry for entry in self._inbox if isinstance(entry, Resident)]
            for job in unanswered:
                if isinstance(job, WindowJob):
                    job.stream.lost = failure
            for stream in self._pool.residents() if self._pool is not None else ():
                stream.lost = failure
        self._pool = None
        self._fail(unanswered, failure)
        if self._observer is not None:
            with contextlib.suppress(Exception):
                self._observer.restarted()
        return self._make_again()

    def _make_again(self) -> bool:
        pause = _FIRST_RESTART_PAUSE
        while True:
            try:
                self._pool = Pool(self._make_executor())
            except Exception:
                logger.exception(
                    "engine of %s cannot be restarted, next try in %g s", self._name, pause
                )
                with self._condition:
                    if self._condition.wait_for(lambda: self._stopping, pause):
                        return False
                pause = min(2 * pause, _LONGEST_RESTART_PAUSE)
                continue
            with self._condition:
                self._healthy = True
            logger.warning("engine of %s is running again", self._name)
            return True

    def _end(self) -> None:
        with self._condition:
            self._healthy = False
            self._stopping = True
            unanswered = list(self._unanswered)
            self._waiting = 0
        self._fail(unanswered, ServiceError(ErrorKind.UNAVAILABLE, "the server was shut down", 1.0))
        self._pool = None


class EngineStream:
    """One stream's windows: state is kept from one to the next, answers come in order. Not for several threads."""

    def __init__(self, scheduler: Scheduler, resident: Resident) -> None:
        self._scheduler = scheduler
        self._resident = resident

    @property
    def lost(self) -> ServiceError | None:
        """Why the state is gone, or None while it is there."""
        return self._resident.lost

    def submit(self, frame: Tensor, deadline: float | None = None) -> Future[RunResult]:
        """One timestep with this frame [C, H, W]. Raises ServiceError where the stream cannot go on.

        Submitting before the answer to the last one has come is allowed, and answers keep their order.
        """
        return self._scheduler.submit_window(self._resident, frame, deadline)

    def close(self) -> None:
        """Free the slot; windows not answered yet fail as CANCELLED. May be called again."""
        self._scheduler.close_stream(self._resident)
