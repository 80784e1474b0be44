"""Data sets: three splits, in memory or on disk, the input they are for, and batches of it."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from spiketrain.data.augment import Levels
from spiketrain.data.lazy import BATCHES_AHEAD, OnDisk
from spiketrain.manifest import Input

SplitName = Literal["train", "validation", "test"]


class DataMissingError(FileNotFoundError):
    """The files of a data set are not there. The message says where they were looked for and how to get them."""


class Augmentation(Protocol):
    """What is drawn is apart from what is done with it: the draws are those of a whole batch, wherever its parts go."""

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Any:
        """Draws for a batch [N, ...] or [N, T, ...], as tensors [N, ...] in any nesting of tuples."""

    def before_decoding(self, drawn: Any) -> tuple[Tensor | None, Any]:
        """The draws of a crop that is best made of the picture as it is on disk, if any, and those that are left."""

    def apply(self, x: Tensor, drawn: Any, levels: Levels | None = None) -> Tensor:
        """A changed copy of normalised samples [n, ...], by the draws of these n; `levels` are those of pictures."""


class Share(NamedTuple):
    """Part `rank` of `world` equal parts of every batch."""

    rank: int = 0
    world: int = 1

    def of(self, count: int) -> slice:
        each = count // self.world
        return slice(self.rank * each, (self.rank + 1) * each if self.world > 1 else count)


@dataclass(frozen=True)
class Split:
    """Samples as stored (images: uint8 [N, C, H, W]; events: float32 frames [N, T, 2, H, W]) and labels int64 [N]."""

    x: Tensor | OnDisk
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def at(self, index: Tensor) -> Split:
        """Those at indices [n] or under a mask [N]; what is on disk stays there."""
        x = self.x.subset(index) if isinstance(self.x, OnDisk) else self.x[index]
        return Split(x, self.y[index])


@dataclass(frozen=True)
class DataSet:
    """`validation` is cut from the training set; `digests` is the sha256 of each file that was read."""

    name: str
    input: Input
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    digests: dict[str, str]

    def split(self, name: SplitName) -> Split:
        splits: dict[str, Split] = {
            "train": self.train,
            "validation": self.validation,
            "test": self.test,
        }
        if name not in splits:
            raise ValueError(f"unknown split {name!r}: train, validation or test")
        return splits[name]

    def batches(
        self,
        split: SplitName | Split,
        batch_size: int,
        *,
        shuffle: torch.Generator | None = None,
        augment: Augmentation | None = None,
        device: torch.device | str | None = None,
        share: Share | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Network inputs and labels: images [N, C, H, W] normalised, event frames [T, N, 2, H, W].

        With `shuffle` the order is drawn from that generator and an incomplete last batch is left out, as training
        wants it; without, every sample comes once, in order. With `share` each batch is that part of it; order and
        augmentation are those of the whole.
        """
        chosen = self.split(split) if isinstance(split, str) else split
        count = len(chosen)
        order = torch.arange(count) if shuffle is None else torch.randperm(count, generator=shuffle)
        end = count if shuffle is None or count < batch_size else count - count % batch_size
        place = torch.device("cpu" if device is None else device)
        waiting: deque[_Begun] = deque()
        for start in range(0, end, batch_size):
            index = order[start : start + batch_size]
            drawn = None
            if augment is not None and shuffle is not None:
                drawn = augment.draw((len(index), *chosen.x.shape[1:]), shuffle)
            if share is not None and share.world > 1:
                mine = share.of(len(index))
                index, drawn = index[mine], part_of(drawn, mine)
            waiting.append(self._begin(chosen, index, augment, drawn))
            # Only what is on disk takes time to come.
            if len(waiting) > (BATCHES_AHEAD if isinstance(chosen.x, OnDisk) else 0):
                yield self._end(waiting.popleft(), augment, place)
        while waiting:
            yield self._end(waiting.popleft(), augment, place)

    def _begin(
        self, split: Split, index: Tensor, augment: Augmentation | None, drawn: Any
    ) -> _Begun:
        if not isinstance(split.x, OnDisk):
            return _Begun(split.x[index], split.y[index], drawn)
        crops = None
        if augment is not None and drawn is not None and split.x.crops_at_reading:
            crops, drawn = augment.before_decoding(drawn)
        return _Begun(split.x.start(index, crops), split.y[index], drawn)

    def _end(
        self, begun: _Begun, augment: Augmentation | None, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        x = begun.x
        if not isinstance(x, Tensor):
            x = torch.stack([each.result() for each in x])
        x, y = moved(x, device), moved(begun.y, device)
        x = self._normalise(x)
        if augment is not None and begun.drawn is not None:
            x = augment.apply(x, begun.drawn, self._levels(x.device))
        return (x.transpose(0, 1) if self.input.kind == "events" else x), y

    def _normalise(self, x: Tensor) -> Tensor:
        if self.input.kind == "events":
            return x.float()
        mean, std = self._statistics(x.device)
        return (x.float() / 255 - mean) / std

    def _levels(self, device: torch.device) -> Levels | None:
        if self.input.kind == "events":
            return None
        mean, std = self._statistics(device)
        return Levels(-mean / std, (1 - mean) / std)

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, [C, 1, 1] each."""
        if self.input.kind == "events":
            raise ValueError("events have no mean and standard deviation")
        given = (self.input.mean, self.input.std)
        mean, std = (torch.tensor(each, device=device).view(-1, 1, 1) for each in given)
        return mean, std


class _Begun(NamedTuple):
    """A batch on its way: its samples, or what is reading them."""

    x: Tensor | list[Future[Tensor]]
    y: Tensor
    drawn: Any


def moved(x: Tensor, device: torch.device) -> Tensor:
    """On the device; to a GPU through pinned memory, so that the copy runs beside what the GPU is doing."""
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def part_of(drawn: Any, part: slice) -> Any:
    """The draws of a part of a batch, from those of the whole."""
    if isinstance(drawn, Tensor):
        return drawn[part]
    if isinstance(drawn, tuple):
        return tuple(part_of(each, part) for each in drawn)
    return drawn


def cut_validation(x: Tensor | OnDisk, y: Tensor, per_class: int, seed: int) -> tuple[Split, Split]:
    """Training and validation split: `per_class` samples of each class, drawn with `seed`, become validation."""
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(y), dtype=torch.bool)
    for label in torch.unique(y):
        of_class = (y == label).nonzero().flatten()
        if len(of_class) <= per_class:
            raise ValueError(
                f"class {int(label)} has {len(of_class)} samples, too few to hold {per_class} of them out"
            )
        held[of_class[torch.randperm(len(of_class), generator=generator)[:per_class]]] = True
    everything = Split(x, y)
    return everything.at(~held), everything.at(held)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
