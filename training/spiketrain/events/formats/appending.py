"""Recordings that are written while they happen, in bounded memory: .npz, .aedat, .raw (EVT2), .dat and .csv."""

from __future__ import annotations

import io
import shutil
import tempfile
import zipfile
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self

import numpy as np
from numpy.lib import format as npy

from spiketrain.events.formats import aedat2, dat, evt2
from spiketrain.events.formats.base import Sensor
from spiketrain.events.formats.npz import COLUMNS
from spiketrain.events.types import Events

_PIECE = 1 << 20
_EPOCH = (1980, 1, 1, 0, 0, 0)
_TYPES = {"t": "<i8", "x": "<u2", "y": "<u2", "p": "u1"}
_ENCODERS = {".aedat": aedat2.encode, ".raw": evt2.encode, ".dat": dat.encode}
SUFFIXES = (".npz", ".csv", *_ENCODERS)


class _Appender(Protocol):
    def append(self, events: Events) -> None: ...
    def close(self) -> None: ...


class RecordingWriter:
    """Appends events to a new file, whose suffix says the format. `sensor` is width and height, where they are known.

    Raises OSError, and ValueError for a suffix that cannot be appended to or events that the format cannot hold. An
    .npz is complete only when it is closed.
    """

    def __init__(self, path: Path | str, sensor: Sensor | None = None) -> None:
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES:
            raise ValueError(f"{path}: recordings are written as {', '.join(SUFFIXES)}")
        self.events = 0
        self._file: _Appender
        if suffix == ".npz":
            self._file = _Npz(path, sensor)
        elif suffix == ".csv":
            self._file = _Csv(path)
        else:
            self._file = _Encoded(path, suffix, sensor)

    def append(self, events: Events) -> None:
        if len(events):
            self._file.append(events)
            self.events += len(events)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Encoded:
    """A header, then words that stand for themselves in pieces too."""

    def __init__(self, path: Path, suffix: str, sensor: Sensor | None) -> None:
        self._encode = _ENCODERS[suffix]
        # AEDAT 2.0 has two layouts, and the first events do not tell which one all will fit.
        self._sensor = sensor or ((346, 260) if suffix == ".aedat" else None)
        header = self._encode(Events.empty(), self._sensor)
        self._skip = len(header)
        self._file = path.open("wb")
        self._file.write(header)

    def append(self, events: Events) -> None:
        self._file.write(memoryview(self._encode(events, self._sensor))[self._skip :])

    def close(self) -> None:
        self._file.close()


class _Csv:
    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="ascii")
        self._file.write("t,x,y,p\n")

    def append(self, events: Events) -> None:
        np.savetxt(self._file, np.column_stack([events.t, events.x, events.y, events.p]), "%d", ",")

    def close(self) -> None:
        self._file.close()


class _Npz:
    """The columns grow in files of their own, and are packed at the end."""

    def __init__(self, path: Path, sensor: Sensor | None) -> None:
        self._archive = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)
        self._sensor = sensor
        self._columns: dict[str, IO[bytes]] = {
            name: tempfile.TemporaryFile()  # noqa: SIM115 - open until `close`
            for name in COLUMNS
        }
        self._length = 0

    def append(self, events: Events) -> None:
        for name, file in self._columns.items():
            file.write(getattr(events, name).astype(_TYPES[name], copy=False).tobytes())
        self._length += len(events)

    def close(self) -> None:
        if self._archive.fp is None:
            return
        with self._archive as archive:
            for name, file in self._columns.items():
                with archive.open(
                    zipfile.ZipInfo(f"{name}.npy", _EPOCH), "w", force_zip64=True
                ) as column:
                    column.write(_header(_TYPES[name], self._length))
                    file.seek(0)
                    shutil.copyfileobj(file, column, _PIECE)
                file.close()
            if self._sensor is not None:
                content = _header("<i8", 2) + np.array(self._sensor, "<i8").tobytes()
                archive.writestr(zipfile.ZipInfo("sensor.npy", _EPOCH), content)


def _header(dtype: str, length: int) -> bytes:
    buffer = io.BytesIO()
    fields: dict[str, Any] = {"descr": dtype, "fortran_order": False, "shape": (length,)}
    npy.write_array_header_1_0(buffer, fields)
    return buffer.getvalue()
