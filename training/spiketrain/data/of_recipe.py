"""The data set that a recipe asks for: in its size and normalisation, the same samples held out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from spiketrain.data import DataSet, Split, load_dataset
from spiketrain.data.lazy import OnDisk
from spiketrain.data.pictures import Pictures
from spiketrain.manifest import EventInput, ImageInput
from spiketrain.recipe import DataSection


def dataset_of(
    section: DataSection,
    root: Path | None = None,
    *,
    events: EventInput | None = None,
    timesteps: int = 1,
) -> DataSet:
    """The data set of a recipe's [data] section; `root`, `events` and `timesteps` as of `load_dataset`.

    Raises what `load_dataset` does, and ValueError for a size, mean or std that do not suit the data set.
    """
    data = load_dataset(
        section.name,
        root,
        events=events,
        timesteps=timesteps,
        validation_per_class=section.validation_per_class,
        seed=section.split_seed,
        recordings=section.recordings,
        split=section.split or "numeric",
    )
    changes = {
        name: value
        for name, value in (("mean", section.mean), ("std", section.std))
        if value is not None
    }
    if section.size is None and not changes:
        return data
    if not isinstance(data.input, ImageInput):
        raise ValueError(f"data.size, data.mean, data.std are for pictures; {data.name} has events")
    if section.size is not None:
        data = _resized(data, data.input, section.size)
    try:
        given = ImageInput.model_validate(data.input.model_dump() | changes)
    except ValidationError as error:
        raise ValueError(f"data.mean, data.std: {error.errors()[0]['msg']}") from error
    return replace(data, input=given)


def _resized(data: DataSet, spec: ImageInput, size: tuple[int, int]) -> DataSet:
    resized = spec.model_copy(update={"shape": (spec.shape[0], *size)})
    train, validation, test = (
        Split(_at_size(split.x, resized, size), split.y)
        for split in (data.train, data.validation, data.test)
    )
    return replace(
        data,
        input=resized,
        train=train,
        validation=validation,
        test=test,
    )


def _at_size(x: Tensor | OnDisk, spec: ImageInput, size: tuple[int, int]) -> Tensor | OnDisk:
    if isinstance(x, Pictures):
        return x.at_size(spec)
    if isinstance(x, OnDisk):
        raise ValueError("data.size is for pictures")
    return _pictures(x, size)


def _pictures(x: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [N, C, H, W] to another size, as a server resizes the pictures that it is sent: Pillow, bilinear."""
    height, width = size
    result = np.empty((*x.shape[:2], height, width), np.uint8)
    for picture, place in zip(
        x.flatten(0, 1).numpy(), result.reshape(-1, height, width), strict=True
    ):
        place[:] = Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(result)
