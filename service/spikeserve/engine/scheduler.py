"""One thread owns a model's executor; requests reach it through an inbox and are answered through futures.

At every timestep it takes in newcomers, drops those whose client has left or whose deadline has passed, runs one step of
all slots with something to do, and answers those that are done. With nothing to do it sleeps until it is woken.

An exception in the executor fails every job that it had accepted, as their states are gone, and makes the scheduler
unhealthy until a fresh executor has been made.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Protocol

import torch
from torch import Tensor

from spikeserve.engine.executor import Executor, Frames
from spikeserve.engine.inbox import Inbox
from spikeserve.engine.jobs import ImageJob, Job, Resident, RunResult, WindowJob, deadline_passed
from spikeserve.engine.pool import Pool
from spikeserve.errors import ErrorKind, ServiceError, new_incident

logger = logging.getLogger(__name__)

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
        self._observer = observer
        self._stall_seconds = stall_seconds
        self._inbox = Inbox(name, max_queue)
        self._thread: threading.Thread | None = None
        # Set by the thread, and read by others: no executor means not healthy.
        self._pool: Pool | None = None
        self._step_began: float | None = None
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
        return self._inbox.waiting

    @property
    def healthy(self) -> bool:
        """Whether requests can be answered: a warm executor, and no step that never ends."""
        began = self._step_began
        stalled = began is not None and time.monotonic() - began >= self._stall_seconds
        return self._pool is not None and not stalled

    def check(self) -> None:
        """Raises the ServiceError with which a picture submitted now would be refused."""
        self._inbox.check_picture()

    def submit(
        self, constant: Tensor, timesteps: int, deadline: float | None = None
    ) -> Future[RunResult]:
        """Run `timesteps` timesteps with a constant input [C, H, W]. Cancel the future when nobody waits any more.

        Raises ServiceError UNAVAILABLE at once when the queue is full or the engine takes nothing new.
        """
        return self._inbox.submit_picture(constant, timesteps, deadline)

    def open_stream(self) -> EngineStream:
        """A sample whose inputs come one by one. It has a slot only while it needs one. Raises ServiceError."""
        self._inbox.check_new()
        return EngineStream(self._inbox)

    def drain(self, seconds: float) -> bool:
        """Refuse new pictures and streams, and wait until nothing is left to answer; False if `seconds` did not do."""
        return self._inbox.drain(seconds)

    def stop(self) -> None:
        """End the thread after the present timestep. Jobs not answered by then fail as UNAVAILABLE."""
        self._inbox.stop()
        if self._thread is not None:
            self._thread.join()

    # All below runs in the engine's thread.

    def _run(self, started: Future[None]) -> None:
        try:
            pool: Pool | None = Pool(self._make_executor())
        except BaseException as error:
            started.set_exception(error)
            return
        while pool is not None:
            self.slots, self.layers = pool.executor.slots, pool.executor.layers
            self._pool = pool
            self._inbox.open()
            if not started.done():
                started.set_result(None)
            pool = self._serve(pool)

    def _serve(self, pool: Pool) -> Pool | None:
        """Work until it is time to stop: None; or until a crash: a fresh pool."""
        try:
            while not self._inbox.stopping:
                self._sort_in(pool, self._inbox.take(pool.has_work))
                self._turn(pool)
        except BaseException as error:  # a thread that dies would leave its jobs unanswered
            return self._restart(pool, error)
        self._pool = None
        self._inbox.fail_all(ServiceError(ErrorKind.UNAVAILABLE, "the server was shut down", 1.0))
        return None

    def _sort_in(self, pool: Pool, entries: Iterable[Job | Resident]) -> None:
        for entry in entries:
            if isinstance(entry, ImageJob):
                pool.add_image(entry)
            elif isinstance(entry, WindowJob):
                if entry.stream.closed:
                    self._inbox.fail([entry], _stream_closed())
                else:
                    pool.add_window(entry)
            elif isinstance(entry, Resident):
                self._inbox.fail(pool.close_stream(entry), _stream_closed())

    def _turn(self, pool: Pool) -> None:
        now = time.monotonic()
        self._inbox.fail(pool.drop_over(now), deadline_passed())
        self._step_began = now
        batch = pool.assemble(now)
        self._inbox.count_waiting(pool.waiting_images)
        if batch:
            self._step(pool, batch)
        self._step_began = None

    def _step(self, pool: Pool, batch: list[tuple[int, Job]]) -> None:
        began = time.monotonic()
        windows = [(i, job) for i, (_, job) in enumerate(batch) if isinstance(job, WindowJob)]
        frames = (
            Frames(tuple(i for i, _ in windows), torch.stack([job.frame for _, job in windows]))
            if windows
            else None
        )
        result = pool.executor.step([slot for slot, _ in batch], frames)
        logits, spikes = result.logits.numpy(), result.spikes.numpy()
        operations = result.synaptic_operations.tolist()
        if not len(logits) == len(spikes) == len(operations) == len(batch):
            raise RuntimeError(f"the executor answered {len(logits)} rows for {len(batch)} slots")
        if self._observer is not None:
            self._observer.stepped(len(batch))
        now = time.monotonic()
        for i, (slot, job) in enumerate(batch):
            if isinstance(job, ImageJob):
                if job.add(logits[i], spikes[i], operations[i]):
                    pool.finish_image(slot)
                    self._inbox.answer(job, job.result(now))
            elif isinstance(job, WindowJob):
                pool.finish_window(job.stream)
                waited, took = began - job.submitted, now - began
                one = RunResult(logits[i : i + 1], spikes[i], operations[i], waited, took)
                self._inbox.answer(job, one)

    def _restart(self, pool: Pool, error: BaseException) -> Pool | None:
        """Fail what was accepted and make a fresh executor; None when it is time to stop."""
        incident = new_incident()
        logger.error("engine of %s crashed, incident %s", self._name, incident, exc_info=error)
        failure = ServiceError(
            ErrorKind.INTERNAL,
            f"model {self._name} failed and is being restarted; the log has the details under {incident}",
            incident=incident,
        )
        self._pool = self._step_began = None
        for stream in pool.abandon():
            stream.lost = failure
        self._inbox.fail_all(failure)
        if self._observer is not None:
            with contextlib.suppress(Exception):
                self._observer.restarted()
        return self._make_again()

    def _make_again(self) -> Pool | None:
        pause = _FIRST_RESTART_PAUSE
        while not self._inbox.stopping:
            try:
                pool = Pool(self._make_executor())
            except Exception:
                logger.exception(
                    "engine of %s cannot be restarted, next try in %g s", self._name, pause
                )
                self._inbox.pause(pause)
                pause = min(2 * pause, _LONGEST_RESTART_PAUSE)
            else:
                logger.warning("engine of %s is running again", self._name)
                return pool
        return None


class EngineStream:
    """One stream's windows: state is kept from one to the next, answers come in order. Not for several threads."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._resident = Resident()

    @property
    def lost(self) -> ServiceError | None:
        """Why the state is gone, or None while it is there."""
        return self._resident.lost

    def submit(self, frame: Tensor, deadline: float | None = None) -> Future[RunResult]:
        """One timestep with this frame [C, H, W]. Raises ServiceError where the stream cannot go on.

        Submitting before the answer to the last one has come is allowed, and answers keep their order.
        """
        return self._inbox.submit_window(self._resident, frame, deadline)

    def close(self) -> None:
        """Free the slot; windows not answered yet fail as CANCELLED. May be called again."""
        self._inbox.close_stream(self._resident)


def _stream_closed() -> ServiceError:
    return ServiceError(ErrorKind.CANCELLED, "the stream was closed")
