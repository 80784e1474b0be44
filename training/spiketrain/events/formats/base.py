"""What a file format is, and the error that all of them raise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from spiketrain.events.formats.source import Source
from spiketrain.events.types import Events

Sensor: TypeAlias = tuple[int, int]
"""Width and height in pixels."""


class EventFormatError(ValueError):
    """A recording that cannot be read, or not to its end: the message says what is wrong with it, and where.

    What could be read is not lost: `events_read` counts it, and where all events were asked for at once,
    `events` has them.
    """

    def __init__(self, message: str, events_read: int = 0, events: Events | None = None) -> None:
        super().__init__(message)
        self.events_read = events_read
        self.events = events


class Contents(NamedTuple):
    """Events in pieces of bounded size, and the sensor's size where the recording states it.

    The pieces raise EventFormatError where the recording can be read no further, after all that could be read.
    """

    pieces: Iterator[Events]
    sensor: Sensor | None = None


class Format(NamedTuple):
    """`recognises` judges the first bytes; `open` reads the header, or raises EventFormatError."""

    name: str
    title: str
    suffixes: tuple[str, ...]
    recognises: Callable[[Source], bool]
    open: Callable[[Source], Contents]


def events_from_columns(columns: dict[str, NDArray[Any]]) -> Events:
    """Columns t, x, y, p of any integer (or boolean) type; polarity 0/1 or -1/1.

    Raises EventFormatError for another type, unequal lengths or a value out of range. For the last its
    `events` has the events before the first such value.
    """
    lengths = {name: len(column) for name, column in columns.items() if column.ndim == 1}
    for name, length in lengths.items():
        if length != lengths["t"]:
            raise EventFormatError(f"{length} values in {name}, but {lengths['t']} in t")
    t = _integers("t", columns["t"], -(2**63), 2**63 - 1)
    x = _integers("x", columns["x"], 0, 65535)
    y = _integers("y", columns["y"], 0, 65535)
    p = _integers("p", columns["p"], -1, 1)
    good = min(len(column.values) for column in (t, x, y, p))
    events = Events(
        t.values[:good].astype(np.int64),
        x.values[:good].astype(np.uint16),
        y.values[:good].astype(np.uint16),
        (p.values[:good] > 0).astype(np.uint8),
    )
    for column in (t, x, y, p):
        if column.problem is not None and len(column.values) == good:
            raise EventFormatError(column.problem, good, events)
    return events


class _Column(NamedTuple):
    values: NDArray[Any]
    problem: str | None


def _integers(name: str, column: NDArray[Any], lowest: int, highest: int) -> _Column:
    """The values up to the first that is no integer from `lowest` to `highest`."""
    if column.ndim != 1 or column.dtype.kind not in "iubf":
        raise EventFormatError(
            f"column {name} is {column.dtype} {list(column.shape)}, not a list of integers"
        )
    problem = None
    if column.dtype.kind == "f":
        # Some writers store whole numbers as floats. Beyond 2**53 those no longer are exact.
        whole = (np.abs(column) <= 2**53) & (column == np.floor(column))
        if not whole.all():
            problem = f"column {name} is {column.dtype} with values that are not whole numbers"
            column = column[: int(np.argmin(whole))]
        column = column.astype(np.int64)
    if len(column) and (int(column.min()) < lowest or int(column.max()) > highest):
        problem = (
            f"column {name} has values from {column.min()} to {column.max()}; "
            f"allowed are {lowest} to {highest}"
        )
        allowed = np.ones(len(column), np.bool_)
        if int(column.min()) < lowest:
            allowed &= column >= lowest
        if int(column.max()) > highest:
            allowed &= column <= highest
        column = column[: int(np.argmin(allowed))]
    return _Column(column, problem)
