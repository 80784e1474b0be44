from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from spiketrain.data import DataMissingError, load_dataset

# The pickles of CIFAR were written by Python 2: byte strings, and arrays with their bytes in a string.
PER_CLASS = 4


def samples(classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes, dtype=np.uint8), PER_CLASS)
    return draw.integers(0, 256, (len(labels), 3072), dtype=np.uint8), labels


def write_binary(folder: Path, marks: int, files: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    folder.mkdir(parents=True)
    for name, (pixels, labels) in files.items():
        coarse = np.zeros((len(labels), marks - 1), np.uint8)
        (folder / name).write_bytes(np.hstack([coarse, labels[:, None], pixels]).tobytes())


def write_pickle(folder: Path, key: str, files: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    folder.mkdir(parents=True)
    for name, (pixels, labels) in files.items():
        content = pickle.dumps({"data": pixels, key: labels.tolist()}, protocol=2)
        (folder / name).write_bytes(content)


def ten(suffix: str = "") -> dict[str, tuple[np.ndarray, np.ndarray]]:
    names = [*(f"data_batch_{i}{suffix}" for i in range(1, 6)), f"test_batch{suffix}"]
    return {name: samples(10, seed) for seed, name in enumerate(names)}


@pytest.mark.parametrize("layout", ["python", "binary", "archive", "without its folder"])
def test_reads_every_distribution_of_cifar10(tmp_path: Path, layout: str) -> None:
    place = tmp_path / "cifar-10"
    suffix = ".bin" if layout == "binary" else ""
    files = ten(suffix)
    if layout == "binary":
        write_binary(place / "cifar-10-batches-bin", 1, files)
    elif layout == "without its folder":
        write_pickle(place, "labels", files)
    else:
        write_pickle(place / "cifar-10-batches-py", "labels", files)
    if layout == "archive":
        with tarfile.open(place / "cifar-10-python.tar.gz", "w:gz") as tar:
            tar.add(place / "cifar-10-batches-py", "cifar-10-batches-py")
        for file in (place / "cifar-10-batches-py").iterdir():
            file.unlink()

    data = load_dataset("cifar10", tmp_path, validation_per_class=2)

    pixels, labels = files[f"test_batch{suffix}"]
    assert torch.equal(data.test.x, torch.from_numpy(pixels).view(-1, 3, 32, 32))
    assert data.test.y.tolist() == labels.tolist()
    assert len(data.validation) == 20
    assert len(data.train) == 5 * 40 - 20
    assert data.classes[3] == "cat"
    assert set(data.digests) == set(files)


@pytest.mark.parametrize("kind", ["python", "binary"])
def test_takes_the_fine_labels_of_cifar100(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "cifar-100"
    suffix = ".bin" if kind == "binary" else ""
    files = {f"train{suffix}": samples(100, 0), f"test{suffix}": samples(100, 1)}
    if kind == "python":
        write_pickle(place / "cifar-100-python", "fine_labels", files)
    else:
        write_binary(place / "cifar-100-binary", 2, files)

    data = load_dataset("cifar100", tmp_path, validation_per_class=1)

    assert len(data.classes) == 100
    assert data.test.y.tolist() == files[f"test{suffix}"][1].tolist()


def test_a_pickle_that_names_code_is_refused(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return exec, ("raise SystemExit('ran')",)

    place = tmp_path / "cifar-10" / "cifar-10-batches-py"
    write_pickle(place, "labels", ten())
    (place / "data_batch_3").write_bytes(pickle.dumps({"data": Trap(), "labels": []}))
    with pytest.raises(ValueError, match=r"data_batch_3.*builtins\.exec"):
        load_dataset("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes"),
        (bytes(3073 + 7), "not a whole number of records"),
        (bytes([10]) + bytes(3072), "label 10"),
    ],
)
def test_a_damaged_binary_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    place = tmp_path / "cifar-10" / "cifar-10-batches-bin"
    write_binary(place, 1, ten(".bin"))
    (place / "data_batch_2.bin").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_dataset("cifar10", tmp_path)


def test_a_truncated_archive_is_named(tmp_path: Path) -> None:
    place = tmp_path / "cifar-10"
    place.mkdir()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        info = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        info.size = 100_000
        tar.addfile(info, io.BytesIO(np.random.default_rng(0).bytes(100_000)))
    (place / "cifar-10-python.tar.gz").write_bytes(buffer.getvalue()[:50_000])
    with pytest.raises(ValueError, match=r"cifar-10-python\.tar\.gz"):
        load_dataset("cifar10", tmp_path)


def test_says_where_to_get_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataMissingError, match=r"cifar-100-python\.tar\.gz or .*toronto"):
        load_dataset("cifar100", tmp_path)
