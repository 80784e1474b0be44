"""Recordings of an event camera as frames, by the same windows that the server streams with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from spiketrain.data.base import DataMissingError, DataSet, Split, cut_validation
from spiketrain.events.types import Events
from spiketrain.events.windows import recording_frames
from spiketrain.manifest import EventInput


def frames_of(recordings: Sequence[tuple[Events, int]], spec: EventInput, timesteps: int) -> Split:
    """The first `timesteps` windows of each recording, [N, T, 2, H, W]; a shorter one ends in empty windows."""
    x = np.zeros((len(recordings), timesteps, *spec.shape), np.float32)
    for i, (events, _) in enumerate(recordings):
        frames = recording_frames(events, spec)[:timesteps]
        x[i, : len(frames)] = frames
    return Split(torch.from_numpy(x), torch.tensor([label for _, label in recordings]))


def load_nmnist_small_set(
    folder: Path, spec: EventInput, timesteps: int, validation_per_class: int = 12, seed: int = 0
) -> DataSet:
    """The 1,000 + 100 digits of N-MNIST, with `validation_per_class` training digits of each class held out."""
    from spiketrain.data.nmnist import digest, load_nmnist_small

    if not folder.exists():
        raise DataMissingError(
            f"nmnist-small: no folder {folder}. Put NMNISTsmall.tar.xz (1,000 + 100 digits of N-MNIST with "
            "train1K.txt and test100.txt) or its extracted content there."
        )
    train, test = load_nmnist_small(folder)
    everything = frames_of(train, spec, timesteps)
    kept, validation = cut_validation(everything.x, everything.y, validation_per_class, seed)
    return DataSet(
        name="nmnist-small",
        input=spec,
        classes=tuple("0123456789"),
        train=kept,
        validation=validation,
        test=frames_of(test, spec, timesteps),
        digests=digest(folder),
    )
