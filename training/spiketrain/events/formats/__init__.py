"""Recordings on disk. A new format is one file here and one line in FORMATS."""

from __future__ import annotations

from pathlib import Path

from spiketrain.events.formats.base import EventFormatError, Format
from spiketrain.events.formats.csv import CSV
from spiketrain.events.formats.nmnist import NMNIST
from spiketrain.events.formats.npz import NPZ, write_npz
from spiketrain.events.types import Events

__all__ = ["FORMATS", "EventFormatError", "Format", "read_recording", "write_npz"]

# Those that are sure of themselves come first: N-MNIST has no magic number and is guessed.
FORMATS: dict[str, Format] = {each.name: each for each in (NPZ, CSV, NMNIST)}

MAX_EVENTS = 100_000_000


def read_recording(
    source: Path | str | bytes, format: str | None = None, max_events: int = MAX_EVENTS
) -> Events:
    """All events of a file, or of its content as bytes, in the order they are stored.

    The format is told by the content, then by the suffix, unless `format` names one of FORMATS.
    Raises EventFormatError for a file that is empty, truncated, damaged, too large or of no known format,
    and OSError if it cannot be opened.
    """
    if isinstance(source, bytes):
        return _read(source, "", format, max_events)
    path = Path(source)
    # The widest format, text, has some 40 bytes an event.
    if path.stat().st_size > 64 * max_events + 4096:
        raise EventFormatError(
            f"{path}: {path.stat().st_size} bytes are more than {max_events} events can have"
        )
    try:
        return _read(path.read_bytes(), path.suffix.lower(), format, max_events)
    except EventFormatError as error:
        raise EventFormatError(f"{path}: {error}") from None


def _read(data: bytes, suffix: str, name: str | None, max_events: int) -> Events:
    if name is not None and name not in FORMATS:
        raise EventFormatError(f"unknown event format {name!r}; known are {', '.join(FORMATS)}")
    if not data:
        raise EventFormatError("the recording is empty: it has 0 bytes")
    if name is not None:
        return FORMATS[name].read(data, max_events)
    for each in FORMATS.values():
        if each.recognises(data):
            return each.read(data, max_events)
    for each in FORMATS.values():
        if suffix in each.suffixes:
            return each.read(data, max_events)
    raise EventFormatError(
        f"this is no recording of a known format ({', '.join(FORMATS)}); it begins with {data[:16]!r}"
    )
