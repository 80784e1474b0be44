"""One's own recordings of an event camera, labelled as spiketrain.data.stretches says, as a data set.

Splits are made of whole recordings: two windows of one recording never are in two splits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from spiketrain.data.base import DataMissingError, DataSet, Split, SplitName, sha256
from spiketrain.data.stretches import (
    SPLITS,
    LabelError,
    Stretch,
    draw_splits,
    from_folders,
    read_labels,
)
from spiketrain.events.formats import EventFormatError, open_recording
from spiketrain.events.types import Events, Float32s
from spiketrain.events.windows import recording_frames
from spiketrain.manifest import CountWindow, DurationWindow, EventInput

MAX_BYTES = 16 << 30
"""Of all frames in memory."""

_EMPTY_AFTER_EVENT = 100
"""Empty windows that recording_frames gives out in one silence."""


class RecordingFolder(NamedTuple):
    """`folder` is under the root of the data sets, `labels` a CSV file in it (both may be absolute paths); the shares
    are those of the recordings that are held out where folder or labels do not say which."""

    folder: str
    labels: str | None = None
    validation_share: float = 0.15
    test_share: float = 0.15


def load_recordings(
    folder: Path,
    spec: EventInput,
    timesteps: int,
    labels: Path | None = None,
    validation_share: float = 0.15,
    test_share: float = 0.15,
    validation_per_class: int | None = None,
    seed: int = 0,
) -> DataSet:
    """Each stretch as samples of `timesteps` consecutive windows; the last one ends in empty windows, and is left out
    if it has fewer than half of them and is not the only one.

    Validation and test recordings are drawn with `seed` where folder or labels name none: of each class that share,
    or so many recordings for validation. Raises DataMissingError where nothing is there, LabelError for labels that
    cannot be used, EventFormatError for a file that cannot be read, ValueError for recordings that do not fit `spec`.
    """
    if not folder.is_dir():
        raise DataMissingError(
            f"recordings: no folder {folder}. Set data.folder to the folder of your recordings."
        )
    stretches = read_labels(labels, folder) if labels is not None else from_folders(folder)
    classes = _in_order({each.label for each in stretches})
    if len(classes) < 2:
        raise LabelError(f"{folder}: all recordings show {classes[0]!r}; two classes are needed")
    stretches = draw_splits(stretches, validation_share, test_share, validation_per_class, seed)
    splits = _frames(stretches, classes, spec, timesteps)
    digests = _digest(folder, {each.path for each in stretches})
    if labels is not None:
        digests[labels.name] = sha256(labels)
    return DataSet(
        name=folder.resolve().name,
        input=spec,
        classes=classes,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        digests=digests,
    )


def _frames(
    stretches: Sequence[Stretch], classes: Sequence[str], spec: EventInput, timesteps: int
) -> dict[SplitName, Split]:
    x: dict[SplitName, list[Float32s]] = {name: [] for name in SPLITS}
    y: dict[SplitName, list[int]] = {name: [] for name in SPLITS}
    left = MAX_BYTES
    of_path: dict[Path, list[Stretch]] = {}
    for each in stretches:
        of_path.setdefault(each.path, []).append(each)
    for path, parts in of_path.items():
        events = _read(path, spec.sensor)
        for each in parts:
            samples = samples_of(each, events, spec, timesteps, left)
            left -= samples.nbytes
            x[each.split].append(samples)
            y[each.split] += [classes.index(each.label)] * len(samples)
    return {
        name: Split(torch.from_numpy(np.concatenate(x[name])), torch.tensor(y[name]))
        for name in SPLITS
    }


def samples_of(
    stretch: Stretch, events: Events, spec: EventInput, timesteps: int, max_bytes: int = MAX_BYTES
) -> Float32s:
    """A stretch of a recording as samples [N, T, 2, H, W] of `timesteps` consecutive windows, N at least 1."""
    if stretch.start_us is not None:
        events = events[events.t >= stretch.start_us]
    if stretch.end_us is not None:
        events = events[events.t < stretch.end_us]
    width, height = spec.sensor
    if not ((events.x < width) & (events.y < height)).any():
        raise ValueError(
            f"{stretch}: none of its {len(events)} events is on a sensor of {width}x{height} pixels; set "
            "events.sensor to the camera's size, and look at the labels' times"
        )
    if 4 * int(np.prod(spec.shape)) * _most_windows(events, spec) > max_bytes:
        raise ValueError(
            f"{stretch}: the frames of all recordings take more than {MAX_BYTES >> 30} GiB; use longer windows "
            "(events.window), smaller frames (events.shape) or fewer recordings"
        )
    return _cut(recording_frames(events, spec, stretch.start_us), timesteps)


def _most_windows(events: Events, spec: EventInput) -> int:
    window = spec.window
    span = int(events.t.max()) - int(events.t.min())
    silent = _EMPTY_AFTER_EVENT * len(events)
    if isinstance(window, DurationWindow):
        return min(span // window.microseconds, silent + len(events)) + 1
    if isinstance(window, CountWindow):
        return len(events) // window.events + min(span // window.max_microseconds, silent) + 1
    return window.windows


def _cut(frames: Float32s, timesteps: int) -> Float32s:
    whole, rest = divmod(len(frames), timesteps)
    count = max(1, whole + (2 * rest >= timesteps))
    samples = np.zeros((count * timesteps, *frames.shape[1:]), np.float32)
    used = frames[: len(samples)]
    samples[: len(used)] = used
    return samples.reshape(count, timesteps, *frames.shape[1:])


def _read(path: Path, sensor: tuple[int, int]) -> Events:
    try:
        with open_recording(path) as recording:
            if recording.sensor not in (None, sensor):
                raise ValueError(
                    "{}: was recorded on a sensor of {}x{} pixels, but events.sensor is {}x{}".format(
                        path, *recording.sensor, *sensor
                    )
                )
            return recording.read()
    except EventFormatError as error:
        # Half a recording would be trained on as if it were whole.
        raise EventFormatError(f"{error}: mend the file, or take it out") from error


def _in_order(labels: Iterable[str]) -> tuple[str, ...]:
    """By number if all are numbers, else by name."""
    names = sorted(labels)
    if all(name.isascii() and name.isdecimal() for name in names):
        names.sort(key=int)
    return tuple(names)


def _digest(folder: Path, paths: set[Path]) -> dict[str, str]:
    """One sha256 of all recordings: of the lines of their names and own sha256s, in order."""
    total = hashlib.sha256()
    files = {each for path in paths for each in ([path] if path.is_file() else path.rglob("*"))}
    for path in sorted(each for each in files if each.is_file()):
        name = path.relative_to(folder) if path.is_relative_to(folder) else path
        total.update(f"{name.as_posix()} {sha256(path)}\n".encode())
    return {f"{folder.resolve().name}/": total.hexdigest()}
