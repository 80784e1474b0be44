"""`spikeserve stream`: events of a recording or a camera, sent to a server; its answers as they come."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from spikeserve.cli_stream_display import Display, JsonLines, Lines, LiveTable, Seen
from spikeserve.cli_stream_sources import Source, each, open_source, reached
from spikeserve.client import (
    AsyncEventStream,
    AsyncStreamClient,
    ClientError,
    Packet,
    StreamTerms,
    paced,
)
from spikeserve.client.connection import DEFAULT_RECONNECT_SECONDS, DEFAULT_TARGET
from spikeserve.client.errors import ServerError
from spikeserve.errors import ErrorKind
from spiketrain.events.formats import EventFormatError
from spiketrain.events.formats.appending import RecordingWriter
from spiketrain.events.rule_text import parse_decision, parse_filter, parse_size, parse_window
from spiketrain.events.types import Events

T = TypeVar("T")

_MOST_PENDING = 1 << 14


class Lag:
    """When stream time got where, to tell how long an answer took from there."""

    def __init__(self) -> None:
        self._sent: deque[tuple[int, float]] = deque(maxlen=_MOST_PENDING)

    def sent(self, packet: Packet) -> None:
        if (time_us := reached(packet)) is not None:
            self._sent.append((time_us, time.monotonic()))

    def until(self, end_us: int) -> float:
        while len(self._sent) > 1 and self._sent[0][0] < end_us:
            self._sent.popleft()
        return time.monotonic() - self._sent[0][1] if self._sent else 0.0


@dataclass
class Totals:
    windows: int = 0
    events: int = 0
    late: int = 0
    outside: int = 0
    stream: AsyncEventStream | None = None

    def add(self, seen: Seen) -> None:
        self.windows += 1
        self.events += seen.window.events
        self.late = seen.window.drops.late_events
        self.outside = seen.window.drops.outside_events


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


def _checked(parse: Callable[[str], T]) -> Callable[[str], T]:
    """A parser whose errors are about the command line."""

    def parsed(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    return parsed


async def _run(
    source: Source,
    display: Display,
    server: str,
    reconnect: float,
    terms: StreamTerms,
    speed: float | None,
    limit: int | None,
    writer: RecordingWriter | None,
    totals: Totals,
) -> None:
    lag = Lag()

    def sent(packet: Packet) -> None:
        lag.sent(packet)
        if writer is not None and isinstance(packet, Events):
            writer.append(packet)

    packets = source.packets
    if speed is not None and not source.live and not isinstance(packets, AsyncIterator):
        packets = paced(packets, speed)
    async with AsyncStreamClient(server, reconnect_seconds=reconnect) as client:
        totals.stream = stream = client.stream(each(packets, sent), **terms)
        with display:
            async for window in stream:
                seen = Seen(window, lag.until(window.end_us))
                totals.add(seen)
                display.show(seen)
                if totals.windows == limit:
                    stream.cancel()
                    break


def stream_command(
    source: Annotated[
        str,
        typer.Argument(
            help="A recording; - for standard input; udp://HOST:PORT for a camera that sends SPIF or AEStream "
            "words (with ?layout=event-stream: Event Stream); demo: for the emulated camera (demo:3141 shows these digits)."
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
    model_version: Annotated[
        str | None, typer.Option(help="Version of the model; the newest unless given.")
    ] = None,
    windows: Annotated[int | None, typer.Option(min=1, help="End after so many windows.")] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            help="Write the events that are sent to a file: .npz, .raw (EVT2), .dat, .aedat or .csv."
        ),
    ] = None,
    sensor: Annotated[
        str | None,
        typer.Option(help="WIDTHxHEIGHT of the camera, where the source does not say it."),
    ] = None,
    filter_: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            help="What is done to the events first; may be repeated: region:x=54,y=11,width=238,height=238,crop, "
            "down-sample:7, orient:rotate-90, invert-polarity, background-activity, refractory, hot-pixels, rate-limit.",
        ),
    ] = None,
    decision: Annotated[
        str | None,
        typer.Option(
            help="Ask for decisions: leaky:time_constant_us=200000,margin=0.4 or vote:windows=10."
        ),
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(
            help="Other windows than the model's, 10ms or count:events=2000,max_microseconds=100000; needs --force."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Have windows that the model was not trained with.")
    ] = False,
    lateness_us: Annotated[
        int, typer.Option(min=0, help="How long a window waits for events out of order.")
    ] = 0,
    reconnect: Annotated[
        float, typer.Option(min=0, help="Seconds to try again when the connection breaks.")
    ] = DEFAULT_RECONNECT_SECONDS,
    format_: Annotated[
        str | None,
        typer.Option("--format", help="The recording's format, where its content does not tell."),
    ] = None,
    topic: Annotated[
        str | None,
        typer.Option(help="Which of several cameras: a topic of a ROS 2 bag, a stream of AEDAT 4."),
    ] = None,
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
    terms = StreamTerms(
        model=model,
        version=model_version,
        sensor=None if sensor is None else _checked(parse_size)(sensor),
        lateness_us=lateness_us,
        filters=[_checked(parse_filter)(each) for each in filter_ or ()],
        window=None if window is None else _checked(parse_window)(window),
        force=force,
        decision=None if decision is None else _checked(parse_decision)(decision),
    )
    errors = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
    display: Display = JsonLines() if as_json else LiveTable() if Console().is_terminal else Lines()
    try:
        _stream(
            source,
            display,
            terms,
            factor,
            server,
            windows,
            record,
            reconnect,
            format_,
            topic,
            errors,
        )
    except BrokenPipeError:
        # Whoever read our output has what they wanted. What is still in the buffer has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ClientError, EventFormatError, OSError, ValueError) as error:
        said = f"{error}{_about_sensor(error, terms)}"
        errors.print(f"[red]error:[/red] {escape(said)}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        # An endless source is ended this way.
        raise typer.Exit(0) from None


def _about_sensor(error: Exception, terms: StreamTerms) -> str:
    """What else may help where a stream with filters was refused and nobody said how large the camera is."""
    refused = isinstance(error, ServerError) and error.kind == ErrorKind.IMPOSSIBLE.slug
    if not refused or not terms.get("filters") or terms.get("sensor") is not None:
        return ""
    return "; the source does not state its sensor, so the model's was taken: --sensor WIDTHxHEIGHT states it"


def _stream(
    name: str,
    display: Display,
    terms: StreamTerms,
    speed: float | None,
    server: str,
    limit: int | None,
    record: Path | None,
    reconnect: float,
    format: str | None,
    topic: str | None,
    errors: Console,
) -> None:
    source = open_source(name, format, topic)
    with source.resources as resources:
        if terms.get("sensor") is None:
            terms["sensor"] = source.sensor
        writer = None
        if record is not None:
            writer = resources.enter_context(RecordingWriter(record, terms["sensor"]))
        totals = Totals()
        try:
            asyncio.run(
                _run(source, display, server, reconnect, terms, speed, limit, writer, totals)
            )
        finally:
            if totals.windows:
                summary = _summary(source, totals, writer, record)
                errors.print(f"[dim]{escape(summary)}[/dim]")


def _summary(
    source: Source,
    totals: Totals,
    writer: RecordingWriter | None,
    record: Path | None,
) -> str:
    said = [f"{totals.windows} windows, {totals.events} events"]
    if totals.late or totals.outside:
        said.append(f"dropped: {totals.late} late, {totals.outside} outside of the sensor")
    if source.counts is not None:
        counts = source.counts
        said.append(
            f"{counts.datagrams} datagrams, {counts.rejected} not understood, {counts.dropped} dropped"
        )
    if totals.stream is not None and totals.stream.reconnects:
        said.append(f"resumed {totals.stream.reconnects} times")
    if totals.stream is not None and totals.stream.lost_windows:
        said.append(f"{totals.stream.lost_windows} answers lost")
    if writer is not None:
        said.append(f"{writer.events} events in {record}")
    return "; ".join(said)
