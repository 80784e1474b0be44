"""The data of one conversion: unlabelled samples to calibrate and fine-tune with, and others to judge on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from spiketrain.convert.lif_form import ConversionError
from spiketrain.convert.source import sample_of
from spiketrain.data import DataSet
from spiketrain.data.augment import Pipeline
from spiketrain.manifest import Manifest
from spiketrain.recipe import DataSection

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

    def unlabelled(self, manifest: Manifest) -> Unlabelled:
        """The samples to fine-tune on, augmented and computed with as the manifest's training record says.

        Raises ConversionError where the validation split, by which fine-tuning is kept or not, is what is judged on,
        or has nothing.
        """
        if self.split == "validation":
            raise ConversionError(
                "fine-tuning is kept or not by the validation split, which cannot be judged on then: judge on the test split"
            )
        if not len(self.data.validation):
            raise ConversionError(
                f"{self.data.name} has no validation split by which to keep fine-tuning or not: set data.validation_per_class"
            )
        settings = {} if manifest.training is None else manifest.training.settings
        section = DataSection.model_validate(settings.get("data", {"name": self.data.name}))
        half = settings.get("training", {}).get("precision") == "bfloat16"
        return Unlabelled(self.data, Pipeline(section.augment) if section.augment else None, half)

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


@dataclass(frozen=True)
class Unlabelled:
    """The training split as training saw it, without its labels, and the validation split to look at the result.

    `half`: convolutions and linear layers were trained in bfloat16.
    """

    data: DataSet
    augment: Pipeline | None = None
    half: bool = False

    def epoch(self, batch_size: int, draws: torch.Generator) -> Iterator[Tensor]:
        batches = self.data.batches("train", batch_size, shuffle=draws, augment=self.augment)
        return (x for x, _ in batches)

    def steps(self, batch_size: int) -> int:
        return max(1, len(self.data.train) // batch_size)

    def held_out(self, batch_size: int) -> Iterator[Tensor]:
        return (x for x, _ in self.data.batches("validation", batch_size))

    @property
    def trained_on(self) -> str:
        return f"{self.data.name}, train, {len(self.data.train)} samples, without labels"

    @property
    def chosen_on(self) -> str:
        return f"{self.data.name}, validation, {len(self.data.validation)} samples, without labels"
