"""Threads that share out the samples of a pass."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from spikeserve.engine.cpu.program import Batch, Outcome, Program
from spikeserve.engine.threads import compute_alone


class Team:
    """One program a thread. With `share_one`, a sample that is alone is run by the caller, with all threads in each product."""

    def __init__(self, threads: int, make_program: Callable[[], Program], share_one: bool) -> None:
        self._threads = threads
        self._share_one = share_one
        self._programs = [make_program() for _ in range(threads)]
        self._pool = (
            ThreadPoolExecutor(threads, "spikeserve-cpu", initializer=compute_alone)
            if threads > 1
            else None
        )

    def run(
        self, slots: Sequence[int], size: int, batch_of: Callable[[Sequence[int]], Batch]
    ) -> Iterator[tuple[Sequence[int], Outcome]]:
        """Run all samples, at most `size` in one pass of a thread; gives each pass's samples and its outcome."""
        if self._pool is None or (len(slots) == 1 and self._share_one):
            for chosen in _parts(slots, 1, size):
                yield chosen, self._programs[0].run(batch_of(chosen))
            return
        shares = _parts(slots, min(self._threads, len(slots)), size)
        lanes = [shares[i :: self._threads] for i in range(min(self._threads, len(shares)))]
        futures = [
            self._pool.submit(_run_lane, program, lane, batch_of)
            for program, lane in zip(self._programs, lanes, strict=False)
        ]
        for lane, future in zip(lanes, futures, strict=True):
            yield from zip(lane, future.result(), strict=True)


@torch.inference_mode()
def _run_lane(
    program: Program, lane: Sequence[Sequence[int]], batch_of: Callable[[Sequence[int]], Batch]
) -> list[Outcome]:
    return [program.run(batch_of(chosen)) for chosen in lane]


def _parts(slots: Sequence[int], least: int, size: int) -> list[Sequence[int]]:
    """Cut into parts of nearly the same length: at least so many, none longer than `size`."""
    count = max(least, -(-len(slots) // size))
    count = -(-count // least) * least
    bounds = [len(slots) * i // count for i in range(count + 1)]
    return [slots[a:b] for a, b in itertools.pairwise(bounds) if b > a]
