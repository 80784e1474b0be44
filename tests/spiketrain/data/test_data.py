"""Splits, batches and the idx reader."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from spiketrain.data import DataMissingError, load_dataset
from spiketrain.data.base import DataSet, Split, cut_validation
from spiketrain.data.idx import read_idx
from spiketrain.manifest import DurationWindow, EventInput, ImageInput


def idx_bytes(array: np.ndarray) -> bytes:
    header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes())


def test_an_idx_file_is_read_in_the_shape_that_it_states(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (3, 4, 5))
    (tmp_path / "x.gz").write_bytes(idx_bytes(array))
    assert (read_idx(tmp_path / "x.gz").numpy() == array).all()


def test_an_idx_file_that_is_too_short_is_refused_with_both_sizes(tmp_path: Path) -> None:
    data = gzip.decompress(idx_bytes(np.zeros((3, 4, 5))))[:-1]
    (tmp_path / "x.gz").write_bytes(gzip.compress(data))
    with pytest.raises(ValueError, match=r"59 bytes of data, the header says \(3, 4, 5\)"):
        read_idx(tmp_path / "x.gz")


def test_missing_files_are_named_with_the_place_and_the_source(tmp_path: Path) -> None:
    with pytest.raises(DataMissingError, match=r"train-images.*fashion-mnist.*zalandoresearch"):
        load_dataset("fashion-mnist", tmp_path)


def test_an_unknown_data_set_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown data set 'nope'.*fashion-mnist"):
        load_dataset("nope", tmp_path)


def test_validation_is_cut_from_training_class_by_class_and_reproducibly() -> None:
    x, y = torch.arange(100).view(100, 1), torch.arange(100) % 10
    train, validation = cut_validation(x, y, per_class=3, seed=1)
    assert torch.bincount(validation.y).tolist() == [3] * 10
    assert sorted(torch.cat((train.x, validation.x)).flatten().tolist()) == list(range(100))
    again = cut_validation(x, y, per_class=3, seed=1)[1]
    other = cut_validation(x, y, per_class=3, seed=2)[1]
    assert torch.equal(again.x, validation.x)
    assert not torch.equal(other.x, validation.x)


def test_a_class_too_small_to_hold_samples_out_is_refused() -> None:
    with pytest.raises(ValueError, match="class 1 has 1 samples"):
        cut_validation(torch.zeros(4, 1), torch.tensor([0, 0, 0, 1]), per_class=1, seed=0)


def image_set(count: int = 10) -> DataSet:
    x = torch.arange(count, dtype=torch.uint8).view(count, 1, 1, 1).expand(count, 1, 2, 2)
    split = Split(x.contiguous(), torch.arange(count) % 2)
    spec = ImageInput(shape=(1, 2, 2), mean=(0.5,), std=(0.25,))
    return DataSet("toy", spec, ("a", "b"), split, split, split, {})


def test_images_are_scaled_to_one_and_normalised() -> None:
    x, y = next(image_set().batches("test", 10))
    torch.testing.assert_close(x[:, 0, 0, 0], (torch.arange(10) / 255 - 0.5) / 0.25)
    assert y.tolist() == [0, 1] * 5


def test_without_shuffling_every_sample_comes_once_in_order() -> None:
    sizes = [len(y) for _, y in image_set().batches("test", 4)]
    assert sizes == [4, 4, 2]


def test_shuffled_batches_are_whole_and_follow_their_generator() -> None:
    def order(seed: int) -> list[float]:
        draws = torch.Generator().manual_seed(seed)
        return [
            v
            for x, _ in image_set().batches("train", 4, shuffle=draws)
            for v in x[:, 0, 0, 0].tolist()
        ]

    assert len(order(0)) == 8
    assert order(0) == order(0)
    assert order(0) != order(1)


def test_event_frames_come_with_time_first() -> None:
    split = Split(torch.rand(6, 5, 2, 3, 4), torch.zeros(6, dtype=torch.long))
    spec = EventInput(sensor=(4, 3), shape=(2, 3, 4), window=DurationWindow(microseconds=10))
    data = DataSet("toy", spec, ("a", "b"), split, split, split, {})
    x, _ = next(data.batches("test", 6))
    assert torch.equal(x, split.x.transpose(0, 1))
