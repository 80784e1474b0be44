"""Event streams: windows a second, lost windows, and how long after a window closed its answer comes.

The bundled N-MNIST model, windows of 20 ms, 1, 64 and 1,024 streams over gRPC from one client process on the same machine
(stream_clients.py).

* Closed loop: every stream sends its next window when the last one was answered, which gives the capacity.
* Paced: every stream closes a window each 20 ms of its camera's time, whatever is answered, and latency counts from when the window
  was due to close. Cameras run in real time where that is at most 70 % of the capacity, else so much slower that it is; the table
  says how much.
* Real time: the most streams whose cameras run in real time with 99 % of the answers within 100 ms, found by some tries.
* Overload: cameras that ask for twice the capacity. What the server does not read waits at the clients; it must neither lose
  a window nor slow down.
* Little moves: only one window in ten has events; the others must be computed nevertheless, for neurons forget.

Nothing may be lost: each stream's answers are counted, and so is what the server says it dropped. Each stream's answers are
compared with those of a stream with the same events that was alone.

    python benchmarks/streams.py --streams 1 --streams 64 --streams 1024 --seconds 10
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import results
import typer
from processes import (
    MemoryPeak,
    NotMeasuredError,
    Running,
    free_ports,
    last_words,
    machine_seconds,
    stop_when_told,
)
from rich.console import Console
from rich.table import Table
from stream_clients import RECORDINGS, Clients, Stream, run
from systems import surroundings

from spikeserve.client import Client, ClientError
from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spikeserve.settings import BUNDLED_MODELS

MODEL = BUNDLED_MODELS / "nmnist-clif.safetensors"
WINDOW_US = 20_000
# How much of the capacity cameras may ask for.
SHARE = 0.7
OVERLOAD = 2.0
# In real time is where 99 % of the answers come within so many windows.
LATEST_WINDOWS = 5
_TRIES = 4
_BUSY = 0.1
Row = dict[str, Any]


class Task(NamedTuple):
    """`speed` is that of the cameras, None for a closed loop; `busy` the share of windows with events."""

    mode: str
    streams: int
    speed: float | None = None
    busy: float = 1.0


console = Console(width=150)


def started(models: list[Path], log: Any) -> tuple[Running, int]:
    """The server and its gRPC port. Raises NotMeasuredError."""
    port = free_ports()
    serve = [sys.executable, "-m", "spikeserve", "serve", "--log-level", "warning"]
    ports = ["--http-port", str(port), "--grpc-port", str(port + 1)]
    given = [word for model in models for word in ("--models", str(model))]
    server = Running([*serve, *given, *ports], surroundings(None), log)
    try:
        with Client(f"http://127.0.0.1:{port}") as client:
            for _ in range(600):
                server.check()
                try:
                    if client.ready():
                        return server, port + 1
                except ClientError:
                    pass
                time.sleep(0.2)
        raise NotMeasuredError(f"the server did not become ready: {last_words(server.log)}")
    except BaseException:
        server.stop()
        raise


async def measure(
    server: Running, target: str, task: Task, seconds: float, window_us: int
) -> tuple[Row, list[Stream]]:
    clients = Clients(target, window_us, task.busy)
    marks: list[tuple[float, ...]] = []

    def mark() -> None:
        taken = server.usage().cpu_seconds
        marks.append((time.perf_counter(), time.process_time(), taken, machine_seconds()))

    with MemoryPeak(server) as memory:
        streams = await run(clients, task.streams, seconds, task.speed, mark)
        mark()
    await clients.close()
    took, client, ours, machine = (end - begin for begin, end in zip(*marks, strict=True))
    sent = sum(len(stream.due) for stream in streams)
    answered = sum(len(stream.answered) for stream in streams)
    events = sum(
        stream.source.events[window % stream.source.windows]
        for stream in streams
        for window in range(len(stream.answered))
    )
    latencies = np.concatenate([np.subtract(s.answered, s.due[: len(s.answered)]) for s in streams])
    quantiles = np.percentile(latencies * 1e3, [50, 99, 100]).tolist() if answered else [0.0] * 3
    row = {
        "streams": task.streams,
        "mode": task.mode,
        "speed": task.speed,
        "busy": task.busy,
        "windows_per_second": answered / took,
        "events_per_second": events / took,
        "windows_sent": sent,
        "windows_lost": sent - answered + sum(_dropped(stream) for stream in streams),
        **dict(zip(("p50_ms", "p99_ms", "max_ms"), quantiles, strict=True)),
        "server_cores": ours / took,
        "client_cores": client / took,
        "other_cores": max(0.0, machine - ours - client) / took,
        "memory_mib": memory.peak / (1 << 20),
    }
    return row, streams


def _dropped(stream: Stream) -> int:
    """Windows and events that the server says it did not count."""
    if stream.ended is None:
        raise NotMeasuredError("a stream ended without the server's totals")
    drops = stream.ended.drops
    missing = len(stream.answered) - stream.ended.windows
    return abs(missing) + drops.skipped_windows + drops.lost_packets + drops.late_events


def content(answer: bytes) -> bytes:
    """An answer without what is measured."""
    window = pb.EventAnswer.FromString(answer).window
    window.ClearField("latency_seconds")
    return window.SerializeToString(deterministic=True)


def differing(streams: list[Stream], alone: list[list[bytes]]) -> int:
    """Windows that were answered otherwise than in the stream that was alone, over the windows that both have."""
    found = 0
    for i, stream in enumerate(streams):
        pairs = zip(stream.answers, alone[i % RECORDINGS], strict=False)
        found += sum(content(answer) != expected for answer, expected in pairs)
    return found


async def answers_alone(
    target: str, seconds: float, window_us: int, busy: float
) -> list[list[bytes]]:
    """For each recording, the answers to a stream that nobody else shares the server with."""
    clients = Clients(target, window_us, busy)
    found = []
    for source in clients.sources:
        (stream,) = await clients.open(1)
        stream.source = source
        await stream.closed_loop(time.perf_counter() + seconds)
        await stream.finish()
        found.append([content(answer) for answer in stream.answers])
    await clients.close()
    return found


def show(rows: list[Row]) -> None:
    table = Table(
        "streams", "mode", "speed", "windows/s", "events/s", "sent", "lost", "differing", "p50 ms", "p99 ms",
        "server cores", "client cores", "others", "MiB",
    )  # fmt: skip
    for row in rows:
        table.add_row(
            str(row["streams"]),
            row["mode"],
            "-" if row["speed"] is None else f"{row['speed']:.3g}",
            f"{row['windows_per_second']:.0f}",
            f"{row['events_per_second']:.0f}",
            str(row["windows_sent"]),
            str(row["windows_lost"]),
            f"{row['windows_differing']} of {row['windows_compared']}",
            f"{row['p50_ms']:.1f}",
            f"{row['p99_ms']:.1f}",
            f"{row['server_cores']:.2f}",
            f"{row['client_cores']:.2f}",
            f"{row['other_cores']:.2f}",
            f"{row['memory_mib']:.0f}",
        )
    console.print(table)


class Contest:
    """All measurements of one server; `rows` grows."""

    def __init__(self, server: Running, target: str, seconds: float, window_us: int) -> None:
        self.server = server
        self.target = target
        self.seconds = seconds
        self.window_us = window_us
        self.rows: list[Row] = []
        self.alone: dict[float, list[list[bytes]]] = {}

    async def add(self, task: Task) -> Row:
        if task.busy not in self.alone:
            given = self.target, min(self.seconds, 1.0), self.window_us, task.busy
            self.alone[task.busy] = await answers_alone(*given)
        alone = self.alone[task.busy]
        row, streams = await measure(self.server, self.target, task, self.seconds, self.window_us)
        self.server.check()
        row["windows_compared"] = sum(
            min(len(stream.answers), len(alone[i % RECORDINGS])) for i, stream in enumerate(streams)
        )
        row["windows_differing"] = differing(streams, alone)
        self.rows.append(row)
        console.print(
            f"{task}: {row['windows_per_second']:.0f} windows/s, p99 {row['p99_ms']:.0f} ms"
        )
        return row

    async def capacity(self, count: int, busy: float = 1.0) -> float:
        """Windows/s of so many streams, measured in a closed loop, and then at a share of it."""
        title = "" if busy == 1.0 else "little moves, "
        row = await self.add(Task(f"{title}closed loop", count, None, busy))
        found = float(row["windows_per_second"])
        await self.add(
            Task(f"{title}paced", count, min(1.0, SHARE * found / self.asked(count)), busy)
        )
        return found

    async def real_time(self, capacity: float) -> int:
        """The most streams that were served in real time."""
        count = max(1, int(0.8 * capacity / self.asked(1)))
        best = 0
        for _ in range(_TRIES):
            row = await self.add(Task("real time", count, 1.0))
            held = (
                row["p99_ms"] * 1e3 <= LATEST_WINDOWS * self.window_us and not row["windows_lost"]
            )
            if held:
                best = max(best, count)
            following = max(1, round(count * (1.15 if held else 0.8)))
            if following == count or (not held and following <= best):
                break
            count = following
        return best

    def asked(self, count: int) -> float:
        """Windows/s of so many cameras in real time."""
        return count * 1e6 / self.window_us


async def contest(measured: Contest, counts: list[int]) -> dict[str, float]:
    """Ratios."""
    capacities = [await measured.capacity(count) for count in counts]
    found = {"streams_in_real_time": float(await measured.real_time(max(capacities)))}
    most, capacity = counts[-1], capacities[-1]
    overload = OVERLOAD * capacity / measured.asked(most)
    row = await measured.add(Task("overload", most, overload))
    found["overload_over_capacity"] = row["windows_per_second"] / capacity
    # Few enough streams that each gets through seconds of its recording, not only the first windows, which have events.
    several = len(counts) // 2
    sparse = await measured.capacity(counts[several], _BUSY)
    found["little_moves_over_capacity"] = sparse / capacities[several]
    for name in ("windows_lost", "windows_differing"):
        found[name] = float(sum(row[name] for row in measured.rows))
    return found


def main(
    streams: Annotated[list[int], typer.Option()] = [1, 64, 1024],  # noqa: B006
    seconds: Annotated[float, typer.Option(help="of each measurement")] = 10.0,
    model: Annotated[Path, typer.Option(help="checkpoint of an event model")] = MODEL,
    window_us: Annotated[int, typer.Option(help="a window of every stream")] = WINDOW_US,
    name: Annotated[str, typer.Option(help="of the file in results/")] = "streams",
) -> None:
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        server, port = started([model], log)
        try:
            measured = Contest(server, f"127.0.0.1:{port}", seconds, window_us)
            ratios = asyncio.run(contest(measured, streams))
        finally:
            server.stop()
    rows = measured.rows
    show(rows)
    settings = {"model": model.stem, "window_us": window_us, "seconds": seconds}
    console.print(f"written: {results.save(name, __doc__ or '', settings, rows, ratios)}")


if __name__ == "__main__":
    stop_when_told()
    try:
        typer.run(main)
    except (NotMeasuredError, subprocess.SubprocessError) as error:
        sys.exit(f"streams were not measured: {error}")
