"""A tiny trained run with its logs, and its data in Fashion-MNIST's format: class k is a bar at row 2k + 4."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from spiketrain.data.idx import FILES
from spiketrain.recipe import load_recipe
from spiketrain.train import Run


class Trained(NamedTuple):
    folder: Path
    data: Path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("report")
    folder = root / "fashion-mnist"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", 300), ("test", 60)):
        labels = np.arange(count) % 10
        images = rng.integers(0, 40, (count, 28, 28))
        for image, label in zip(images, labels, strict=True):
            image[2 * label + 4 : 2 * label + 6] += 200
        for name, array in zip(FILES[split], (images, labels), strict=True):
            sizes = struct.pack(f">{array.ndim}I", *array.shape)
            content = b"\0\0\x08" + bytes([array.ndim]) + sizes + array.astype(np.uint8).tobytes()
            (folder / name).write_bytes(gzip.compress(content))
    settings = (
        "training.epochs=3",
        "training.batch_size=32",
        "training.timesteps=3",
        "network.arguments.channels=[4, 8]",
        "network.arguments.strides=[2, 2]",
        "data.validation_per_class=4",
        "data.augment=[]",
        "training.learning_rate=0.03",
    )
    run = Run(load_recipe("fashion-clif", settings), root / "run", root)
    run.train()
    return Trained(root / "run", root)
