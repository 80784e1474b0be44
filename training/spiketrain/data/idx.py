"""MNIST and Fashion-MNIST from their original idx files."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spiketrain.data.base import DataMissingError, DataSet, Split, cut_validation, sha256
from spiketrain.manifest import ImageInput

FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
MNIST_CLASSES = tuple("0123456789")
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def read_idx(path: Path) -> Tensor:
    """One idx file of unsigned bytes, gzipped, as a uint8 tensor of the shape that it states."""
    data = gzip.decompress(path.read_bytes())
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError(f"{path}: not an idx file of unsigned bytes")
    dimensions = data[3]
    shape = tuple(np.frombuffer(data, ">u4", dimensions, 4).astype(int).tolist())
    body = np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions)
    if body.size != int(np.prod(shape)):
        raise ValueError(f"{path}: {body.size} bytes of data, the header says {shape}")
    return torch.from_numpy(body.reshape(shape).copy())


def load_idx(
    name: str,
    folder: Path,
    classes: tuple[str, ...],
    mean: float,
    std: float,
    validation_per_class: int = 500,
    seed: int = 0,
) -> DataSet:
    """The data set in `folder`, with `validation_per_class` training images of each class held out."""
    paths = {file: folder / file for files in FILES.values() for file in files}
    if missing := [file for file, path in paths.items() if not path.is_file()]:
        raise DataMissingError(f"{name}: no {missing[0]} in {folder}. {_SOURCES[name]}")
    splits = {
        split: (read_idx(paths[images]).unsqueeze(1), read_idx(paths[labels]).long())
        for split, (images, labels) in FILES.items()
    }
    train, validation = cut_validation(*splits["train"], validation_per_class, seed)
    return DataSet(
        name=name,
        input=ImageInput(shape=(1, 28, 28), mean=(mean,), std=(std,)),
        classes=classes,
        train=train,
        validation=validation,
        test=Split(*splits["test"]),
        digests={file: sha256(path) for file, path in paths.items()},
    )


_SOURCES = {
    "fashion-mnist": "Get the four .gz files from https://github.com/zalandoresearch/fashion-mnist "
    "(on Debian: the package dataset-fashion-mnist) and put them there.",
    "mnist": "Get the four .gz files of MNIST (https://ossci-datasets.s3.amazonaws.com/mnist/) and put them there.",
}
