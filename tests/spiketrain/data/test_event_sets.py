"""N-MNIST, CIFAR10-DVS and DVS128 Gesture in exactly the layouts that their authors distribute, written here byte by byte."""

from __future__ import annotations

import shutil
import struct
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from spiketrain.data import DataMissingError, load_dataset
from spiketrain.data import event_frames as event_frames_module
from spiketrain.data.cifar import CIFAR10_CLASSES
from spiketrain.data.event_sets import GESTURES, read_gesture_labels
from spiketrain.data.frame_cache import FrameCache, compact, frame_key
from spiketrain.events.formats import EventFormatError
from spiketrain.manifest import CountWindow, DurationWindow, EventInput, NumberWindow

# An event is (t, x, y, p) as the camera's raw fields have it.
Raw = list[tuple[int, int, int, int]]


def nmnist_bytes(events: Raw) -> bytes:
    """40 bits an event: x, y, one bit polarity and 23 of time, big-endian."""
    return b"".join(bytes((x, y)) + ((p << 23) | t).to_bytes(3, "big") for t, x, y, p in events)


def aedat2_bytes(events: Raw) -> bytes:
    """As jAER wrote CIFAR10-DVS: address and time of 32 bits each, big-endian; y, x and polarity in the address."""
    header = b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n# Timestamps tick is 1 us\r\n"
    return header + b"".join(
        struct.pack(">II", (y << 8) | (x << 1) | p, t) for t, x, y, p in events
    )


def aedat3_bytes(events: Raw, per_packet: int = 3) -> bytes:
    """As cAER wrote DVS128 Gesture: packets of polarity events behind one of another kind."""
    header = (
        b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n"
        b"#Start-Time: 2016-01-01 00:00:00 (TZ+0100)\r\n#!END-HEADER\r\n"
    )
    special = struct.pack("<HHIIIIII", 0, 1, 8, 4, 0, 1, 1, 1) + struct.pack("<II", 3, 0)
    packets = [special]
    for begin in range(0, len(events), per_packet):
        part = events[begin : begin + per_packet]
        head = struct.pack("<HHIIIIII", 1, 1, 8, 4, 0, 100, len(part), len(part))
        packets.append(
            head
            + b"".join(
                struct.pack("<II", (x << 17) | (y << 2) | (p << 1) | 1, t) for t, x, y, p in part
            )
        )
    return header + b"".join(packets)


def spec(side: int = 128, window: object = None, **changes: object) -> EventInput:
    return EventInput(
        sensor=(side, side),
        shape=(2, side, side),
        window=window or NumberWindow(windows=2),
        **changes,
    )


def load(name: str, root: Path, given: EventInput, timesteps: int = 2, **more: object):
    return load_dataset(name, root, events=given, timesteps=timesteps, **more)


def marked(mark: int, count: int = 4) -> Raw:
    """Events that say which recording they are of: all at x = mark."""
    return [(100 + 10 * i, mark % 34, i % 34, i % 2) for i in range(count)]


@pytest.fixture
def nmnist(tmp_path: Path) -> Path:
    for split, count in (("Train", 3), ("Test", 2)):
        for digit in range(10):
            place = tmp_path / "n-mnist" / split / str(digit)
            place.mkdir(parents=True)
            for i in range(count):
                (place / f"{digit * count + i + 1:05d}.bin").write_bytes(
                    nmnist_bytes(marked(digit * count + i))
                )
    return tmp_path


def marks(split) -> list[int]:
    return [int(x.sum((0, 1, 2)).argmax()) for x in split.x[torch.arange(len(split))]]


@pytest.mark.parametrize("packed", [False, True])
def test_n_mnist_is_read_from_its_folders_and_from_its_archives(nmnist: Path, packed: bool) -> None:
    folder = nmnist / "n-mnist"
    if packed:
        for split in ("Train", "Test"):
            with zipfile.ZipFile(folder / f"{split}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                for path in sorted((folder / split).rglob("*.bin")):
                    archive.write(path, path.relative_to(folder))
            shutil.rmtree(folder / split)
    data = load("nmnist", nmnist, spec(34), validation_per_class=1)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [20, 10, 20]
    assert marks(data.test) == list(range(20))
    assert data.test.y.tolist() == [i // 2 for i in range(20)]
    assert sorted(marks(data.train) + marks(data.validation)) == list(range(30))
    for split in (data.train, data.validation):
        assert split.y.tolist() == [mark // 3 for mark in marks(split)]
    assert data.train.x.shape == (20, 2, 2, 34, 34)
    assert set(data.digests) == {"Train", "Test"}
    assert load("nmnist", nmnist, spec(34), validation_per_class=1).digests == data.digests


@pytest.mark.parametrize(
    ("window", "sums"),
    [
        (NumberWindow(windows=3), [3, 3, 4]),
        (DurationWindow(microseconds=30), [3, 3, 3]),
        (CountWindow(events=4, max_microseconds=1000), [4, 4, 2]),
        # No window gets to its fourth event: they begin at 100, 125 and 150 us.
        (CountWindow(events=4, max_microseconds=25), [3, 2, 3]),
    ],
)
def test_events_become_frames_by_number_by_duration_and_by_both_bounds(
    nmnist: Path, window: object, sums: list[int]
) -> None:
    place = nmnist / "n-mnist" / "Test" / "0" / "00001.bin"
    place.write_bytes(nmnist_bytes(marked(0, count=10)))
    frames = load("nmnist", nmnist, spec(34, window), timesteps=3).test.x[torch.tensor([0])][0]
    assert frames.sum((1, 2, 3)).tolist() == sums


def dvs(root: Path, per_class: int = 20, packed: bool = False) -> Path:
    """CIFAR10-DVS with fewer recordings: number n of a class has its events at x = n."""
    folder = root / "cifar10-dvs"
    folder.mkdir()
    for name in CIFAR10_CLASSES:
        files = {
            f"{name}/cifar10_{name}_{n}.aedat": aedat2_bytes([(5 * t, n, 3, 1) for t in range(4)])
            for n in range(per_class)
        }
        if packed:
            with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
                for file, content in files.items():
                    archive.writestr(file, content)
        else:
            (folder / name).mkdir()
            for file, content in files.items():
                (folder / file).write_bytes(content)
    return root


def numbers(split) -> list[int]:
    return sorted({int(x.sum((0, 1, 2)).argmax()) for x in split.x[torch.arange(len(split))]})


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("split", "test"),
    [("numeric", [18, 19]), ("lexicographic", [8, 9])],
)
def test_both_splits_of_cifar10_dvs_can_be_asked_for(
    tmp_path: Path, split: str, test: list[int], packed: bool
) -> None:
    data = load("cifar10-dvs", dvs(tmp_path, packed=packed), spec(), split=split)
    assert numbers(data.test) == test
    assert len(data.test) == 20
    assert not set(test) & {*numbers(data.train), *numbers(data.validation)}
    # A tenth of the 18 of each class that are for training.
    assert [len(data.train), len(data.validation)] == [170, 10]
    assert data.classes == CIFAR10_CLASSES


def test_both_orientations_of_cifar10_dvs_are_those_of_the_repositories(tmp_path: Path) -> None:
    """CLIF and PLIF: x = 127 - x. SpikingJelly since 2021: x = 127 - y, y = 127 - x. Both: polarity inverted."""
    dvs(tmp_path)
    raw: Raw = [(0, 10, 20, 0), (1, 30, 40, 1), (2, 100, 5, 1), (3, 7, 90, 0)]
    (tmp_path / "cifar10-dvs/airplane/cifar10_airplane_18.aedat").write_bytes(aedat2_bytes(raw))
    frames = {}
    for orientation in ("flip-x", "anti-transpose"):
        given = spec(window=NumberWindow(windows=1), orientation=orientation, polarity="on-is-0")
        data = load("cifar10-dvs", tmp_path, given, timesteps=1)
        frames[orientation] = data.test.x[torch.tensor([0])][0, 0].numpy()
    old, new = np.zeros((2, 2, 128, 128), np.float32)
    for _, x, y, p in raw:
        old[1 - p, y, 127 - x] += 1
        new[1 - p, 127 - x, 127 - y] += 1
    np.testing.assert_array_equal(frames["flip-x"], old)
    np.testing.assert_array_equal(frames["anti-transpose"], new)
    np.testing.assert_array_equal(new, np.rot90(old, -1, (1, 2)))


def gestures(root: Path) -> Path:
    folder = root / "dvs-gesture" / "DvsGesture"
    folder.mkdir(parents=True)
    names = [f"user{user:02d}_{light}" for user in (1, 2, 3) for light in ("natural", "led")]
    for i, name in enumerate(names):
        # Gesture k is from 1000 k to 1000 k + 500, with its events at x = k; between them x is 127.
        raw: Raw = []
        rows = ["class,startTime_usec,endTime_usec"]
        for k in range(1, 12):
            raw += [(1000 * k + 100 * j, k, i, j % 2) for j in range(5)]
            raw += [(1000 * k + 500, 127, 0, 1)]
            rows.append(f"{k},{1000 * k},{1000 * k + 500}")
        (folder / f"{name}.aedat").write_bytes(aedat3_bytes(raw))
        (folder / f"{name}_labels.csv").write_text("\n".join(rows) + "\n")
    lists = {"train": names[:4], "test": names[4:]}
    for split, listed in lists.items():
        (folder / f"trials_to_{split}.txt").write_text(
            "".join(f"{name}.aedat\n" for name in listed) + "\n"
        )
    return root


def test_gestures_are_cut_by_their_labels_and_split_by_the_lists(tmp_path: Path) -> None:
    data = load("dvs-gesture", gestures(tmp_path), spec())
    assert data.classes == GESTURES
    assert [len(s) for s in (data.train, data.validation, data.test)] == [33, 11, 22]
    for split in (data.train, data.validation, data.test):
        x = split.x[torch.arange(len(split))]
        assert x.shape[1:] == (2, 2, 128, 128)
        # Five events, and none of those between gestures: the end does not belong to a stretch.
        assert x.sum((1, 2, 3, 4)).tolist() == [5] * len(split)
        assert (x.sum((1, 2, 3)).argmax(1) - 1).tolist() == split.y.tolist()
    # Stretches of one recording are in one split.
    rows = {
        name: set(split.x[torch.arange(len(split))].sum((1, 2, 4)).argmax(1).tolist())
        for name, split in (("train", data.train), ("validation", data.validation))
    }
    assert not rows["train"] & rows["validation"]


def test_the_genuine_label_file_is_read(shared_data: Path) -> None:
    found = read_gesture_labels(
        shared_data / "events/aestream/dvsgesture_user01_natural_labels.csv"
    )
    assert {label for label, _, _ in found} == set(range(11))
    assert all(end - start > 1_000_000 for _, start, end in found)


@pytest.mark.parametrize("row", ["12,0,5", "0,0,5", "3,5,5", "3,5", "a,0,5"])
def test_a_wrong_row_of_labels_is_named(tmp_path: Path, row: str) -> None:
    path = tmp_path / "user01_natural_labels.csv"
    path.write_text(f"class,startTime_usec,endTime_usec\n1,0,5\n{row}\n")
    with pytest.raises(ValueError, match=r"user01_natural_labels\.csv, line 3: "):
        read_gesture_labels(path)


def test_frames_are_decoded_once_and_then_read(tmp_path: Path, monkeypatch) -> None:
    gestures(tmp_path)
    opened: list[object] = []
    genuine = event_frames_module.open_recording
    monkeypatch.setattr(
        event_frames_module,
        "open_recording",
        lambda *arguments: opened.append(arguments) or genuine(*arguments),
    )
    everything = torch.arange(22)
    first = load("dvs-gesture", tmp_path, spec()).test.x[everything]
    # Eleven stretches of each recording, which is opened once.
    assert len(opened) == 2
    again = load("dvs-gesture", tmp_path, spec()).test.x[everything]
    assert len(opened) == 2
    assert torch.equal(first, again)
    scaled = load("dvs-gesture", tmp_path, spec(scale=0.5)).test.x[everything]
    assert len(opened) == 2
    assert torch.equal(scaled, 0.5 * first)
    load("dvs-gesture", tmp_path, spec(clip=1)).test.x[everything]
    assert len(opened) == 4
    # A recording that changed is another one.
    path = tmp_path / "dvs-gesture/DvsGesture/user03_natural.aedat"
    path.write_bytes(path.read_bytes() + aedat3_bytes([(90_000, 1, 1, 1)]).split(b"HEADER\r\n")[1])
    load("dvs-gesture", tmp_path, spec()).test.x[everything]
    assert len(opened) == 5


def test_every_setting_that_shapes_frames_is_in_their_key() -> None:
    base = ("a" * 64, spec(), 2, None, None)
    others = [
        ("b" * 64, *base[1:]),
        (base[0], spec(orientation="flip-x"), *base[2:]),
        (base[0], spec(window=NumberWindow(windows=3)), *base[2:]),
        (base[0], spec(clip=3), *base[2:]),
        (*base[:2], 3, None, None),
        (*base[:3], 5, None),
        (*base[:3], None, 5),
    ]
    keys = {frame_key(*each) for each in (base, *others)}
    assert len(keys) == 1 + len(others)
    assert frame_key(base[0], spec(scale=0.5), *base[2:]) == frame_key(*base)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0, 255], np.uint8),
        ([0, 256], np.uint16),
        ([0, 65536], np.float32),
        ([0.5, 1], np.float32),
        ([-1, 0], np.float32),
    ],
)
def test_frames_are_kept_in_the_smallest_type_without_loss(
    tmp_path: Path, values: list[float], kind: type
) -> None:
    frames = np.array(values, np.float32)
    assert compact(frames).dtype == kind
    cache = FrameCache(tmp_path)
    cache.put("ab" + "c" * 62, frames)
    found = cache.get("ab" + "c" * 62)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, frames)


def test_a_damaged_file_in_the_cache_is_decoded_anew(nmnist: Path) -> None:
    data = load("nmnist", nmnist, spec(34))
    before = data.test.x[torch.arange(20)]
    files = sorted((nmnist / "frames-cache").rglob("*.npy"))
    assert len(files) == 20
    files[0].write_bytes(files[0].read_bytes()[:50])
    files[1].write_bytes(b"")
    assert torch.equal(data.test.x[torch.arange(20)], before)
    assert len(files[0].read_bytes()) > 50


def test_many_readers_at_once_see_whole_frames(nmnist: Path) -> None:
    expected = load("nmnist", nmnist, spec(34)).train.x[torch.arange(20)]
    shutil.rmtree(nmnist / "frames-cache")
    found: list[bool] = []

    def reader() -> None:
        data = load("nmnist", nmnist, spec(34))
        found.append(torch.equal(data.train.x[torch.arange(20)], expected))

    threads = [threading.Thread(target=reader) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4


def test_a_cache_that_cannot_be_written_to_costs_time_and_nothing_else(
    nmnist: Path, monkeypatch, caplog
) -> None:
    expected = load("nmnist", nmnist, spec(34)).test.x[torch.arange(20)]
    (nmnist / "file").write_text("")
    monkeypatch.setenv("SPIKETRAIN_CACHE", str(nmnist / "file" / "cache"))
    assert torch.equal(load("nmnist", nmnist, spec(34)).test.x[torch.arange(20)], expected)
    assert "not kept" in caplog.text


def test_a_damaged_recording_is_named(nmnist: Path) -> None:
    path = nmnist / "n-mnist/Test/3/00007.bin"
    path.write_bytes(path.read_bytes()[:-2])
    data = load("nmnist", nmnist, spec(34))
    with pytest.raises(EventFormatError, match=r"Test/3/00007\.bin|3/00007\.bin"):
        data.test.x[torch.arange(20)]


def test_a_stretch_without_events_on_the_sensor_is_named(tmp_path: Path) -> None:
    gestures(tmp_path)
    labels = tmp_path / "dvs-gesture/DvsGesture/user03_natural_labels.csv"
    labels.write_text(labels.read_text() + "3,90000,95000\n")
    data = load("dvs-gesture", tmp_path, spec())
    with pytest.raises(ValueError, match=r"user03_natural\.aedat from 90000 us: none of 0 events"):
        data.test.x[torch.arange(len(data.test))]


def test_what_is_missing_is_named_with_its_source(tmp_path: Path) -> None:
    for name, message in (
        ("nmnist", r"Train\.zip.*garrickorchard"),
        ("cifar10-dvs", r"airplane\.zip.*figshare"),
        ("dvs-gesture", r"DvsGesture\.tar\.gz.*research\.ibm\.com"),
    ):
        with pytest.raises(DataMissingError, match=message):
            load(name, tmp_path, spec())
    dvs(tmp_path)
    shutil.rmtree(tmp_path / "cifar10-dvs" / "frog")
    with pytest.raises(DataMissingError, match="neither frog nor"):
        load("cifar10-dvs", tmp_path, spec())


def test_batches_of_recordings_on_disk_have_time_first(tmp_path: Path) -> None:
    data = load("dvs-gesture", gestures(tmp_path), spec())
    batches = list(data.batches("test", 8))
    assert [tuple(x.shape) for x, _ in batches] == [(2, 8, 2, 128, 128)] * 2 + [(2, 6, 2, 128, 128)]
    assert torch.equal(torch.cat([y for _, y in batches]), data.test.y)
    assert torch.equal(
        torch.cat([x for x, _ in batches], 1).transpose(0, 1), data.test.x[torch.arange(22)]
    )
