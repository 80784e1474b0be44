"""`spikeserve stream`: a recording, or the emulated camera, sent to a server; its answers as they come."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Protocol, Self

import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from spikeserve.client import Advance, AsyncStreamClient, ClientError, Packet, Window, cut, paced
from spikeserve.client.events import DEFAULT_TARGET
from spiketrain.events.demo import demo_events
from spiketrain.events.formats import EventFormatError, read_recording

_ROWS = 12
_DEMO = "demo:"


class Display(Protocol):
    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...
    def show(self, window: Window) -> None: ...


class JsonLines:
    """One object a window, for other programs."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def show(self, window: Window) -> None:
        typer.echo(json.dumps(dataclasses.asdict(window)))


class Lines:
    """One line a window, where the output is not a terminal."""

    _titled = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def show(self, window: Window) -> None:
        if not self._titled:
            self._titled = True
            typer.echo("\t".join(COLUMNS))
        typer.echo("\t".join(cells(window)))


class LiveTable:
    """The latest windows, in a terminal."""

    def __init__(self) -> None:
        self._recent: deque[Window] = deque(maxlen=_ROWS)
        self._live = Live(console=Console(), refresh_per_second=10)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def show(self, window: Window) -> None:
        self._recent.append(window)
        table = Table(box=None, pad_edge=False)
        for title in COLUMNS:
            table.add_column(
                title, justify="right" if title != "class" else "left", min_width=len(title)
            )
        for each in self._recent:
            style = "bold" if each is window else "dim"
            table.add_row(*(escape(cell) for cell in cells(each)), style=style)
        self._live.update(table)


COLUMNS = ("time s", "class", "confidence", "events", "dropped", "latency ms")


def cells(window: Window) -> tuple[str, ...]:
    drops = window.drops
    return (
        f"{window.end_us / 1e6:.3f}",
        window.best.label,
        f"{window.best.probability:.1%}",
        str(window.events),
        str(drops.late_events + drops.outside_events),
        f"{window.latency_seconds * 1e3:.1f}",
    )


def read_source(source: str) -> Iterable[Packet]:
    """A recording's packets, or the emulated camera's: `demo:` without end, `demo:3141` with these digits.

    Raises OSError, EventFormatError, ValueError.
    """
    if not source.startswith(_DEMO):
        return cut(read_recording(Path(source)))
    digits = source.removeprefix(_DEMO)
    if digits and not (digits.isascii() and digits.isdecimal()):
        raise ValueError(f"{source!r}: after {_DEMO} come digits, such as {_DEMO}3141, or nothing")
    return _demo([int(digit) for digit in digits] or None)


def _demo(digits: list[int] | None) -> Iterator[Packet]:
    for chunk in demo_events(digits=digits):
        if len(chunk.events):
            yield chunk.events
        yield Advance(chunk.until_us)


def parse_speed(text: str) -> float | None:
    """A factor above 0; None for max."""
    if text == "max":
        return None
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0 < speed < float("inf"):
        raise typer.BadParameter(f"{text!r} is neither max nor a number above 0")
    return speed


async def _follow(
    packets: Iterable[Packet],
    speed: float | None,
    target: str,
    model: str | None,
    limit: int | None,
) -> AsyncIterator[Window]:
    sent = packets if speed is None else paced(packets, speed)
    async with AsyncStreamClient(target) as client:
        answers = client.stream(sent, model=model)
        count = 0
        async for window in answers:
            yield window
            count += 1
            if count == limit:
                answers.cancel()
                return


async def _show(windows: AsyncIterator[Window], display: Display) -> None:
    with display:
        async for window in windows:
            display.show(window)


def stream_command(
    source: Annotated[
        str,
        typer.Argument(
            help="A recording, or demo: for the emulated camera (demo:3141 shows these digits)."
        ),
    ],
    server: Annotated[
        str, typer.Option(help="HOST:PORT of the server's gRPC interface.")
    ] = DEFAULT_TARGET,
    speed: Annotated[
        str, typer.Option(help="1 as the camera recorded it, N times as fast, or max.")
    ] = "1",
    model: Annotated[
        str | None, typer.Option(help="Name of the model; the server's default unless given.")
    ] = None,
    windows: Annotated[int | None, typer.Option(min=1, help="End after so many windows.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a window instead of text.")
    ] = False,
) -> None:
    """Send events to a server and show what it sees in them, window by window."""
    factor = parse_speed(speed)
    if "://" in server:
        raise typer.BadParameter(
            f"{server!r}: events go to HOST:PORT, the gRPC interface, such as {DEFAULT_TARGET}"
        )
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    display: Display = JsonLines() if as_json else LiveTable() if Console().is_terminal else Lines()
    try:
        packets = read_source(source)
        asyncio.run(_show(_follow(packets, factor, server, model, windows), display))
    except BrokenPipeError:
        # Whoever read our output has what they wanted. What is still in the buffer has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ClientError, EventFormatError, OSError, ValueError) as error:
        errors.print(f"[red]error:[/red] {escape(str(error))}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        # An endless source is ended this way.
        raise typer.Exit(0) from None
