"""The data of one conversion: unlabelled samples to calibrate with, and others to judge on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from spiketrain.convert.source import sample_of
from spiketrain.data import DataSet

HeldOut = Literal["test", "validation"]


@dataclass(frozen=True)
class Samples:
    """Calibration samples are of the training split, those to judge on of a split the model was not trained on."""

    data: DataSet
    calibration: int
    split: HeldOut
    limit: int | None
    batch_size: int

    def calibration_inputs(self) -> Iterator[Tensor]:
        chosen = sample_of(self.data.train, self.calibration)
        return (x for x, _ in self.data.batches(chosen, self.batch_size))

    def held_out(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.data.batches(
            sample_of(self.data.split(self.split), self.limit), self.batch_size
        )

    @property
    def calibrated_on(self) -> str:
        return f"{self.data.name}, train, {min(self.calibration, len(self.data.train))} samples"

    @property
    def judged(self) -> int:
        count = len(self.data.split(self.split))
        return count if self.limit is None else min(self.limit, count)

    @property
    def judged_on(self) -> str:
        return f"{self.data.name}, {self.split}, {self.judged} samples"
