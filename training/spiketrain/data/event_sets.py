"""N-MNIST, CIFAR10-DVS and DVS128 Gesture from their original files, packed or not.

N-MNIST           Train/0/00002.bin ...  Test/0/00004.bin ...          or Train.zip, Test.zip
CIFAR10-DVS       airplane/cifar10_airplane_0.aedat ... (AEDAT 2.0)    or airplane.zip ...
DVS128 Gesture    DvsGesture/user01_natural.aedat (AEDAT 3.1), user01_natural_labels.csv, trials_to_train.txt,
                  trials_to_test.txt; unpacked from DvsGesture.tar.gz, which cannot be read in part

Frames lie as the input's orientation says and polarity counts as it says: files are read as the cameras wrote them.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from spiketrain.data.base import DataMissingError, DataSet, Split, cut_validation
from spiketrain.data.cifar import CIFAR10_CLASSES
from spiketrain.data.event_frames import EventFrames, Take, packed_digest
from spiketrain.data.files import Stored, Tree, digest_of_lines, remembered_digests
from spiketrain.data.frame_cache import FrameCache
from spiketrain.manifest import EventInput

DvsSplit = Literal["numeric", "lexicographic"]

GESTURES = (
    "hand clapping",
    "right hand wave",
    "left hand wave",
    "right arm clockwise",
    "right arm counter-clockwise",
    "left arm clockwise",
    "left arm counter-clockwise",
    "arm roll",
    "air drums",
    "air guitar",
    "other gestures",
)

_TRAIN_SHARE = 0.9
_HELD_OUT = 0.1


def load_nmnist(
    folder: Path,
    spec: EventInput,
    timesteps: int,
    cache: FrameCache,
    validation_per_class: int | None = None,
    seed: int = 0,
) -> DataSet:
    """The 60,000 + 10,000 digits; a tenth of the training digits is held out unless `validation_per_class` says more."""
    takes: dict[str, list[Take]] = {}
    digests: dict[str, str] = {}
    for split in ("Train", "Test"):
        tree = _tree(folder, split, "n-mnist", "https://www.garrickorchard.com/datasets/n-mnist")
        labelled = [
            (file, int(parts[-2]))
            for file in tree.files("", (".bin",))
            if len(parts := tree.parts(file)) >= 2 and parts[-2] in set("0123456789")
        ]
        takes[split] = _takes(labelled, folder)
        digests[split] = _summary(takes[split])
    _require(takes["Train"], 10, "n-mnist", folder)
    frames = {
        split: EventFrames(takes[split], spec, timesteps, cache, "n-mnist") for split in takes
    }
    y = _labels(takes["Train"])
    train, validation = cut_validation(frames["Train"], y, validation_per_class or _tenth(y), seed)
    return DataSet(
        name="nmnist",
        input=spec,
        classes=tuple("0123456789"),
        train=train,
        validation=validation,
        test=Split(frames["Test"], _labels(takes["Test"])),
        digests=digests,
    )


def load_cifar10_dvs(
    folder: Path,
    spec: EventInput,
    timesteps: int,
    cache: FrameCache,
    split: DvsSplit = "numeric",
    validation_per_class: int | None = None,
    seed: int = 0,
) -> DataSet:
    """1,000 recordings of each class, the first 900 of which are for training, and a tenth of those for validation.

    The data set itself knows no split. "numeric": by the number in a file's name, as the CLIF repository has it;
    "lexicographic": by the name (0, 1, 10, 100, ...), as SpikingJelly's folders and the GLIF repository have it.
    """
    train: list[Take] = []
    test: list[Take] = []
    for label, name in enumerate(CIFAR10_CLASSES):
        tree = _tree(folder, name, "cifar10-dvs", "https://doi.org/10.6084/m9.figshare.4724671")
        files = _ordered(tree.files("", (".aedat",)), split)
        takes = _takes([(file, label) for file in files], folder)
        cut = round(_TRAIN_SHARE * len(takes))
        train += takes[:cut]
        test += takes[cut:]
    _require(train, 10, "cifar10-dvs", folder)
    y = _labels(train)
    kept, validation = cut_validation(
        EventFrames(train, spec, timesteps, cache, "aedat2-dvs128"),
        y,
        validation_per_class or _tenth(y),
        seed,
    )
    return DataSet(
        name="cifar10-dvs",
        input=spec,
        classes=CIFAR10_CLASSES,
        train=kept,
        validation=validation,
        test=Split(EventFrames(test, spec, timesteps, cache, "aedat2-dvs128"), _labels(test)),
        digests={"train": _summary(train), "test": _summary(test)},
    )


def load_dvs_gesture(
    folder: Path,
    spec: EventInput,
    timesteps: int,
    cache: FrameCache,
    validation_recordings: int | None = None,
    seed: int = 0,
) -> DataSet:
    """The labelled stretches of each recording, by the data set's own lists of training and test recordings.

    Whole recordings are held out for validation, a tenth of those for training unless said otherwise: each shows one
    person under one light doing everything, and stretches of it resemble each other.
    """
    place = _gesture_folder(folder)
    takes = {split: _gestures(place, f"trials_to_{split}.txt") for split in ("train", "test")}
    recordings = list(dict.fromkeys(take.file for take in takes["train"]))
    count = validation_recordings or max(1, round(_HELD_OUT * len(recordings)))
    if count >= len(recordings):
        raise ValueError(
            f"dvs-gesture: {count} of {len(recordings)} training recordings cannot be held out for validation"
        )
    order = torch.randperm(len(recordings), generator=torch.Generator().manual_seed(seed))
    held = {recordings[i] for i in order[:count].tolist()}
    every = Split(
        EventFrames(takes["train"], spec, timesteps, cache, "aedat3"), _labels(takes["train"])
    )
    out = torch.tensor([take.file in held for take in takes["train"]])
    return DataSet(
        name="dvs-gesture",
        input=spec,
        classes=GESTURES,
        train=every.at(~out),
        validation=every.at(out),
        test=Split(
            EventFrames(takes["test"], spec, timesteps, cache, "aedat3"), _labels(takes["test"])
        ),
        digests={split: _summary(takes[split]) for split in takes},
    )


def _tree(folder: Path, name: str, data_set: str, source: str) -> Tree:
    if (folder / name).is_dir():
        return Tree(folder / name)
    archive = folder / f"{name}.zip"
    if archive.is_file():
        return Tree(archive)
    raise DataMissingError(
        f"{data_set}: neither {name} nor {archive.name} in {folder}. Run `spiketrain data prepare {data_set}`, or get "
        f"it from {source}."
    )


def _takes(labelled: Sequence[tuple[Stored, int]], folder: Path) -> list[Take]:
    digests = _digests([file for file, _ in labelled], folder)
    return [Take(file, digests[file], label) for file, label in labelled]


def _digests(files: Sequence[Stored], folder: Path) -> dict[Stored, str]:
    paths = {file: file.place if file.packed else file.place / file.name for file in files}
    known = remembered_digests(folder, dict.fromkeys(paths.values()))
    return {
        file: packed_digest(file, known[path]) if file.packed else known[path]
        for file, path in paths.items()
    }


def _ordered(files: Sequence[Stored], split: DvsSplit) -> list[Stored]:
    if split == "lexicographic":
        return sorted(files, key=lambda file: file.name)
    return sorted(files, key=lambda file: (_number(file), file.name))


def _number(file: Stored) -> int:
    found = re.search(r"(\d+)\.aedat$", file.name, re.IGNORECASE)
    if found is None:
        raise ValueError(f"{file}: no number before .aedat, as cifar10_airplane_0.aedat has it")
    return int(found[1])


def _gesture_folder(folder: Path) -> Path:
    for place in (folder / "DvsGesture", folder):
        if (place / "trials_to_train.txt").is_file():
            return place
    archive = folder / "DvsGesture.tar.gz"
    if archive.is_file():
        raise DataMissingError(
            f"dvs-gesture: {archive} is still packed: run `spiketrain data prepare dvs-gesture`"
        )
    raise DataMissingError(
        f"dvs-gesture: no DvsGesture in {folder}. IBM gives it to everyone who takes its licence (CC BY 4.0): get "
        "DvsGesture.tar.gz from https://research.ibm.com/interactive/dvsgesture/, put it there, and run "
        "`spiketrain data prepare dvs-gesture`."
    )


def _gestures(place: Path, listing: str) -> list[Take]:
    path = place / listing
    if not path.is_file():
        raise DataMissingError(f"dvs-gesture: no {path}")
    names = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    files = []
    for name in names:
        recording = place / name
        if "/" in name or not recording.is_file():
            raise DataMissingError(f"dvs-gesture: {listing} names {name}, which is not in {place}")
        files.append(Stored(place, name, recording.stat().st_size))
    digests = _digests(files, place)
    return [
        Take(file, digests[file], label, start, end)
        for file in files
        for label, start, end in read_gesture_labels(
            place / f"{file.name.removesuffix('.aedat')}_labels.csv"
        )
    ]


def read_gesture_labels(path: Path) -> list[tuple[int, int, int]]:
    """Class from 0, start and end in microseconds of each row of a file with class (from 1), startTime_usec, endTime_usec.

    Raises ValueError, naming the line, for a row that says something else.
    """
    if not path.is_file():
        raise DataMissingError(f"dvs-gesture: no labels {path}")
    found = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file, skipinitialspace=True)
        for row in rows:
            if not row or (rows.line_num == 1 and row[0].strip().lower() == "class"):
                continue
            try:
                label, start, end = (int(field) for field in row)
            except ValueError:
                label = start = end = 0
            if not 1 <= label <= len(GESTURES) or start >= end:
                raise ValueError(
                    f"{path}, line {rows.line_num}: {','.join(row)!r} is no class from 1 to {len(GESTURES)}, start and end"
                )
            found.append((label - 1, start, end))
    return found


def _labels(takes: Sequence[Take]) -> torch.Tensor:
    return torch.tensor([take.label for take in takes])


def _tenth(y: torch.Tensor) -> int:
    return max(1, int(torch.bincount(y).min().item() * _HELD_OUT))


def _summary(takes: Sequence[Take]) -> str:
    """One sha256 for all: of the lines of names, digests, labels and stretches, in order."""
    return digest_of_lines(
        f"{take.file.name} {take.digest} {take.label} {take.start_us} {take.end_us}"
        for take in takes
    )


def _require(takes: Sequence[Take], classes: int, data_set: str, folder: Path) -> None:
    if missing := set(range(classes)) - {take.label for take in takes}:
        raise DataMissingError(
            f"{data_set}: no recordings of class {min(missing)} in {folder}: unpack it wholly"
        )
