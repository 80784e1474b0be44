"""Data sets of a few made-up samples, in the files of the real ones, so that commands which train take seconds anywhere."""

from __future__ import annotations

import gzip
from itertools import repeat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spiketrain.data.idx import FILES
from spiketrain.events.demo import demo_events
from spiketrain.events.types import Events

CLASSES = 10
TRAIN, TEST = 6, 2
"""Samples a class."""


def write_data(folder: Path) -> None:
    """`folder` as `--data` takes it, with fashion-mnist and n-mnist-small."""
    _fashion_mnist(folder / "fashion-mnist")
    _nmnist_small(folder / "n-mnist-small")


def _fashion_mnist(folder: Path) -> None:
    folder.mkdir(parents=True)
    draws = np.random.default_rng(0)
    for split, each in (("train", TRAIN), ("test", TEST)):
        labels = np.tile(np.arange(CLASSES, dtype=np.uint8), each)
        pictures = draws.integers(0, 40, (len(labels), 28, 28)).astype(np.uint8)
        for picture, label in zip(pictures, labels, strict=True):
            picture[4 + 2 * label : 7 + 2 * label, 4 : 10 + label] = 220
        for name, values in zip(FILES[split], (pictures, labels), strict=True):
            (folder / name).write_bytes(gzip.compress(_idx(values), 1))


def _idx(values: NDArray[np.uint8]) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return b"\0\0\x08" + bytes([values.ndim]) + sizes + values.tobytes()


def _nmnist_small(folder: Path) -> None:
    folder.mkdir(parents=True)
    number = 0
    for listing, each in (("train1K.txt", TRAIN), ("test100.txt", TEST)):
        lines = ["#sample #class"]
        for sample in range(CLASSES * each):
            number += 1
            (folder / f"{number}.bs2").write_bytes(_bs2(_digit(sample % CLASSES, seed=number)))
            lines.append(f"{number}\t{sample % CLASSES}")
        (folder / listing).write_text("\n".join(lines))


def _digit(digit: int, seed: int) -> Events:
    chunks = []
    for chunk in demo_events(seed, repeat(digit)):
        chunks.append(chunk.events)
        if chunk.until_us >= 300_000:
            return Events.concatenate(chunks).sorted()
    raise AssertionError("the demonstration does not end")


def _bs2(events: Events) -> bytes:
    """Five bytes an event: x, y, then polarity and 23 bits of microseconds."""
    time = events.t.astype(np.uint32) | (events.p.astype(np.uint32) << 23)
    columns = (events.x, events.y, time >> 16, time >> 8, time)
    return np.stack([column.astype(np.uint8) for column in columns], 1).tobytes()
