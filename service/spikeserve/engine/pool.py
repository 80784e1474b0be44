"""Who is in which slot. Belongs to the engine's thread; knows neither locks nor clocks.

Slots are given by turn, to pictures and streams alike, whatever they are. A job's turn is the time at which it came, put
off by its priority; that of a stream is its next job's. A picture keeps its slot from its first timestep to its last. A
stream stays in its slot between windows; when somebody whose turn is earlier waits, the stream that has been idle
longest has its state moved out, bit by bit, and then the one whose turn is last. A stream that always has a next window
goes to the end of the queue every `QUANTUM` windows. So more streams can be open than there are slots, and whoever waits
is passed only by those of higher priority, and by these only for a bounded time.
"""

from __future__ import annotations

import heapq
import math

from spikeserve.engine.executor import Executor, Sample, StateError
from spikeserve.engine.jobs import ImageJob, Job, Resident, SnapshotJob, StreamJob, Turn, WindowJob
from spikeserve.engine.ledger import Ledger

QUANTUM = 8
"""Windows of one stream that may be computed in its slot while others wait, before it queues up behind them."""

# Added to a job's number, it goes behind all that came at the same time.
_AFTER_ALL = 1 << 62


class Pool:
    """What happened since the owner last looked is in `snapshots`, states that were asked for; in `spoiled`, streams
    whose state could not be loaded, and why; and in `seated`, how many pictures wait no longer. The owner empties them.
    """

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.ledger = Ledger(executor.slots)
        self.snapshots: list[tuple[SnapshotJob, bytes]] = []
        self.spoiled: list[tuple[Resident, StateError]] = []
        self.seated = 0
        self._free = list(range(executor.slots - 1, -1, -1))
        self._images: dict[int, ImageJob] = {}
        # Streams in a slot: with windows to compute, and without, longest idle first.
        self._busy: dict[Resident, None] = {}
        self._idle: dict[Resident, None] = {}
        self._waiting: list[tuple[Turn, ImageJob | Resident]] = []  # a heap
        self._soonest = math.inf  # no job's deadline is before this

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._images or self._busy)

    @property
    def slots_in_use(self) -> int:
        return self.executor.slots - len(self._free)

    def add_image(self, job: ImageJob) -> None:
        heapq.heappush(self._waiting, (job.turn, job))
        self._note_deadline(job)

    def add_to_stream(self, job: StreamJob) -> None:
        stream = job.stream
        stream.pending.append(job)
        self._note_deadline(job)
        if len(stream.pending) == 1:
            self._go_on(stream)

    def close_stream(self, stream: Resident) -> list[Job]:
        """Free the slot, and return the jobs not done yet. Its place in the queue is left to be skipped."""
        if not stream.closed and stream.slot is not None:
            self._free.append(stream.slot)
        self._busy.pop(stream, None)
        self._idle.pop(stream, None)
        left: list[Job] = list(stream.pending)
        stream.pending.clear()
        stream.slot = stream.saved = None
        stream.closed = True
        return left

    def abandon(self) -> list[Resident]:
        """Forget all streams, as the executor is lost; returns those whose state was in it."""
        lost = [*self._busy, *self._idle]
        queued = [entry for _, entry in self._waiting if isinstance(entry, Resident)]
        for stream in lost + queued:
            stream.slot, stream.queued = None, False
            stream.pending.clear()
        return lost

    def drop_over(self, now: float, clients_left: bool) -> list[Job]:
        """Take out the jobs whose deadline has passed, or whose client has left, if any has."""
        if now < self._soonest and not clients_left:
            return []
        self._soonest = math.inf
        return [
            *self._drop_waiting(now),
            *self._drop_images(now),
            *self._drop_from_streams(now),
        ]

    def assemble(self, now: float) -> tuple[dict[int, ImageJob], dict[int, WindowJob]]:
        """Fill the slots and return the jobs of the next timestep by slot."""
        self._place_waiting(now)
        windows: dict[int, WindowJob] = {}
        for stream in self._busy:
            job = stream.pending[0]
            if stream.slot is not None and isinstance(job, WindowJob):
                windows[stream.slot] = job
        return self._images.copy(), windows

    def finish_image(self, slot: int) -> None:
        del self._images[slot]
        self._free.append(slot)

    def finish_window(self, stream: Resident, now: float) -> None:
        done = stream.pending.popleft()
        stream.computed += 1
        if stream.computed % QUANTUM == 0:
            stream.not_before = (now, _AFTER_ALL + done.turn[1])
        self._go_on(stream)

    def _place_waiting(self, now: float) -> None:
        victims: list[Resident] | None = None
        while self._waiting:
            turn, entry = self._waiting[0]
            if isinstance(entry, Resident) and (entry.closed or not entry.pending):
                heapq.heappop(self._waiting)
                entry.queued = False
                continue
            if not self._free:
                if self._idle:
                    self._move_out(next(iter(self._idle)))
                else:
                    if victims is None:
                        victims = sorted(self._busy, key=lambda stream: stream.turn)
                    if not victims or victims[-1].turn < turn:
                        return
                    self._move_out(victims.pop())
            # Still the first: whoever was moved out has a later turn.
            heapq.heappop(self._waiting)
            if isinstance(entry, ImageJob):
                self._place_image(entry, now)
            else:
                self._place_stream(entry)

    def _place_image(self, job: ImageJob, now: float) -> None:
        slot = self._free.pop()
        self.executor.admit(slot, job.sample)
        self.ledger.begin(slot, job.timesteps, job.exit)
        job.admitted, job.queue_limit = now, None
        self._images[slot] = job
        self.seated += 1

    def _place_stream(self, stream: Resident) -> None:
        slot = self._free.pop()
        stream.queued = False
        if stream.saved is None:
            self.executor.admit(slot, Sample())
        else:
            try:
                self.executor.load(slot, stream.saved)
            except StateError as error:
                self._free.append(slot)
                self.spoiled.append((stream, error))
                return
        stream.slot, stream.saved = slot, None
        self._busy[stream] = None
        self._go_on(stream)

    def _move_out(self, stream: Resident) -> None:
        if stream.slot is None:
            return
        stream.saved = self.executor.save(stream.slot)
        self._free.append(stream.slot)
        stream.slot = None
        self._idle.pop(stream, None)
        self._busy.pop(stream, None)
        self._go_on(stream)

    def _go_on(self, stream: Resident) -> None:
        """Put the stream where its next job wants it, after that has become another one."""
        while stream.pending and isinstance(job := stream.pending[0], SnapshotJob):
            state = stream.saved if stream.slot is None else self.executor.save(stream.slot)
            if state is None:
                break  # a state has to be made first, in a slot
            stream.pending.popleft()
            self.snapshots.append((job, state))
        if stream.slot is None:
            if stream.pending and not stream.queued:
                stream.queued = True
                heapq.heappush(self._waiting, (stream.turn, stream))
            return
        here, there = (self._busy, self._idle) if stream.pending else (self._idle, self._busy)
        if stream not in here:
            there.pop(stream, None)
            here[stream] = None

    def _drop_waiting(self, now: float) -> list[Job]:
        images = [entry for _, entry in self._waiting if isinstance(entry, ImageJob)]
        gone = {job for job in images if self._is_over(job, now)}
        if gone:
            self._waiting = [item for item in self._waiting if item[1] not in gone]
            heapq.heapify(self._waiting)
            self.seated += len(gone)
        return list(gone)

    def _drop_images(self, now: float) -> list[Job]:
        gone = {slot: job for slot, job in self._images.items() if self._is_over(job, now)}
        for slot in gone:
            self.finish_image(slot)
        return list(gone.values())

    def _drop_from_streams(self, now: float) -> list[Job]:
        dropped: list[Job] = []
        queued = [entry for _, entry in self._waiting if isinstance(entry, Resident)]
        for stream in [*self._busy, *queued]:
            gone = {job for job in stream.pending if self._is_over(job, now)}
            if gone:
                dropped += gone
                kept = [job for job in stream.pending if job not in gone]
                stream.pending.clear()
                stream.pending.extend(kept)
                self._go_on(stream)
        return dropped

    def _is_over(self, job: Job, now: float) -> bool:
        if job.over(now):
            return True
        self._note_deadline(job)
        return False

    def _note_deadline(self, job: Job) -> None:
        self._soonest = min(self._soonest, job.soonest)
