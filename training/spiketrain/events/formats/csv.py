"""Text with a header that names the columns t, x, y, p in any order, and one event a line, separated by commas."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator

import numpy as np

from spiketrain.events.formats.base import Contents, EventFormatError, Format, events_from_columns
from spiketrain.events.formats.source import Source
from spiketrain.events.native import loops
from spiketrain.events.types import Events

COLUMNS = ("t", "x", "y", "p")
MAX_LINE = 1 << 12
"""Bytes."""


def _open(source: Source) -> Contents:
    head, newline, _ = source.head.partition(b"\n")
    names = _names(head[:MAX_LINE])
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise EventFormatError(
            f"the first line {head[:60]!r} names no column {', '.join(missing)}; it should read t,x,y,p"
        )
    source.take_head(len(head) + len(newline))
    return Contents(_pieces(source, [names.index(name) for name in COLUMNS], len(names)))


def _pieces(source: Source, places: list[int], fields: int) -> Iterator[Events]:
    rest = b""
    line = 2
    for block in source.blocks():
        whole, newline, rest = (rest + block).rpartition(b"\n")
        if len(rest) > MAX_LINE:
            raise EventFormatError(
                f"a line after the header line has more than {MAX_LINE} bytes: this is no recording as text"
            )
        if newline:
            count = whole.count(b"\n") + 1
            events = _parse_compiled(whole, count, places, fields)
            yield _events(whole.split(b"\n"), places, line) if events is None else events
            line += count
    if rest.strip():
        yield _events([rest], places, line)


def _events(lines: list[bytes], places: list[int], first: int) -> Events:
    """The events of whole lines, of which `first` is the number of the first one in the file."""
    try:
        return _parse(lines, places)
    except EventFormatError as error:
        raise EventFormatError(
            f"after the header line, from line {first} on: {error}", error.events_read, error.events
        ) from None
    except (ValueError, OverflowError, IndexError) as error:
        good, problem = _first_fault(lines, places), error
    # Parsed alone, so that the message is about that line.
    try:
        _parse(lines[good : good + 1], places)
    except (ValueError, OverflowError, IndexError) as error:
        problem = error
    events = _parse(lines[:good], places)
    raise EventFormatError(
        f"after the header line: {problem} (line {first + good})", len(events), events
    )


def _parse_compiled(text: bytes, count: int, places: list[int], fields: int) -> Events | None:
    """None where anything but plain lines of whole numbers is for `_events` to judge."""
    compiled = loops()
    if compiled is None:
        return None
    rows = np.empty((count, len(places)), np.int64)
    columns = np.full(fields, -1)
    columns[places] = np.arange(len(places))
    if compiled.parse_lines(np.frombuffer(text, np.uint8), columns, rows) < count:
        return None
    try:
        return events_from_columns({name: rows[:, i] for i, name in enumerate(COLUMNS)})
    except EventFormatError:
        return None


def _first_fault(lines: list[bytes], places: list[int]) -> int:
    """How many of the lines can be read before one that cannot, by bisection."""
    low, high = 0, len(lines)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            _parse(lines[low:middle], places)
        except EventFormatError:
            low = middle
        except (ValueError, OverflowError, IndexError):
            high = middle
        else:
            low = middle
    return low


def _parse(lines: list[bytes], places: list[int]) -> Events:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "loadtxt: input contained no data")
        rows = np.loadtxt(
            [line.decode("ascii") for line in lines],
            np.int64,
            delimiter=",",
            usecols=places,
            ndmin=2,
        )
    rows = rows.reshape(-1, len(places))
    return events_from_columns({name: rows[:, i] for i, name in enumerate(COLUMNS)})


def _names(head: bytes) -> list[str]:
    text = head.removeprefix(b"\xef\xbb\xbf").decode("ascii", "replace")
    return [name.strip().strip("\"'").lower() for name in text.lstrip("# ").split(",")]


def _recognises(source: Source) -> bool:
    head = source.head[:200].partition(b"\n")[0]
    return re.fullmatch(rb"[\xef\xbb\xbf\w\s,#\"'.-]*", head) is not None and set(COLUMNS) <= set(
        _names(head)
    )


CSV = Format("csv", "CSV", (".csv", ".txt"), _recognises, _open)
