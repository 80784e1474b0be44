"""Threads that share out one thing: the caller takes a share too.

Torch's own threads would do the same, and turn round in a loop while they wait for each other, which takes the processor
from whoever has something to do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from spikeserve.engine.threads import compute_alone

R = TypeVar("R")
Share = tuple[int, int]


class Crew:
    """So many threads, the caller's among them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._others = ThreadPoolExecutor(
            max(1, size - 1), "spikeserve-crew", initializer=compute_alone
        )

    def map(self, work: Callable[[int, int], R], shares: Sequence[Share]) -> list[R]:
        work = torch.inference_mode()(work)
        others = [self._others.submit(work, *share) for share in shares[1:]]
        return [work(*shares[0]), *(other.result() for other in others)]


def map_shares(
    crew: Crew | None, work: Callable[[int, int], R], shares: Sequence[Share]
) -> list[R]:
    """`work` of each share; by the caller alone where there is no crew, or one share."""
    if crew is None or len(shares) == 1:
        return [work(*share) for share in shares]
    return crew.map(work, shares)
