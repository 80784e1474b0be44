"""NumPy archives with one array for each of t, x, y, p: SpikingJelly's, and ours, which add `sensor` (width, height)."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from spiketrain.events.formats.base import EventFormatError, Format, events_from_columns
from spiketrain.events.types import Events

COLUMNS = ("t", "x", "y", "p")
MAGIC = b"PK\x03\x04"
_EPOCH = (1980, 1, 1, 0, 0, 0)


def read(data: bytes, max_events: int) -> Events:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = set(archive.namelist())
            missing = [name for name in COLUMNS if f"{name}.npy" not in names]
            if missing:
                raise EventFormatError(
                    f"the .npz has no array {', '.join(missing)}; a recording has t, x, y and p"
                )
            return events_from_columns(
                {name: _column(archive, name, max_events) for name in COLUMNS}
            )
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
        OSError,
    ) as error:
        raise EventFormatError(f"the .npz is damaged or truncated: {error}") from None


def write_npz(path: Path | str, events: Events, sensor: tuple[int, int] | None = None) -> None:
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


def _column(archive: zipfile.ZipFile, name: str, max_events: int) -> NDArray[Any]:
    """One array, with its size checked in the archive and in its own header before memory is spent on it."""
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise EventFormatError(f"column {name} is packed by a method that NumPy does not write")
    if info.file_size > 8 * max_events + 4096:
        raise EventFormatError(
            f"column {name} unpacks to {info.file_size} bytes, more than {max_events} events can have"
        )
    with archive.open(info) as file:
        content = file.read(info.file_size + 1)
    stream = io.BytesIO(content)
    try:
        version = npy.read_magic(stream)
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = header(stream)
        expected = stream.tell() + dtype.itemsize * int(np.prod(shape, dtype=object))
        if dtype.hasobject:
            raise EventFormatError(
                f"column {name} holds pickled Python objects, which are never loaded"
            )
        if expected != len(content):
            raise EventFormatError(
                f"column {name} has {len(content)} bytes, its header says {expected}"
            )
        stream.seek(0)
        column: NDArray[Any] = npy.read_array(stream, allow_pickle=False)
    except EventFormatError:
        raise
    except (ValueError, TypeError, SyntaxError, OverflowError) as error:
        raise EventFormatError(f"column {name} is no NumPy array: {error}") from None
    if column.ndim != 1 or len(column) > max_events:
        raise EventFormatError(
            f"column {name} has shape {list(column.shape)}; at most [{max_events}] is read"
        )
    return column


NPZ = Format("npz", (".npz",), lambda data: data.startswith(MAGIC), read)
