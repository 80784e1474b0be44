"""One timestep of a model: take in newcomers, drop those that are over, step, answer. Runs in the engine's thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import torch

from spikeserve.engine.executor import Executor, Frames, StateError, StepResult
from spikeserve.engine.inbox import Entry, Inbox
from spikeserve.engine.jobs import (
    ImageJob,
    Job,
    Resident,
    RunResult,
    WindowJob,
)
from spikeserve.engine.pool import Pool
from spikeserve.errors import ErrorKind, ServiceError


class EngineObserver(Protocol):
    """Told by the engine's thread what it does; must not block."""

    def stepped(self, batch: int) -> None: ...

    def restarted(self) -> None: ...


class Turns:
    """`step_began` is the time at which the step in progress began, None where there is none."""

    def __init__(
        self,
        executor: Executor,
        inbox: Inbox,
        observer: EngineObserver | None,
        clock: Callable[[], float],
    ) -> None:
        self.pool = Pool(executor)
        self.step_began: float | None = None
        self._inbox = inbox
        self._observer = observer
        self._clock = clock

    def run(self, entries: Iterable[Entry], clients_left: bool) -> None:
        """Whatever is raised here comes from the executor: it cannot be trusted any more."""
        pool, inbox = self.pool, self._inbox
        self._sort_in(entries)
        now = self._clock()
        for job in pool.drop_over(now, clients_left):
            inbox.fail([job], job.failure(now))
        self.step_began = now
        images, windows = pool.assemble(now)
        inbox.seated(pool.seated)
        pool.seated = 0
        self._hand_out()
        if images or windows:
            self._step(images, windows)
        self.step_began = None

    def _sort_in(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            if isinstance(entry, ImageJob):
                self.pool.add_image(entry)
            elif isinstance(entry, Resident):
                self._inbox.fail(self.pool.close_stream(entry), stream_closed())
            elif entry.stream.lost is not None:
                self._inbox.fail([entry], entry.stream.lost)
            elif entry.stream.closed:
                self._inbox.fail([entry], stream_closed())
            else:
                self.pool.add_to_stream(entry)

    def _hand_out(self) -> None:
        """Snapshots that are there by now, and the news that a state could not be loaded."""
        pool = self.pool
        if pool.snapshots:
            self._inbox.answer(pool.snapshots)
            pool.snapshots = []
        for stream, error in pool.spoiled:
            stream.lost = unfit_state(error)
            self._inbox.fail(pool.close_stream(stream), stream.lost)
        pool.spoiled = []

    def _step(self, images: dict[int, ImageJob], windows: dict[int, WindowJob]) -> None:
        began = self._clock()
        result = self._computed(images, windows)
        self._observe(len(images) + len(windows))
        sizes: list[int] = []  # of the further timesteps of pictures
        logits, spikes = result.logits.numpy(), result.spikes.numpy()
        operations = result.synaptic_operations.numpy()
        now = self._clock()
        answers: list[tuple[Job, RunResult | bytes]] = []
        pool, count = self.pool, len(images)
        if images:
            slots = list(images)
            done = pool.ledger.add(slots, logits[:count], spikes[:count], operations[:count])
            for row in (~done).nonzero()[0]:
                done[row] = self._add_further(slots[row], sizes)
            for size in sizes:
                self._observe(size)
            for slot in (slots[row] for row in done.nonzero()[0]):
                job = images[slot]
                pool.finish_image(slot)
                waited, took = job.admitted - job.submitted, now - job.admitted
                answers.append((job, RunResult(*pool.ledger.take(slot), waited, took)))
        for i, window in enumerate(windows.values(), count):
            pool.finish_window(window.stream, now)
            waited, took = began - window.submitted, now - began
            fired, count_of = spikes[i], float(operations[i])
            one = RunResult(logits[i : i + 1], fired, fired, count_of, waited, took)
            answers.append((window, one))
        self._inbox.answer(answers)
        self._hand_out()

    def _add_further(self, slot: int, sizes: list[int]) -> bool:
        """Take in the timesteps of a picture that the executor has computed already; whether it is done then."""
        further = getattr(self.pool.executor, "further", None)
        rows = None if further is None else further(slot)
        if rows is None:
            return False
        steps = len(rows[0])
        sizes += [0] * (steps - len(sizes))
        for t in range(steps):
            sizes[t] += 1
        return self.pool.ledger.add_further(slot, *rows)

    def _observe(self, batch: int) -> None:
        if self._observer is not None:
            self._observer.stepped(batch)

    def _computed(self, images: dict[int, ImageJob], windows: dict[int, WindowJob]) -> StepResult:
        count = len(images) + len(windows)
        frames = None
        if windows:
            values = torch.stack([job.frame for job in windows.values()])
            frames = Frames(tuple(range(len(images), count)), values)
        result = self.pool.executor.step([*images, *windows], frames)
        rows = {len(result.logits), len(result.spikes), len(result.synaptic_operations)}
        if rows != {count}:
            raise RuntimeError(f"the executor answered {sorted(rows)} rows for {count} slots")
        return result


def stream_closed() -> ServiceError:
    return ServiceError(ErrorKind.CANCELLED, "the stream was closed")


def unfit_state(error: StateError) -> ServiceError:
    """For a client that brought a state along."""
    return ServiceError(ErrorKind.IMPOSSIBLE, str(error))
