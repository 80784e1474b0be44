"""How exactly and how fast event files are read: python benchmarks/formats.py [--data FOLDER] [--events N]

For each format a genuine recording where one is there, and a self-written one of N events. Speeds are CPU time of one
process with one thread (time.process_time), the best of several runs, whole file to columns in memory; our reader and
the second one take turns in the same process. `exact` means that every column of every event is equal. A second reader
called loop is one of benchmarks/plain_readers.py, written from the format's specification; its speed is not compared.

Writes benchmarks/results/formats.json, of which benchmarks/report.py makes the table in docs/event-formats.md.
"""

from __future__ import annotations

import argparse
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import plain_readers
from results import save
from rich.console import Console
from rich.table import Table

from spiketrain.events import Events, open_recording, read_recording, write_recording
from spiketrain.events.formats import nmnist

Reader = Callable[[Path], Any]
DATA = Path(os.environ.get("SPIKETRAIN_DATA", "data"))


class Case(NamedTuple):
    """`written` has the events that a self-written file must give back."""

    path: Path
    label: str
    second: str | None = None
    written: Events | None = None


def _columns(t: Any, x: Any, y: Any, p: Any) -> Events:
    return Events(
        np.asarray(t).astype(np.int64),
        np.asarray(x).astype(np.uint16),
        np.asarray(y).astype(np.uint16),
        np.asarray(p).astype(np.uint8),
    )


def _aedat(path: Path) -> Events:
    packets = import_module("aedat").Decoder(path)
    events = np.concatenate([packet["events"] for packet in packets if "events" in packet])
    return _columns(events["t"], events["x"], events["y"], events["on"])


def _event_stream(path: Path) -> Events:
    events = np.concatenate(list(import_module("event_stream").Decoder(str(path))))
    return _columns(events["t"], events["x"], events["y"], events["on"])


def _evt3(path: Path) -> Events:
    events = import_module("evt3").decode_file(str(path))
    return _columns(events.t, events.x, events.y, events.p)


def _evio_dat(path: Path) -> Events:
    events = import_module("evio.formats.prophesee").read(path)
    return _columns(events["t"], events["x"], events["y"], events["p"])


def _evio_nmnist(path: Path) -> Events:
    events = import_module("evio.formats.nmnist").read(path)
    return _columns(events["t"], events["x"], events["y"], events["p"])


def _numpy(path: Path) -> Events:
    with np.load(path) as arrays:
        return _columns(*(arrays[name] for name in "txyp"))


def _loop(rows: Callable[[Path], Iterator[plain_readers.Row]]) -> Reader:
    def read(path: Path) -> Events:
        columns = np.array(list(rows(path)), np.int64).reshape(-1, 4)
        return _columns(*columns.T)

    return read


SECOND: dict[str, Reader] = {
    "loop.evt2": _loop(plain_readers.evt2),
    "loop.evt21": _loop(plain_readers.evt21),
    "loop.aedat2": _loop(plain_readers.aedat2),
    "loop.aedat3": _loop(plain_readers.aedat3),
    "loop.csv": _loop(plain_readers.text),
    "loop.ros2": _loop(plain_readers.ros2),
    "aedat": _aedat,
    "event_stream": _event_stream,
    "evt3": _evt3,
    "evio.dat": _evio_dat,
    "evio.nmnist": _evio_nmnist,
    "numpy": _numpy,
}


def cases(data: Path, folder: Path, count: int) -> Iterator[Case]:
    yield Case(data / "events/aestream/davis.aedat4", "genuine", "aedat")
    yield Case(data / "events/faery/evt2.raw", "genuine", "loop.evt2")
    yield Case(data / "events/faery/dvs.es", "genuine", "event_stream")
    yield Case(data / "events/ros2/test_data_evt3_trigger", "genuine, EVT3", "loop.ros2")
    yield Case(
        data / "events/ros2/test_data_libcaer_rollover", "genuine, libcaer, wraps", "loop.ros2"
    )
    yield Case(data / "events/ros2/test_data_mono_cd", "genuine, mono", "loop.ros2")
    if (archive := data / "n-mnist-small/NMNISTsmall.tar.xz").exists():
        with tarfile.open(archive) as files:
            for member in files:
                if member.name.endswith("/1.bs2"):
                    digit = folder / "1.bs2"
                    digit.write_bytes(files.extractfile(member).read())  # type: ignore[union-attr]
                    yield Case(digit, "genuine", "evio.nmnist")
                    break
    events = synthetic(count)
    for suffix, second in (
        (".npz", "numpy"),
        (".aedat", "loop.aedat2"),
        (".raw", "loop.evt2"),
        (".dat", "evio.dat"),
        (".es", "event_stream"),
    ):
        path = folder / f"written{suffix}"
        write_recording(path, events, sensor=(128, 128))
        yield Case(path, "self-written", second, events)
    short = events[events.t <= nmnist.MAX_US]
    write_recording(folder / "written.bin", short)
    yield Case(folder / "written.bin", "self-written", "evio.nmnist", short)
    for name, content, second in (
        ("written-evt3.raw", evt3(events), "evt3"),
        ("written-evt21.raw", evt21(events), "loop.evt21"),
        ("written-3.aedat", aedat3(events), "loop.aedat3"),
    ):
        (folder / name).write_bytes(content)
        yield Case(folder / name, "self-written", second, events)
    few = events[: count // 10]
    rows = zip(few.t.tolist(), few.x.tolist(), few.y.tolist(), few.p.tolist(), strict=True)
    (folder / "written.csv").write_text(
        "t,x,y,p\n" + "".join(f"{t},{x},{y},{p}\n" for t, x, y, p in rows)
    )
    yield Case(folder / "written.csv", "self-written", "loop.csv", few)


def synthetic(count: int) -> Events:
    """100,000 events a second on 128x128 pixels."""
    random = np.random.default_rng(0)
    return Events(
        np.sort(random.integers(0, 10 * count, count)),
        random.integers(0, 128, count).astype(np.uint16),
        random.integers(0, 128, count).astype(np.uint16),
        random.integers(0, 2, count).astype(np.uint8),
    )


def evt3(events: Events) -> bytes:
    """TIME_HIGH where it changes, and TIME_LOW, ADDR_Y and ADDR_X for every event."""
    high = (events.t >> 12) & 0xFFF
    new = np.ones(len(events), np.bool_)
    new[1:] = high[1:] != high[:-1]
    at = 3 * np.arange(len(events)) + np.cumsum(new)
    words = np.empty(3 * len(events) + int(new.sum()), "<u2")
    words[at[new] - 1] = 0x8000 | high[new]
    words[at] = 0x6000 | (events.t & 0xFFF)
    words[at + 1] = events.y
    words[at + 2] = 0x2000 | (events.p.astype(np.uint16) << 11) | events.x
    return (
        b"% evt 3.0\n% format EVT3;height=128;width=128\n% geometry 128x128\n% end\n"
        + words.tobytes()
    )


def evt21(events: Events) -> bytes:
    """TIME_HIGH and one vector of one event, for every event."""
    pairs = np.zeros((len(events), 2, 2), "<u4")
    pairs[:, 0, 1] = (8 << 28) | (events.t >> 6)
    pairs[:, 1, 0] = 1
    pairs[:, 1, 1] = (
        (events.p.astype(np.int64) << 28)
        | ((events.t & 63) << 22)
        | (events.x.astype(np.int64) << 11)
        | events.y
    )
    return b"% format EVT21;endianness=little;height=128;width=128\n% end\n" + pairs.tobytes()


def aedat3(events: Events) -> bytes:
    """Packets of 10,000 events."""
    parts = [b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"]
    for begin in range(0, len(events), 10_000):
        part = events[begin : begin + 10_000]
        n = len(part)
        parts.append(np.array([1 | 1 << 16, 8, 4, 0, n, n, n], "<u4").tobytes())
        data = (part.x.astype(np.uint32) << 17) | (part.y.astype(np.uint32) << 2)
        data |= (part.p.astype(np.uint32) << 1) | 1
        parts.append(np.stack([data, part.t.astype(np.uint32)], axis=1).astype("<u4").tobytes())
    return b"".join(parts)


def seconds(readers: list[Callable[[], Any]], runs: int) -> list[float]:
    """The best CPU time of each, taking turns, so that what else the machine does meets all alike."""
    best = [float("inf")] * len(readers)
    for _ in range(runs):
        for i, read in enumerate(readers):
            begin = time.process_time()
            read()
            best[i] = min(best[i], time.process_time() - begin)
    return best


def measured(case: Case, runs: int) -> dict[str, Any]:
    """What the table says of one file. Speeds are in million events per second."""
    with open_recording(case.path) as recording:
        name = recording.format
    ours = read_recording(case.path)
    readers: list[Callable[[], Any]] = [lambda: read_recording(case.path)]
    exactness = []
    if case.written is not None:
        same = ours.equals(case.written)
        exactness.append("as written" if same else "DIFFERS from what was written")
    package = (case.second or "").partition(".")[0]
    if case.second is not None:
        second = SECOND[case.second]
        try:
            same = ours.equals(second(case.path))
            named = package if package == "loop" else f"{package} {version(package)}"
            exactness.append(f"{'exact' if same else 'DIFFERS'} against {named}")
            if package != "loop":
                readers.append(lambda: second(case.path))
        except ImportError:
            exactness.append(f"{package} is not installed")
    best = seconds(readers, runs)
    speeds = [len(ours) / each / 1e6 for each in best]
    return {
        "format": name,
        "file": case.path.name,
        "origin": case.label,
        "events": len(ours),
        "seconds": (int(ours.t[-1]) - int(ours.t[0])) / 1e6,
        "exactness": "; ".join(exactness),
        "mev_per_s": speeds[0],
        "second": package if len(speeds) > 1 else None,
        "second_mev_per_s": speeds[1] if len(speeds) > 1 else None,
    }


TITLES = ("format", "file", "origin", "events", "seconds", "exactness", "Mev/s", "second", "ratio")


def cells(row: dict[str, Any]) -> list[str]:
    second = row["second_mev_per_s"]
    return [
        row["format"],
        row["file"],
        row["origin"],
        f"{row['events']:,}",
        f"{row['seconds']:.4g}",
        row["exactness"],
        f"{row['mev_per_s']:.1f}",
        "" if second is None else f"{second:.1f}",
        "" if second is None else f"{row['mev_per_s'] / second:.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the genuine recordings")
    parser.add_argument(
        "--events", type=int, default=1_000_000, help="events in self-written files"
    )
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    method = (__doc__ or "").split("\n\n")[1]
    console = Console(width=220)
    console.print(f"Method: {method}")
    rows = []
    table = Table(*TITLES)
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(options.data, Path(folder), options.events):
            if not case.path.exists():
                console.print(f"{case.path.name} is not there")
                continue
            rows.append(measured(case, options.runs))
            table.add_row(*cells(rows[-1]))
    console.print(table)
    ratios = {
        f"{row['format']}_{row['file']}_vs_second": row["mev_per_s"] / row["second_mev_per_s"]
        for row in rows
        if row["second_mev_per_s"] is not None
    }
    save("formats", method, {"runs": options.runs}, rows, ratios)


if __name__ == "__main__":
    main()
