"""One thread owns a model's executor; requests reach it through an inbox and are answered through futures.

At every timestep it takes in newcomers, drops those whose client has left or whose deadline has passed, runs one step of
all slots with something to do, and answers those that are done (`turn.py`). With nothing to do it sleeps until it is
woken. Who gets a slot when there are too few is decided by `pool.py`.

An exception in the executor fails every job that it had accepted, as their states are gone, and makes the scheduler
unhealthy until a fresh executor has been made.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from torch import Tensor

from spikeserve.engine.executor import Executor, Sample, StateError
from spikeserve.engine.exit import ExitPolicy
from spikeserve.engine.inbox import Inbox
from spikeserve.engine.jobs import Priority, QueueLimit, Resident, RunResult
from spikeserve.engine.pool import Pool
from spikeserve.engine.state import StateForm
from spikeserve.engine.threads import take_threads
from spikeserve.engine.turn import EngineObserver, Turns, unfit_state
from spikeserve.errors import ErrorKind, ServiceError, new_incident

logger = logging.getLogger(__name__)

_FIRST_RESTART_PAUSE = 1.0
_LONGEST_RESTART_PAUSE = 30.0


class Scheduler:
    """`make_executor` makes a warm executor; it is called in the scheduler's thread, at the start and after a crash.

    A request goes before one of the next higher priority that came `patience_seconds` after it or later. `slots` and
    `layers` are the executor's, from `start` on.
    """

    def __init__(
        self,
        make_executor: Callable[[], Executor],
        *,
        name: str,
        max_queue: int,
        observer: EngineObserver | None = None,
        stall_seconds: float = 60.0,
        patience_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make_executor = make_executor
        self._name = name
        self._observer = observer
        self._stall_seconds = stall_seconds
        self._clock = clock
        self._inbox = Inbox(name, max_queue, patience_seconds, clock)
        self._thread: threading.Thread | None = None
        # Set by the thread, and read by others: no turns means no executor, so not healthy.
        self._turns: Turns | None = None
        self._form = StateForm(b"")
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
        turns = self._turns
        if turns is None:
            return False
        began = turns.step_began
        return began is None or self._clock() - began < self._stall_seconds

    @property
    def restarting(self) -> bool:
        """Whether it crashed, and a fresh executor is being made."""
        thread = self._thread
        return (
            self._turns is None
            and thread is not None
            and thread.is_alive()
            and not self._inbox.stopping
        )

    @property
    def _pool(self) -> Pool | None:
        turns = self._turns
        return None if turns is None else turns.pool

    def check(self) -> None:
        """Raises the ServiceError with which a picture submitted now would be refused."""
        self._inbox.check_picture()

    def submit(
        self,
        constant: Tensor,
        timesteps: int,
        deadline: float | None = None,
        *,
        priority: Priority = Priority.NORMAL,
        exit_policy: ExitPolicy | None = None,
        queue_limit: QueueLimit | None = None,
    ) -> Future[RunResult]:
        """Run `timesteps` timesteps with a constant input [C, H, W], or fewer where the policy lets it leave early.

        Cancel the future when nobody waits any more. Raises ServiceError UNAVAILABLE at once when the queue is full or
        the engine takes nothing new; the future fails as such where it had no slot within `queue_limit`.
        """
        return self._inbox.submit_picture(
            constant, timesteps, deadline, priority, exit_policy, queue_limit
        )

    def open_stream(self, state: bytes | None = None) -> EngineStream:
        """A sample whose inputs come one by one. It has a slot only while it needs one.

        With a `state` of `EngineStream.save` it goes on where that was taken, bit by bit: on this server or another
        one with the same model. Raises ServiceError: IMPOSSIBLE for a state that is damaged, of another version or of
        another model, UNAVAILABLE where the engine takes nothing new.
        """
        self._inbox.check_new()
        if state is not None:
            try:
                self._form.check(state)
            except StateError as error:
                raise unfit_state(error) from None
        return EngineStream(self._inbox, state)

    def drain(self, seconds: float) -> bool:
        """Refuse new pictures and streams, and wait until nothing is left to answer; False if `seconds` did not do."""
        return self._inbox.drain(seconds)

    def stop(self, reason: str | None = None) -> None:
        """End the thread after the present timestep. Jobs not answered by then fail as UNAVAILABLE, and later ones too:
        with `reason`, where it is not that the server stops."""
        self._inbox.stop(reason)
        if self._thread is not None:
            self._thread.join()

    # All below runs in the engine's thread.

    def _run(self, started: Future[None]) -> None:
        take_threads()
        try:
            turns: Turns | None = self._begin()
        except BaseException as error:
            started.set_exception(error)
            return
        while turns is not None:
            self._turns = turns
            self._inbox.open()
            if not started.done():
                started.set_result(None)
            turns = self._serve(turns)

    def _begin(self) -> Turns:
        executor = self._make_executor()
        executor.admit(0, Sample())
        self._form = StateForm(executor.save(0))
        self.slots, self.layers = executor.slots, executor.layers
        return Turns(executor, self._inbox, self._observer, self._clock)

    def _serve(self, turns: Turns) -> Turns | None:
        """Work until it is time to stop: None; or until a crash: a fresh executor's turns."""
        try:
            while not self._inbox.stopping:
                turns.run(*self._inbox.take(turns.pool.has_work))
        except BaseException as error:  # a thread that dies would leave its jobs unanswered
            return self._restart(turns, error)
        self._turns = None
        self._inbox.fail_all(ServiceError(ErrorKind.UNAVAILABLE, "the server was shut down", 1.0))
        return None

    def _restart(self, turns: Turns, error: BaseException) -> Turns | None:
        """Fail what was accepted and make a fresh executor; None when it is time to stop."""
        incident = new_incident()
        logger.error("engine of %s crashed, incident %s", self._name, incident, exc_info=error)
        failure = ServiceError(
            ErrorKind.INTERNAL,
            f"model {self._name} failed and is being restarted; the log has the details under {incident}",
            incident=incident,
        )
        self._turns = None
        for stream in turns.pool.abandon():
            stream.lost = failure
        self._inbox.fail_all(failure)
        if self._observer is not None:
            with contextlib.suppress(Exception):
                self._observer.restarted()
        return self._make_again()

    def _make_again(self) -> Turns | None:
        pause = _FIRST_RESTART_PAUSE
        while not self._inbox.stopping:
            try:
                turns = self._begin()
            except Exception:
                logger.exception(
                    "engine of %s cannot be restarted, next try in %g s", self._name, pause
                )
                self._inbox.pause(pause)
                pause = min(2 * pause, _LONGEST_RESTART_PAUSE)
            else:
                logger.warning("engine of %s is running again", self._name)
                return turns
        return None


class EngineStream:
    """One stream's windows: state is kept from one to the next, answers come in order. Not for several threads."""

    def __init__(self, inbox: Inbox, state: bytes | None) -> None:
        self._inbox = inbox
        self._resident = Resident(saved=state)

    @property
    def lost(self) -> ServiceError | None:
        """Why the state is gone, or None while it is there."""
        return self._resident.lost

    def submit(self, frame: Tensor, deadline: float | None = None) -> Future[RunResult]:
        """One timestep with this frame [C, H, W]. Raises ServiceError where the stream cannot go on.

        Submitting before the answer to the last one has come is allowed, and answers keep their order. A window whose
        deadline passes, or whose future is cancelled, before it is computed leaves no trace in the state.
        """
        return self._inbox.submit_window(self._resident, frame, deadline)

    def save(self) -> Future[bytes]:
        """The state after the windows submitted before, for `Scheduler.open_stream`. The stream goes on.

        Raises ServiceError as `submit` does; the future fails as theirs do. Possible while the scheduler drains.
        """
        return self._inbox.submit_snapshot(self._resident)

    def close(self) -> None:
        """Free the slot; what is not answered yet fails as CANCELLED. May be called again."""
        self._inbox.close_stream(self._resident)
