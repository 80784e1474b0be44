"""Recordings on disk. A new format is one file here and one line in FORMATS.

    with open_recording("digit.aedat4") as recording:
        for events in recording:
            ...

A format is told by its content; the suffix decides only where no format knows the content. All times are 64-bit
microseconds that do not wrap. Memory is bounded: the file may be larger than it.
"""

from __future__ import annotations

from pathlib import Path

from spiketrain.events.formats import aedat2, dat, es, evt2, nmnist
from spiketrain.events.formats.aedat2 import AEDAT2, AEDAT2_DAVIS, AEDAT2_DVS128
from spiketrain.events.formats.aedat3 import AEDAT3
from spiketrain.events.formats.aedat4 import AEDAT4
from spiketrain.events.formats.base import EventFormatError, Format, Sensor
from spiketrain.events.formats.csv import CSV
from spiketrain.events.formats.dat import DAT
from spiketrain.events.formats.es import ES
from spiketrain.events.formats.evt2 import EVT2
from spiketrain.events.formats.evt3 import EVT3
from spiketrain.events.formats.evt21 import EVT21
from spiketrain.events.formats.nmnist import NMNIST
from spiketrain.events.formats.npz import NPZ, write_npz
from spiketrain.events.formats.recording import CHUNK_EVENTS, MAX_EVENTS, Recording, located
from spiketrain.events.formats.ros2 import ROS2
from spiketrain.events.formats.source import AnySource, Source
from spiketrain.events.types import Events

__all__ = [
    "FORMATS",
    "WRITERS",
    "EventFormatError",
    "Format",
    "Recording",
    "open_recording",
    "read_recording",
    "write_npz",
    "write_recording",
]

# Those that are sure of themselves come first: N-MNIST has no magic number and is guessed.
FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        NPZ, AEDAT2, AEDAT2_DVS128, AEDAT2_DAVIS, AEDAT3, AEDAT4, EVT2, EVT21, EVT3, DAT, ES, ROS2, CSV, NMNIST,
    )
}  # fmt: skip

WRITERS = {
    ".npz": "npz",
    ".aedat": "aedat2",
    ".raw": "evt2",
    ".dat": "dat",
    ".es": "es",
    ".bin": "n-mnist",
}
"""The format that a suffix stands for in `write_recording`."""

_NOT_READ = {
    b"\x89HDF": "HDF5; convert it to .raw or .dat, or to an .npz with t, x, y and p",
    b"\x89MCAP": "MCAP; convert it to a bag in sqlite3 with `ros2 bag convert`",
    b"#ROSBAG": "a ROS 1 bag; convert it to ROS 2 (sqlite3) with `rosbags-convert`",
    b"#!AER-DAT1": "AEDAT 1.0; save it as AEDAT 2.0 with jAER",
    b"\x1f\x8b": "packed by gzip; unpack it first",
    b"\xfd7zXZ": "packed by xz; unpack it first",
    b"BZh": "packed by bzip2; unpack it first",
    b"\x28\xb5\x2f\xfd": "packed by Zstandard; unpack it first",
    b"version https://git-lfs": "only a Git LFS pointer; run `git lfs pull` to get the file itself",
}


def open_recording(
    source: AnySource,
    format: str | None = None,
    *,
    stream: str | None = None,
    chunk_events: int = CHUNK_EVENTS,
) -> Recording:
    """Opens a file, a ROS 2 bag's folder, the content of a file as bytes, or a binary file object.

    `format` names one of FORMATS; without it the content decides. `stream` chooses among several cameras: a topic
    of a ROS 2 bag, a stream number of AEDAT 4, a source number of AEDAT 3.1. Without it the first one is read.

    Raises OSError if it cannot be opened, EventFormatError if it is empty, of no known format, or has a header that
    cannot be read, and ValueError for chunk_events below 1. What is wrong behind the header is raised while reading.
    """
    if chunk_events < 1:
        raise ValueError(f"chunk_events {chunk_events} must be 1 or more")
    opened = Source(source, stream)
    try:
        chosen = _format(opened, format)
        return Recording(opened, chosen.name, chosen.open(opened), chunk_events)
    except EventFormatError as error:
        opened.close()
        raise EventFormatError(located(opened, str(error)), 0, Events.empty()) from None
    except BaseException:
        opened.close()
        raise


def read_recording(
    source: AnySource,
    format: str | None = None,
    max_events: int = MAX_EVENTS,
    *,
    stream: str | None = None,
) -> Events:
    """All events of a recording, in the order they are stored. Takes what `open_recording` takes.

    Raises EventFormatError for a recording that is empty, truncated, damaged, too large or of no known format; its
    `events` has those that could be read. Raises OSError if it cannot be opened.
    """
    with open_recording(source, format, stream=stream) as recording:
        return recording.read(max_events)


def write_recording(
    path: Path | str, events: Events, format: str | None = None, sensor: Sensor | None = None
) -> None:
    """Writes npz, aedat2, evt2, dat, es or n-mnist: `format`, or what the suffix stands for in WRITERS.

    Raises ValueError for another format, and for events that the format cannot hold.
    """
    path = Path(path)
    name = format or WRITERS.get(path.suffix.lower())
    match name:
        case "npz":
            write_npz(path, events, sensor)
            return
        case "aedat2":
            data = aedat2.encode(events, sensor)
        case "evt2":
            data = evt2.encode(events, sensor)
        case "dat":
            data = dat.encode(events, sensor)
        case "n-mnist":
            data = nmnist.write(events)
        case "es":
            if sensor is None:
                raise ValueError(f"{path}: an .es states the sensor's size; give it")
            data = es.encode(events, sensor)
        case _:
            raise ValueError(
                f"{path}: {format or path.suffix!r} is not written; written are "
                f"{', '.join(sorted(WRITERS.values()))} (suffixes {', '.join(WRITERS)})"
            )
    path.write_bytes(data)


def _format(source: Source, name: str | None) -> Format:
    if name is not None and name not in FORMATS:
        raise EventFormatError(f"unknown event format {name!r}; known are {', '.join(FORMATS)}")
    if not source.head and not source.folder:
        raise EventFormatError("the recording is empty: it has 0 bytes")
    if name is not None:
        return FORMATS[name]
    for each in FORMATS.values():
        if each.recognises(source):
            return each
    for magic, what in _NOT_READ.items():
        if source.head.startswith(magic):
            raise EventFormatError(f"this is {what}")
    for each in FORMATS.values():
        if source.suffix in each.suffixes:
            return each
    raise EventFormatError(
        f"this is no recording of a known format ({', '.join(FORMATS)}); it begins with {source.head[:16]!r}"
    )
