"""What `spikeserve stream` shows: a live table, lines, or JSON."""

from __future__ import annotations

import dataclasses
import json
from collections import deque
from typing import NamedTuple, Protocol, Self

import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from spikeserve.client import Window

_ROWS = 12
COLUMNS = (
    "time s",
    "class",
    "confidence",
    "decision",
    "events",
    "events/s",
    "lag ms",
    "dropped",
    "latency ms",
)
_TEXT = ("class", "decision")


class Seen(NamedTuple):
    """A window, and how long after what closed it was sent its answer came, in seconds."""

    window: Window
    lag: float


class Display(Protocol):
    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...
    def show(self, seen: Seen) -> None: ...


class JsonLines:
    """One object a window, for other programs."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def show(self, seen: Seen) -> None:
        typer.echo(json.dumps({**dataclasses.asdict(seen.window), "lag_seconds": seen.lag}))


class Lines:
    """One line a window, where the output is not a terminal."""

    def __init__(self) -> None:
        self._titled = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def show(self, seen: Seen) -> None:
        columns = columns_for(seen.window)
        if not self._titled:
            self._titled = True
            typer.echo("\t".join(columns))
        typer.echo("\t".join(cells(seen)[column] for column in columns))


class LiveTable:
    """The latest windows, in a terminal."""

    def __init__(self) -> None:
        self._recent: deque[Seen] = deque(maxlen=_ROWS)
        self._live = Live(console=Console(), refresh_per_second=10, get_renderable=self._table)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def show(self, seen: Seen) -> None:
        self._recent.append(seen)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        if not self._recent:
            return table
        columns = columns_for(self._recent[-1].window)
        for title in columns:
            justify = "left" if title in _TEXT else "right"
            table.add_column(title, justify=justify, min_width=len(title))  # type: ignore[arg-type]
        for each in self._recent:
            style = "bold" if each is self._recent[-1] else "dim"
            row = cells(each)
            table.add_row(*(escape(row[column]) for column in columns), style=style)
        return table


def columns_for(window: Window) -> tuple[str, ...]:
    """The titles: decisions only where there are any."""
    return tuple(each for each in COLUMNS if each != "decision" or window.decision is not None)


def cells(seen: Seen) -> dict[str, str]:
    window, drops = seen.window, seen.window.drops
    decision = window.decision
    return {
        "time s": f"{window.end_us / 1e6:.3f}",
        "class": window.best.label,
        "confidence": f"{window.best.probability:.1%}",
        "decision": "" if decision is None else decision.label or "-",
        "events": str(window.events),
        "events/s": _short(window.events / max(1, window.end_us - window.start_us) * 1e6),
        "lag ms": f"{seen.lag * 1e3:.1f}",
        "dropped": str(drops.late_events + drops.outside_events),
        "latency ms": f"{window.latency_seconds * 1e3:.1f}",
    }


def _short(rate: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if rate >= size:
            return f"{rate / size:.1f}{unit}"
    return f"{rate:.0f}"
