"""CIFAR-10 and CIFAR-100 from their original files: the Python or the binary version, unpacked or as the archive.

The Python version is a pickle. It is read by an unpickler that knows arrays of numbers and nothing else, so reading it
never runs code. Source: https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spiketrain.data.base import DataMissingError, DataSet, Split, cut_validation
from spiketrain.manifest import ImageInput

_PIXELS = 3 * 32 * 32

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class _Version:
    """How one distribution is laid out: folder and archive, its files of training and test, and their reader."""

    folder: str
    archive: str
    train: tuple[str, ...]
    test: str
    read: Callable[[bytes, str], tuple[Bytes, Bytes]]


@dataclass(frozen=True)
class _Set:
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    versions: tuple[_Version, ...]


class _Arrays(pickle.Unpickler):
    """Builds arrays of bytes and plain containers; refuses every other class or function that a pickle names."""

    _ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),  # the bytes of an array, where Python 3 wrote the file
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no file of CIFAR does")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _read_pickle(labels: str) -> Callable[[bytes, str], tuple[Bytes, Bytes]]:
    def read(content: bytes, name: str) -> tuple[Bytes, Bytes]:
        try:
            batch = _Arrays(io.BytesIO(content), encoding="latin1").load()
            pixels = np.asarray(batch["data"], np.uint8)
            marks = np.asarray(batch[labels], np.uint8)
        except Exception as error:  # a damaged pickle can raise anything
            raise ValueError(
                f"{name}: not a batch of CIFAR in the Python version: {error}"
            ) from error
        return _checked(pixels, marks, name)

    return read


def _read_binary(marks_before: int) -> Callable[[bytes, str], tuple[Bytes, Bytes]]:
    """Records of one or two labels, the last of which counts, and the pixels."""

    def read(content: bytes, name: str) -> tuple[Bytes, Bytes]:
        size = marks_before + _PIXELS
        if not content or len(content) % size:
            raise ValueError(
                f"{name}: {len(content)} bytes, not a whole number of records of {size}"
            )
        records = np.frombuffer(content, np.uint8).reshape(-1, size)
        return _checked(records[:, marks_before:], records[:, marks_before - 1], name)

    return read


def _checked(pixels: Bytes, labels: Bytes, name: str) -> tuple[Bytes, Bytes]:
    if pixels.ndim != 2 or pixels.shape != (len(labels), _PIXELS):
        raise ValueError(f"{name}: pixels of shape {pixels.shape} for {len(labels)} labels")
    return pixels.reshape(-1, 3, 32, 32), labels


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))

CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)

# In the order of their index, which is the alphabetic one.
_CIFAR100_NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CIFAR100_CLASSES = tuple(_CIFAR100_NAMES.split())

_SETS = {
    "cifar10": _Set(
        CIFAR10_CLASSES,
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
        (
            _Version(
                "cifar-10-batches-py",
                "cifar-10-python.tar.gz",
                _BATCHES,
                "test_batch",
                _read_pickle("labels"),
            ),
            _Version(
                "cifar-10-batches-bin",
                "cifar-10-binary.tar.gz",
                tuple(f"{name}.bin" for name in _BATCHES),
                "test_batch.bin",
                _read_binary(1),
            ),
        ),
    ),
    "cifar100": _Set(
        CIFAR100_CLASSES,
        (0.5071, 0.4865, 0.4409),
        (0.2673, 0.2564, 0.2762),
        (
            _Version(
                "cifar-100-python",
                "cifar-100-python.tar.gz",
                ("train",),
                "test",
                _read_pickle("fine_labels"),
            ),
            _Version(
                "cifar-100-binary",
                "cifar-100-binary.tar.gz",
                ("train.bin",),
                "test.bin",
                _read_binary(2),
            ),
        ),
    ),
}


def load_cifar(
    name: str, folder: Path, validation_per_class: int | None = None, seed: int = 0
) -> DataSet:
    """CIFAR-10 ("cifar10") or CIFAR-100 ("cifar100") from `folder`, a tenth of the training images held out.

    In `folder` lies one of the two archives, or what is in it, with or without its folder. Raises DataMissingError
    where nothing of that is there, ValueError for a file that is damaged.
    """
    known = _SETS[name]
    version, files = _files(name, folder)
    parts = {file: version.read(content, file) for file, content in files.items()}
    highest = max(int(labels.max()) for _, labels in parts.values())
    if highest >= len(known.classes):
        raise ValueError(f"{folder}: label {highest} in a data set of {len(known.classes)} classes")
    x = torch.from_numpy(np.concatenate([parts[file][0] for file in version.train]))
    y = torch.from_numpy(np.concatenate([parts[file][1] for file in version.train])).long()
    pixels, labels = parts[version.test]
    per_class = validation_per_class or max(1, len(y) // len(known.classes) // 10)
    train, validation = cut_validation(x, y, per_class, seed)
    return DataSet(
        name=name,
        input=ImageInput(shape=(3, 32, 32), mean=known.mean, std=known.std),
        classes=known.classes,
        train=train,
        validation=validation,
        test=Split(torch.from_numpy(pixels.copy()), torch.from_numpy(labels.copy()).long()),
        digests={file: hashlib.sha256(content).hexdigest() for file, content in files.items()},
    )


def _files(name: str, folder: Path) -> tuple[_Version, dict[str, bytes]]:
    versions = _SETS[name].versions
    for version in versions:
        wanted = (*version.train, version.test)
        for place in (folder / version.folder, folder):
            if all((place / file).is_file() for file in wanted):
                return version, {file: (place / file).read_bytes() for file in wanted}
        if (folder / version.archive).is_file():
            return version, _unpacked(folder / version.archive, version.folder, wanted)
    archives = " or ".join(version.archive for version in versions)
    raise DataMissingError(
        f"{name}: no {archives} in {folder}, and nothing unpacked from them. "
        "Get one of them from https://www.cs.toronto.edu/~kriz/cifar.html and put it there."
    )


def _unpacked(archive: Path, folder: str, wanted: tuple[str, ...]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as tar:
            for file in wanted:
                member = tar.extractfile(f"{folder}/{file}")
                if member is None:
                    raise KeyError(f"{folder}/{file} is no file")
                found[file] = member.read()
    except (tarfile.TarError, EOFError, KeyError, OSError) as error:
        raise ValueError(f"{archive}: {error}; get the archive anew") from error
    return found
