"""Data sets in memory: three splits, the input they are for, and batches of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from spiketrain.manifest import Input

SplitName = Literal["train", "validation", "test"]


class DataMissingError(FileNotFoundError):
    """The files of a data set are not there. The message says where they were looked for and how to get them."""


class Augmentation(Protocol):
    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """A changed copy of a batch [N, ...] or [N, T, ...] of normalised samples."""


@dataclass(frozen=True)
class Split:
    """Samples as stored (images: uint8 [N, C, H, W]; events: float32 frames [N, T, 2, H, W]) and labels int64 [N]."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


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
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Network inputs and labels: images [N, C, H, W] normalised, event frames [T, N, 2, H, W].

        With `shuffle` the order is drawn from that generator and an incomplete last batch is left out, as training
        wants it; without, every sample comes once, in order.
        """
        chosen = self.split(split) if isinstance(split, str) else split
        count = len(chosen)
        order = torch.arange(count) if shuffle is None else torch.randperm(count, generator=shuffle)
        end = count if shuffle is None or count < batch_size else count - count % batch_size
        for start in range(0, end, batch_size):
            index = order[start : start + batch_size]
            x = self._normalise(chosen.x[index])
            if augment is not None and shuffle is not None:
                x = augment(x, shuffle)
            yield (x.transpose(0, 1) if self.input.kind == "events" else x), chosen.y[index]

    def _normalise(self, x: Tensor) -> Tensor:
        if self.input.kind == "events":
            return x.float()
        mean = torch.tensor(self.input.mean).view(1, -1, 1, 1)
        std = torch.tensor(self.input.std).view(1, -1, 1, 1)
        return (x.float() / 255 - mean) / std


def cut_validation(x: Tensor, y: Tensor, per_class: int, seed: int) -> tuple[Split, Split]:
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
    return Split(x[~held], y[~held]), Split(x[held], y[held])


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
