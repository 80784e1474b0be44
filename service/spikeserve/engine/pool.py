"""Who is in which slot. Belongs to the engine's thread; knows neither locks nor time.

Jobs get a slot in the order in which they came, pictures and streams alike. A stream stays in its slot between windows;
when somebody who came earlier waits, the stream that has been idle longest has its state moved out, bit by bit, and
then the one whose next window came last. So more streams can be open than there are slots, and nobody starves.
"""

from __future__ import annotations

import heapq

from spikeserve.engine.executor import Executor, Sample
from spikeserve.engine.jobs import ImageJob, Job, Resident, WindowJob


class Pool:
    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.waiting_images = 0
        self._free = list(range(executor.slots - 1, -1, -1))
        self._images: dict[int, ImageJob] = {}
        # Streams in a slot: with windows to compute, and without, longest idle first.
        self._busy: dict[Resident, None] = {}
        self._idle: dict[Resident, None] = {}
        self._waiting: list[tuple[int, ImageJob | Resident]] = []  # a heap, by order of arrival

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._images or self._busy)

    @property
    def slots_in_use(self) -> int:
        return self.executor.slots - len(self._free)

    def add_image(self, job: ImageJob) -> None:
        heapq.heappush(self._waiting, (job.order, job))
        self.waiting_images += 1

    def add_window(self, job: WindowJob) -> None:
        stream = job.stream
        stream.pending.append(job)
        if stream.slot is None:
            self._enqueue(stream)
        elif stream in self._idle:
            del self._idle[stream]
            self._busy[stream] = None

    def close_stream(self, stream: Resident) -> list[WindowJob]:
        """Free the slot, and return the windows not computed yet. Its place in the queue is left to be skipped."""
        if not stream.closed and stream.slot is not None:
            self._free.append(stream.slot)
        self._busy.pop(stream, None)
        self._idle.pop(stream, None)
        left = list(stream.pending)
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

    def drop_over(self, now: float) -> list[Job]:
        """Take out the jobs whose client has left or whose deadline has passed."""
        dropped: list[Job] = []
        waiting = [
            entry for _, entry in self._waiting if isinstance(entry, ImageJob) and entry.over(now)
        ]
        if waiting:
            gone = set(waiting)
            self._waiting = [item for item in self._waiting if item[1] not in gone]
            heapq.heapify(self._waiting)
            self.waiting_images -= len(gone)
            dropped += waiting
        for slot, image in list(self._images.items()):
            if image.over(now):
                self._leave(slot)
                dropped.append(image)
        queued = (entry for _, entry in self._waiting if isinstance(entry, Resident))
        for stream in [*self._busy, *queued]:
            while stream.pending and stream.pending[0].over(now):
                dropped.append(stream.pending.popleft())
            self._rest(stream)
        return dropped

    def assemble(self, now: float) -> list[tuple[int, Job]]:
        """Fill the slots and return the jobs of the next timestep with their slots."""
        self._place_waiting(now)
        batch: list[tuple[int, Job]] = list(self._images.items())
        batch += [
            (stream.slot, stream.pending[0]) for stream in self._busy if stream.slot is not None
        ]
        return batch

    def finish_image(self, slot: int) -> None:
        self._leave(slot)

    def finish_window(self, stream: Resident) -> None:
        stream.pending.popleft()
        self._rest(stream)

    def _place_waiting(self, now: float) -> None:
        victims: list[Resident] | None = None
        while self._waiting:
            order, entry = self._waiting[0]
            if isinstance(entry, Resident) and (entry.closed or not entry.pending):
                heapq.heappop(self._waiting)
                entry.queued = False
                continue
            if not self._free:
                if self._idle:
                    self._move_out(next(iter(self._idle)))
                else:
                    if victims is None:
                        victims = sorted(self._busy, key=lambda stream: stream.pending[0].order)
                    if not victims or victims[-1].pending[0].order < order:
                        return
                    self._move_out(victims.pop())
            # Still the first: whoever was moved out came later.
            heapq.heappop(self._waiting)
            self._place(entry, now)

    def _place(self, entry: ImageJob | Resident, now: float) -> None:
        slot = self._free.pop()
        if isinstance(entry, ImageJob):
            self.executor.admit(slot, entry.sample)
            entry.admitted = now
            self._images[slot] = entry
            self.waiting_images -= 1
            return
        if entry.saved is None:
            self.executor.admit(slot, Sample())
        else:
            self.executor.load(slot, entry.saved)
        entry.slot, entry.saved, entry.queued = slot, None, False
        self._busy[entry] = None

    def _move_out(self, stream: Resident) -> None:
        if stream.slot is None:
            return
        stream.saved = self.executor.save(stream.slot)
        self._free.append(stream.slot)
        stream.slot = None
        self._idle.pop(stream, None)
        if stream in self._busy:
            del self._busy[stream]
            self._enqueue(stream)

    def _enqueue(self, stream: Resident) -> None:
        if not stream.queued:
            stream.queued = True
            heapq.heappush(self._waiting, (stream.pending[0].order, stream))

    def _rest(self, stream: Resident) -> None:
        if not stream.pending and stream in self._busy:
            del self._busy[stream]
            self._idle[stream] = None

    def _leave(self, slot: int) -> None:
        del self._images[slot]
        self._free.append(slot)
