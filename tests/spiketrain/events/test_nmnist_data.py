"""The N-MNIST loader: the genuine archive, and the other layouts written by hand."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from spiketrain.data.nmnist import ARCHIVE, SENSOR, digest, load_nmnist_small
from spiketrain.events import EventFormatError, Events
from spiketrain.events.formats import nmnist

DATA = Path(__file__).resolve().parents[3] / "../shared/data"


def recording(x: int) -> Events:
    n = 20
    return Events(
        np.arange(n, dtype=np.int64),
        np.full(n, x, np.uint16),
        np.zeros(n, np.uint16),
        np.ones(n, np.uint8),
    )


def write_list(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "train1K.txt").write_bytes(b"#sample #class\r\n1\t5\r\n2\t0\r\n")
    (folder / "test100.txt").write_bytes(b"#sample #class\r\n60001\t7\r\n")
    for sample, x in ((1, 11), (2, 12), (60001, 13)):
        (folder / f"{sample}.bs2").write_bytes(nmnist.write(recording(x)))


def seen(samples: list[tuple[Events, int]]) -> list[tuple[int, int]]:
    return [(int(events.x[0]), label) for events, label in samples]


def test_the_genuine_archive():
    if not (DATA / "n-mnist-small").is_dir():
        pytest.skip(f"no N-MNIST at {DATA}")
    train, test = load_nmnist_small(DATA)
    assert len(train) == 1000
    assert len(test) == 100
    assert [label for _, label in train[:5]] == [5, 0, 4, 1, 9]
    assert [label for _, label in test[:5]] == [7, 2, 1, 0, 4]
    assert sum(len(events) for events, _ in train + test) == 4_518_827
    assert all(events.is_sorted() and events.x.max() < SENSOR[0] for events, _ in train + test)
    assert digest(DATA) == {
        ARCHIVE: "179072401f2398d7877eeef8c3c1708c19eae08f026df0d5e3dace15ecbf0987"
    }


def test_an_archive_and_its_extracted_folder_give_the_same(tmp_path):
    folder = tmp_path / "extracted" / "NMNISTsmall"
    write_list(folder)
    archive = tmp_path / "packed" / "n-mnist-small" / ARCHIVE
    archive.parent.mkdir(parents=True)
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(folder, "NMNISTsmall")
    for root in (folder, folder.parent, archive, archive.parent, archive.parent.parent):
        train, test = load_nmnist_small(root)
        assert seen(train) == [(11, 5), (12, 0)]
        assert seen(test) == [(13, 7)]
    assert digest(archive.parent) == {ARCHIVE: hashlib.sha256(archive.read_bytes()).hexdigest()}
    before = digest(folder)
    assert before == digest(folder.parent)
    (folder / "2.bs2").write_bytes(nmnist.write(recording(14)))
    assert digest(folder) != before


def test_the_original_folders(tmp_path):
    for split, label, name, x in (
        ("Train", 3, "00001", 21),
        ("Train", 0, "00009", 20),
        ("Test", 9, "00001", 22),
    ):
        folder = tmp_path / split / str(label)
        folder.mkdir(parents=True)
        (folder / f"{name}.bin").write_bytes(nmnist.write(recording(x)))
    train, test = load_nmnist_small(tmp_path)
    assert seen(train) == [(20, 0), (21, 3)]
    assert seen(test) == [(22, 9)]


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no N-MNIST at"):
        load_nmnist_small(tmp_path)
    folder = tmp_path / "NMNISTsmall"
    write_list(folder)
    (folder / "2.bs2").unlink()
    with pytest.raises(FileNotFoundError, match=r"train1K\.txt names sample 2"):
        load_nmnist_small(folder)
    (folder / "test100.txt").unlink()
    (folder / "2.bs2").write_bytes(b"12345")
    with pytest.raises(FileNotFoundError, match=r"no test100\.txt"):
        load_nmnist_small(folder)
    (tmp_path / "other" / "Train").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no recordings in"):
        load_nmnist_small(tmp_path / "other")


def test_damage_is_named(tmp_path):
    folder = tmp_path / "NMNISTsmall"
    write_list(folder)
    (folder / "2.bs2").write_bytes(b"123456")
    with pytest.raises(EventFormatError, match=r"2\.bs2: 6 bytes"):
        load_nmnist_small(folder)
    (folder / "2.bs2").write_bytes(b"12345")
    (folder / "train1K.txt").write_bytes(b"1 5\n2 seven\n")
    with pytest.raises(EventFormatError, match=r"train1K\.txt: line '2 seven'"):
        load_nmnist_small(folder)
    broken = tmp_path / ARCHIVE
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as tar:
        tar.add(folder, "NMNISTsmall")
    broken.write_bytes(buffer.getvalue()[:200])
    with pytest.raises(EventFormatError, match="damaged or truncated"):
        load_nmnist_small(broken)
