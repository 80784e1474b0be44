"""A data set in Fashion-MNIST's format that a tiny network learns in seconds: class k is a bar at row 2k + 4."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from spiketrain.data.idx import FILES


@pytest.fixture(scope="session")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bars")
    folder = root / "fashion-mnist"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", 400), ("test", 100)):
        labels = np.arange(count) % 10
        images = rng.integers(0, 40, (count, 28, 28))
        for image, label in zip(images, labels, strict=True):
            image[2 * label + 4 : 2 * label + 6] += 200
        for name, array in zip(FILES[split], (images, labels), strict=True):
            header = (
                b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            )
            (folder / name).write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))
    return root
