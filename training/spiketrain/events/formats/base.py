"""What a file format is, and the error that all of them raise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spiketrain.events.types import Events


class EventFormatError(ValueError):
    """A recording that cannot be read: the message says what is wrong with it, and where."""


class Format(NamedTuple):
    """`recognises` judges the content alone; `read` takes the whole file and the most events it may hold."""

    name: str
    suffixes: tuple[str, ...]
    recognises: Callable[[bytes], bool]
    read: Callable[[bytes, int], Events]


def events_from_columns(columns: dict[str, NDArray[Any]]) -> Events:
    """Columns t, x, y, p of any integer (or boolean) type; polarity 0/1 or -1/1.

    Raises EventFormatError for another type, unequal lengths or a value out of range.
    """
    t = _integers("t", columns["t"], -(2**63), 2**63 - 1).astype(np.int64)
    x = _integers("x", columns["x"], 0, 65535).astype(np.uint16)
    y = _integers("y", columns["y"], 0, 65535).astype(np.uint16)
    p = (_integers("p", columns["p"], -1, 1) > 0).astype(np.uint8)
    try:
        return Events(t, x, y, p)
    except ValueError as error:
        raise EventFormatError(str(error)) from None


def _integers(name: str, column: NDArray[Any], lowest: int, highest: int) -> NDArray[Any]:
    if column.ndim != 1 or column.dtype.kind not in "iubf":
        raise EventFormatError(
            f"column {name} is {column.dtype} {list(column.shape)}, not a list of integers"
        )
    if column.dtype.kind == "f":
        # Some writers store whole numbers as floats. Beyond 2**53 those no longer are exact.
        if not (np.abs(column) <= 2**53).all() or (column != np.floor(column)).any():
            raise EventFormatError(
                f"column {name} is {column.dtype} with values that are not whole numbers"
            )
        column = column.astype(np.int64)
    if len(column) and (int(column.min()) < lowest or int(column.max()) > highest):
        raise EventFormatError(
            f"column {name} has values from {column.min()} to {column.max()}; allowed are {lowest} to {highest}"
        )
    return column
