"""Samples that stay on disk until a batch asks for them, read by worker threads while the batch before is computed."""

from __future__ import annotations

import abc
import functools
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import torch
from torch import Tensor

BATCHES_AHEAD = 2
"""Batches whose samples are read while one is computed."""


class OnDisk(abc.ABC):
    """Samples [N, ...] in their order. `read` is called from several threads at once.

    Indexed like a tensor, by indices [n] or a mask [N], it gives those samples, read; `subset` gives them unread.
    """

    crops_at_reading = False
    """Whether `read` takes the draws of a crop."""

    def __init__(self, index: Tensor) -> None:
        self._index = index

    @abc.abstractmethod
    def read(self, item: int, draws: Tensor | None = None) -> Tensor:
        """Sample `item` of all that there are, as a split holds it; `draws` are those of a crop before decoding."""

    @property
    @abc.abstractmethod
    def sample_shape(self) -> tuple[int, ...]:
        """Of what `read` gives."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.sample_shape)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        found = self._index[index]
        if not len(found):
            return torch.empty(0, *self.sample_shape)
        return torch.stack([each.result() for each in self._start(found.tolist(), None)])

    def start(self, index: Tensor, draws: Tensor | None = None) -> list[Future[Tensor]]:
        """Begin to read the samples at `index` [n]; `draws` [n, ...] are handed to `read`."""
        return self._start(self._index[index].tolist(), draws)

    def subset(self, index: Tensor) -> Self:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._index = self._index[index]
        return other

    def _start(self, items: Sequence[int], draws: Tensor | None) -> list[Future[Tensor]]:
        each = [None] * len(items) if draws is None else draws
        return [readers().submit(self.read, *one) for one in zip(items, each, strict=True)]


@functools.cache
def readers() -> ThreadPoolExecutor:
    """The threads that read; as many as the process may use processors."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return ThreadPoolExecutor(max(2, cores or 2), thread_name_prefix="spiketrain-read")
