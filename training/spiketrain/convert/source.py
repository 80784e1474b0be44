"""The data a checkpoint was trained on, split as it was then."""

from __future__ import annotations

from pathlib import Path

import torch

from spiketrain.data import DataSet, Split
from spiketrain.data.of_recipe import dataset_of
from spiketrain.manifest import ImageInput, Manifest
from spiketrain.recipe import DataSection


def training_data(
    manifest: Manifest, root: Path | None = None, timesteps: int | None = None
) -> DataSet:
    """The data set that the manifest's training record names, or its import, with the same samples held out.

    Recordings become `timesteps` windows, as many as the checkpoint was trained with unless given.

    Raises ValueError where the manifest names none or the data are not what the model takes, DataMissingError where
    the files are not there.
    """
    said = {} if manifest.conversion is None else manifest.conversion.arguments
    if manifest.training is not None:
        said = manifest.training.settings
    if "data" not in said:
        raise ValueError(
            f"{manifest.name}: training.settings.data: the checkpoint names no data set"
        )
    section = DataSection.model_validate(said["data"])
    data = dataset_of(
        section,
        root,
        events=manifest.input if manifest.input.kind == "events" else None,
        timesteps=timesteps or manifest.timesteps,
    )
    expected, found = manifest.input, data.input
    same = expected == found
    if isinstance(expected, ImageInput) and isinstance(found, ImageInput):
        same = (expected.shape, expected.mean, expected.std) == (found.shape, found.mean, found.std)
    if not same or len(data.classes) != len(manifest.classes):
        raise ValueError(
            f"{manifest.name}: {data.name} has other inputs or classes than the model takes"
        )
    return data


def sample_of(split: Split, count: int | None, seed: int = 0) -> Split:
    """`count` samples drawn without replacement, the whole split where it has no more or count is None."""
    if count is None or count >= len(split):
        return split
    chosen = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:count]
    return split.at(chosen)
