"""Threads that share out the samples of a pass."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from spikeserve.engine.cpu.crew import Crew
from spikeserve.engine.cpu.program import Batch, Outcome, Program
from spikeserve.engine.threads import compute_alone

_WORTH_SHARING = 1 << 25
"""Multiplications of one timestep, from which on all threads work on one sample if there is only one."""

_WORTH_SHARING_OUT = 1 << 28
"""Multiplications of a pass, from which on it is shared out: less takes hardly longer than waking threads."""


class Team:
    """One program a thread. `multiplications` are those of one timestep of one sample.

    A small pass is run by one thread. A sample that is alone is shared out layer by layer, where it is large enough.

    All passes are run by threads of ours, whose torch was told once to use one thread: telling it takes long.
    """

    def __init__(
        self, threads: int, make_program: Callable[[Crew | None], Program], multiplications: int
    ) -> None:
        self._threads = threads
        self._multiplications = multiplications
        self._programs = [make_program(None) for _ in range(threads)]
        share_one = threads > 1 and multiplications >= _WORTH_SHARING
        self._together = make_program(Crew(threads)) if share_one else None
        self._pool = (
            ThreadPoolExecutor(threads, "spikeserve-cpu", initializer=compute_alone)
            if threads > 1
            else None
        )

    def run(
        self,
        slots: Sequence[int],
        size: int,
        steps: int,
        batch_of: Callable[[Sequence[int]], Batch],
    ) -> Iterator[tuple[Sequence[int], Outcome]]:
        """Run `steps` timesteps of all samples, at most `size` of them in one pass of a thread.

        Gives each pass's samples and its outcome.
        """
        if self._pool is None:
            for chosen in _parts(slots, 1, size):
                yield chosen, self._programs[0].run(batch_of(chosen))
            return
        together = self._together if len(slots) == 1 else None
        if together is not None or len(slots) * steps * self._multiplications < _WORTH_SHARING_OUT:
            program, parts = together or self._programs[0], _parts(slots, 1, size)
            yield from zip(
                parts, self._pool.submit(_run_lane, program, parts, batch_of).result(), strict=True
            )
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
