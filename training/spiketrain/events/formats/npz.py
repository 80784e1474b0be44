"""NumPy archives with one array for each of t, x, y, p: SpikingJelly's, and ours, which add `sensor` (width, height)."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from spiketrain.events.formats.base import (
    Contents,
    EventFormatError,
    Format,
    Sensor,
    events_from_columns,
)
from spiketrain.events.formats.source import Source
from spiketrain.events.types import Events

COLUMNS = ("t", "x", "y", "p")
MAGIC = b"PK\x03\x04"
ROWS = 1 << 16
"""Events read at once."""
_EPOCH = (1980, 1, 1, 0, 0, 0)
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    OSError,
    OverflowError,
    ValueError,
    struct.error,
)
"""What zipfile raises for an archive with a changed byte."""


def _open(source: Source) -> Contents:
    file = source.seekable()
    if file is None:
        raise EventFormatError("an .npz cannot be read from a pipe: its index is at its end")
    try:
        archive = source.resources.enter_context(zipfile.ZipFile(file))
        names = set(archive.namelist())
    except _DAMAGE as error:
        raise EventFormatError(f"the .npz is damaged or truncated: {error}") from None
    missing = [name for name in COLUMNS if f"{name}.npy" not in names]
    if missing:
        raise EventFormatError(
            f"the .npz has no array {', '.join(missing)}; a recording has t, x, y and p"
        )
    return Contents(_pieces(archive), _sensor(archive) if "sensor.npy" in names else None)


def _pieces(archive: zipfile.ZipFile) -> Iterator[Events]:
    try:
        with ExitStack() as stack:
            columns = {name: _Column(stack, archive, name) for name in COLUMNS}
            lengths = {name: column.left for name, column in columns.items()}
            for name, length in lengths.items():
                if length != lengths["t"]:
                    raise EventFormatError(f"{length} values in {name}, but {lengths['t']} in t")
            while columns["t"].left:
                yield events_from_columns({name: columns[name].read(ROWS) for name in COLUMNS})
    except EventFormatError:
        raise
    except _DAMAGE as error:
        raise EventFormatError(f"the .npz is damaged or truncated: {error}") from None


class _Column:
    """One array, unpacked piece by piece. What its own header says is checked against its size in the archive."""

    def __init__(self, stack: ExitStack, archive: zipfile.ZipFile, name: str) -> None:
        info = archive.getinfo(f"{name}.npy")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise EventFormatError(f"column {name} is packed by a method that NumPy does not write")
        self._name = name
        self._file: IO[bytes] = stack.enter_context(archive.open(info))
        shape, self._dtype, header = _npy_header(self._file, name)
        if self._dtype.hasobject:
            raise EventFormatError(
                f"column {name} holds pickled Python objects, which are never loaded"
            )
        if len(shape) != 1:
            raise EventFormatError(f"column {name} has shape {list(shape)}; [N] is read")
        self.left = shape[0]
        expected = header + self._dtype.itemsize * self.left
        if expected != info.file_size:
            raise EventFormatError(
                f"column {name} has {info.file_size} bytes, its header says {expected}"
            )

    def read(self, rows: int) -> NDArray[Any]:
        rows = min(rows, self.left)
        data = self._file.read(rows * self._dtype.itemsize)
        if len(data) < rows * self._dtype.itemsize:
            raise EOFError(
                f"column {self._name} lacks {self.left - len(data) // self._dtype.itemsize} values"
            )
        self.left -= rows
        return np.frombuffer(data, self._dtype)


def _npy_header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, type and length of an array's header."""
    begin = file.read(12)
    size = {b"\1\0": 2, b"\2\0": 4, b"\3\0": 4}.get(begin[6:8])
    if not begin.startswith(npy.MAGIC_PREFIX) or size is None:
        raise EventFormatError(f"column {name} is no NumPy array")
    length = int.from_bytes(begin[8 : 8 + size], "little") + 8 + size
    if length > 1 << 16:
        raise EventFormatError(f"column {name} is no NumPy array: a header of {length} bytes")
    header = io.BytesIO(begin + file.read(length - len(begin)))
    header.seek(8)
    try:
        read = npy.read_array_header_1_0 if begin[6] == 1 else npy.read_array_header_2_0
        shape, _, dtype = read(header)
    except (
        ValueError,
        TypeError,
        SyntaxError,
        OverflowError,
        RecursionError,
        MemoryError,
    ) as error:
        raise EventFormatError(f"column {name} is no NumPy array: {error}") from None
    if not dtype.itemsize or any(side < 0 for side in shape):
        raise EventFormatError(f"column {name} is no NumPy array of numbers")
    return shape, dtype, length


def _sensor(archive: zipfile.ZipFile) -> Sensor | None:
    """What the archive says of the sensor. It is only a hint, so that one that cannot be read is none."""
    try:
        with ExitStack() as stack:
            column = _Column(stack, archive, "sensor")
            if column.left != 2:
                return None
            width, height = (int(side) for side in column.read(2))
    except (*_DAMAGE, TypeError):
        return None
    return (width, height) if 0 < width <= 65536 and 0 < height <= 65536 else None


def write_npz(path: Path | str | BinaryIO, events: Events, sensor: Sensor | None = None) -> None:
    """Writes a compressed .npz that SpikingJelly reads too. The same events give the same bytes."""
    arrays: dict[str, NDArray[Any]] = {name: getattr(events, name) for name in COLUMNS}
    if sensor is not None:
        arrays["sensor"] = np.array(sensor, np.int64)
    # np.savez stores the time of day in the archive; two writes would differ.
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            npy.write_array(buffer, array, allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, buffer.getvalue())


def _recognises(source: Source) -> bool:
    return source.head.startswith((MAGIC, b"PK\x05\x06"))


NPZ = Format("npz", "SpikingJelly .npz", (".npz",), _recognises, _open)
