"""Data sets by name, read from their original files."""

from __future__ import annotations

import os
from pathlib import Path

from spiketrain.data.base import Augmentation, DataMissingError, DataSet, Split, SplitName
from spiketrain.data.cifar import load_cifar
from spiketrain.data.event_sets import (
    DvsSplit,
    load_cifar10_dvs,
    load_dvs_gesture,
    load_nmnist,
)
from spiketrain.data.events import load_nmnist_small_set
from spiketrain.data.frame_cache import FrameCache, cache_folder
from spiketrain.data.idx import FASHION_CLASSES, MNIST_CLASSES, load_idx
from spiketrain.data.imagenet import load_imagenet, load_tiny_imagenet
from spiketrain.data.recordings import RecordingFolder, load_recordings
from spiketrain.manifest import EventInput

DATA_SETS = (
    "cifar10",
    "cifar10-dvs",
    "cifar100",
    "dvs-gesture",
    "fashion-mnist",
    "imagenet",
    "mnist",
    "nmnist",
    "nmnist-small",
    "recordings",
    "tiny-imagenet",
)
EVENT_SETS = ("cifar10-dvs", "dvs-gesture", "nmnist", "nmnist-small", "recordings")
"""Those whose recordings become frames as a recipe's [events] section says."""

_FOLDERS = {
    "cifar10": "cifar-10",
    "cifar100": "cifar-100",
    "nmnist": "n-mnist",
    "nmnist-small": "n-mnist-small",
    "tiny-imagenet": "tiny-imagenet-200",
}


def folder_of(name: str) -> str:
    """The folder of a data set under the root."""
    return _FOLDERS.get(name, name)


def data_root(root: Path | None = None) -> Path:
    """Where data sets are looked for: `root`, else SPIKETRAIN_DATA, else ./data."""
    return root or Path(os.environ.get("SPIKETRAIN_DATA", "data"))


def load_dataset(
    name: str,
    root: Path | None = None,
    *,
    events: EventInput | None = None,
    timesteps: int = 1,
    validation_per_class: int | None = None,
    seed: int = 0,
    recordings: RecordingFolder | None = None,
    split: DvsSplit = "numeric",
) -> DataSet:
    """A data set of `DATA_SETS` from its folder (`folder_of`) under `root`.

    `events` and `timesteps` say how recordings become frames; image sets ignore both. `recordings` says where one's
    own lie, for the set of that name; `split` is CIFAR10-DVS's. Raises ValueError for an unknown name and
    DataMissingError, with the place and the source, where the files are not there.
    """
    if name not in DATA_SETS:
        raise ValueError(f"unknown data set {name!r}: known are {', '.join(DATA_SETS)}")
    base = data_root(root)
    folder = base / folder_of(name)
    if name in EVENT_SETS:
        if events is None:
            raise ValueError(f"{name}: say how events become frames ([events] in the recipe)")
        cache = FrameCache(cache_folder(base))
        held = validation_per_class
        match name:
            case "nmnist":
                return load_nmnist(folder, events, timesteps, cache, held, seed)
            case "cifar10-dvs":
                return load_cifar10_dvs(folder, events, timesteps, cache, split, held, seed)
            case "dvs-gesture":
                return load_dvs_gesture(folder, events, timesteps, cache, held, seed)
            case "nmnist-small":
                return load_nmnist_small_set(folder, events, timesteps, held or 12, seed)
        if recordings is None:
            raise ValueError("recordings: say where they lie (data.folder)")
        folder = base / recordings.folder
        return load_recordings(
            folder,
            events,
            timesteps,
            labels=None if recordings.labels is None else folder / recordings.labels,
            validation_share=recordings.validation_share,
            test_share=recordings.test_share,
            validation_per_class=validation_per_class,
            seed=seed,
        )
    match name:
        case "cifar10" | "cifar100":
            return load_cifar(name, folder, validation_per_class, seed)
        case "tiny-imagenet":
            return load_tiny_imagenet(folder, validation_per_class, seed)
        case "imagenet":
            return load_imagenet(folder, validation_per_class, seed)
    classes, mean, std = (
        (MNIST_CLASSES, 0.1307, 0.3081) if name == "mnist" else (FASHION_CLASSES, 0.2860, 0.3530)
    )
    return load_idx(name, folder, classes, mean, std, validation_per_class or 500, seed)


__all__ = [
    "DATA_SETS",
    "EVENT_SETS",
    "Augmentation",
    "DataMissingError",
    "DataSet",
    "DvsSplit",
    "RecordingFolder",
    "Split",
    "SplitName",
    "data_root",
    "folder_of",
    "load_dataset",
]
