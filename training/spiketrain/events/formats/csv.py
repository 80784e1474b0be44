"""Text with a header that names the columns t, x, y, p in any order, and one event a line, separated by commas."""

from __future__ import annotations

import io
import re
import warnings

import numpy as np

from spiketrain.events.formats.base import EventFormatError, Format, events_from_columns
from spiketrain.events.types import Events

COLUMNS = ("t", "x", "y", "p")


def read(data: bytes, max_events: int) -> Events:
    head, _, body = data.partition(b"\n")
    names = _names(head)
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise EventFormatError(
            f"the first line {head[:60]!r} names no column {', '.join(missing)}; it should read t,x,y,p"
        )
    if (lines := body.count(b"\n")) > max_events:
        raise EventFormatError(f"{lines} lines are more than the allowed {max_events} events")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "loadtxt: input contained no data")
            rows = np.loadtxt(
                io.BytesIO(body),
                np.int64,
                delimiter=",",
                usecols=[names.index(name) for name in COLUMNS],
                ndmin=2,
                encoding="ascii",
            )
    except (ValueError, OverflowError, IndexError) as error:
        raise EventFormatError(f"after the header line: {error}") from None
    return events_from_columns({name: rows[:, i].copy() for i, name in enumerate(COLUMNS)})


def _names(head: bytes) -> list[str]:
    text = head.removeprefix(b"\xef\xbb\xbf").decode("ascii", "replace")
    return [name.strip().strip("\"'").lower() for name in text.lstrip("# ").split(",")]


def _recognises(data: bytes) -> bool:
    head = data[:200].partition(b"\n")[0]
    return re.fullmatch(rb"[\xef\xbb\xbf\w\s,#\"'.-]*", head) is not None and set(COLUMNS) <= set(
        _names(head)
    )


CSV = Format("csv", (".csv", ".txt"), _recognises, read)
