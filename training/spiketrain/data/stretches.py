"""What recordings show, as a folder and its sub-folders or a CSV file say it, and which split they are in.

The labels are the names of sub-folders,

    folder/left/1.raw  folder/left/2.raw  folder/right/1.raw ...

which may lie in folders train, validation and test; or a CSV file with a header and a row for each stretch of a
recording that shows one class (start_us <= t < end_us in the recording's own time, an empty field is its beginning
or end; split is train, validation or test, train if empty):

    file,label[,start_us,end_us][,split]
"""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from spiketrain.data.base import DataMissingError, SplitName

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")

_COLUMNS = ("file", "label", "start_us", "end_us", "split")
# A bag of ROS 2 is a folder with this file; it is one recording.
_BAG = "metadata.yaml"


class LabelError(ValueError):
    """Folder and labels do not say what is needed. The message names the file, the line and what to change."""


@dataclass(frozen=True)
class Stretch:
    """Part of a recording that shows one class: from start_us to before end_us, None for its beginning and end."""

    path: Path
    label: str
    start_us: int | None = None
    end_us: int | None = None
    split: SplitName = "train"

    def __str__(self) -> str:
        if self.start_us is None and self.end_us is None:
            return str(self.path)
        return f"{self.path} from {self.start_us} to {self.end_us} us"


def from_folders(folder: Path) -> list[Stretch]:
    """Sub-folders as classes, in folders named train, validation and test or not."""
    inside = _folders(folder)
    named = [(each, each.name.lower()) for each in inside if each.name.lower() in SPLITS]
    found = []
    if any(name == "train" for _, name in named):
        if others := [each.name for each in inside if each.name.lower() not in SPLITS]:
            raise LabelError(f"{folder}: has train, and {others[0]!r} beside it: which is it?")
        for place, name in named:
            found += _of_classes(place, cast(SplitName, name))
    else:
        found = _of_classes(folder, "train")
    if not found:
        raise DataMissingError(
            f"recordings: none in {folder}: they belong into a sub-folder for each class, or set data.labels "
            f"to a CSV file with the columns {','.join(_COLUMNS[:2])}"
        )
    return found


def read_labels(path: Path, folder: Path) -> list[Stretch]:
    """The rows of a CSV file; recordings lie in `folder`, unless their path is absolute."""
    if not path.is_file():
        raise DataMissingError(f"recordings: no labels {path}; set data.labels to the CSV file")
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, skipinitialspace=True)
        names = rows.fieldnames or ()
        if not {"file", "label"} <= set(names) <= set(_COLUMNS):
            raise LabelError(
                f"{path}: the first line is {','.join(names)!r}; it must be file,label and may have "
                f"{','.join(_COLUMNS[2:])} too"
            )
        try:
            found = [_stretch(row, folder, f"{path}, line {rows.line_num}") for row in rows]
        except csv.Error as error:
            raise LabelError(f"{path}, line {rows.line_num}: {error}") from error
    if not found:
        raise LabelError(f"{path}: has no rows")
    split_of: dict[Path, str] = {}
    for each in found:
        if split_of.setdefault(each.path, each.split) != each.split:
            raise LabelError(
                f"{path}: {each.path} is in {split_of[each.path]} and in {each.split}; a recording is in one split"
            )
    return found


def _stretch(row: dict[str, str | None], folder: Path, where: str) -> Stretch:
    # A row with more fields than the header has them under the key None.
    if None in row or any(value is None for value in row.values()):
        raise LabelError(f"{where}: has another number of fields than the first line")
    value = {name: (row.get(name) or "").strip() for name in _COLUMNS}
    path = folder / value["file"]
    if not value["file"] or not value["label"]:
        raise LabelError(f"{where}: file and label must not be empty")
    if not path.exists():
        raise DataMissingError(f"{where}: no recording {path}")
    try:
        start, end = (int(value[name]) if value[name] else None for name in ("start_us", "end_us"))
    except ValueError:
        raise LabelError(
            f"{where}: start_us {value['start_us']!r} and end_us {value['end_us']!r} are whole microseconds"
        ) from None
    if start is not None and end is not None and start >= end:
        raise LabelError(f"{where}: start_us {start} is not before end_us {end}")
    split = value["split"] or "train"
    if split not in SPLITS:
        raise LabelError(f"{where}: split {split!r} is none of {', '.join(SPLITS)}")
    return Stretch(path, value["label"], start, end, split)


def draw_splits(
    stretches: Sequence[Stretch],
    validation_share: float,
    test_share: float,
    validation_per_class: int | None,
    seed: int,
) -> list[Stretch]:
    """Recordings for test and validation drawn from those for training, where there are none yet; of each class as
    many as its share where every recording shows one class, of all recordings otherwise."""
    named = {each.split for each in stretches}
    draws = random.Random(seed)
    result = list(stretches)
    if "test" not in named:
        result = _draw(result, "test", test_share, None, draws)
    if "validation" not in named:
        result = _draw(result, "validation", validation_share, validation_per_class, draws)
    shown = {each.label for each in result if each.split == "train"}
    if missing := {each.label for each in result} - shown:
        raise LabelError(f"no recording of class {min(missing)!r} is left for training: add some")
    return result


def _draw(
    stretches: list[Stretch],
    split: SplitName,
    share: float,
    count: int | None,
    draws: random.Random,
) -> list[Stretch]:
    labels: dict[Path, set[str]] = {}
    for each in stretches:
        if each.split == "train":
            labels.setdefault(each.path, set()).add(each.label)
    mixed = any(len(each) > 1 for each in labels.values())
    groups: dict[str, list[Path]] = {}
    for path, shown in sorted(labels.items()):
        groups.setdefault("" if mixed else min(shown), []).append(path)
    drawn: set[Path] = set()
    for label, paths in sorted(groups.items()):
        number = max(1, round(share * len(paths))) if count is None else count
        if number >= len(paths):
            what = f"class {label!r} has" if label else "there are"
            raise LabelError(
                f"{what} only {len(paths)} recordings left when {number} are drawn for {split}: record more, or "
                f"name those for {split} in the labels' column split"
            )
        drawn.update(draws.sample(paths, number))
    return [replace(each, split=split) if each.path in drawn else each for each in stretches]


def _of_classes(place: Path, split: SplitName) -> list[Stretch]:
    found = []
    for each in _folders(place):
        for path in sorted(each.iterdir()):
            if path.name.startswith("."):
                continue
            if path.is_dir() and not (path / _BAG).is_file():
                raise LabelError(f"{path}: a folder in that of a class; recordings are expected")
            found.append(Stretch(path, each.name, split=split))
    return found


def _folders(place: Path) -> list[Path]:
    return sorted(each for each in place.iterdir() if each.is_dir() and each.name[0] != ".")
