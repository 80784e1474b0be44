"""Data sets by name, read from their original files."""

from __future__ import annotations

import os
from pathlib import Path

from spiketrain.data.base import Augmentation, DataMissingError, DataSet, Split, SplitName
from spiketrain.data.cifar import load_cifar
from spiketrain.data.events import load_nmnist_small_set
from spiketrain.data.idx import FASHION_CLASSES, MNIST_CLASSES, load_idx
from spiketrain.data.recordings import RecordingFolder, load_recordings
from spiketrain.manifest import EventInput

DATA_SETS = ("cifar10", "cifar100", "fashion-mnist", "mnist", "nmnist-small", "recordings")

_CIFAR_FOLDERS = {"cifar10": "cifar-10", "cifar100": "cifar-100"}


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
) -> DataSet:
    """A data set of `DATA_SETS` from the folder of its name (cifar-10, cifar-100 for those) under `root`.

    `events` and `timesteps` say how recordings become frames; image sets ignore both. `recordings` says where one's
    own lie, for the set of that name. Raises ValueError for an unknown name and DataMissingError, with the place and
    the source, where the files are not there.
    """
    base = data_root(root)
    held_out = (
        {} if validation_per_class is None else {"validation_per_class": validation_per_class}
    )
    match name:
        case "fashion-mnist":
            return load_idx(
                name, base / name, FASHION_CLASSES, 0.2860, 0.3530, seed=seed, **held_out
            )
        case "mnist":
            return load_idx(name, base / name, MNIST_CLASSES, 0.1307, 0.3081, seed=seed, **held_out)
        case "cifar10" | "cifar100":
            return load_cifar(name, base / _CIFAR_FOLDERS[name], validation_per_class, seed)
        case "nmnist-small":
            if events is None:
                raise ValueError(
                    "nmnist-small: say how events become frames ([events] in the recipe)"
                )
            folder = base / "n-mnist-small"
            return load_nmnist_small_set(folder, events, timesteps, seed=seed, **held_out)
        case "recordings":
            if events is None or recordings is None:
                raise ValueError(
                    "recordings: say where they lie (data.folder) and how they become frames ([events])"
                )
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
        case _:
            raise ValueError(f"unknown data set {name!r}: known are {', '.join(DATA_SETS)}")


__all__ = [
    "DATA_SETS",
    "Augmentation",
    "DataMissingError",
    "DataSet",
    "RecordingFolder",
    "Split",
    "SplitName",
    "data_root",
    "load_dataset",
]
