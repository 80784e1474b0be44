"""Event streams: windows a second, lost windows, and how long after a window closed its answer comes.

The bundled N-MNIST model, windows of 20 ms, 1, 64 and 1,024 streams over gRPC from one client process on the same machine
(stream_clients.py). Two measurements of each. Closed loop: every stream sends its next window when the last one was answered,
which gives the capacity. Paced: every stream closes a window each 20 ms of its camera's time, whatever is answered, and
latency counts from when the window was due to close. Cameras run in real time where that is at most 70 % of the capacity, else
so much slower that it is; the table says how much. Nothing may be lost: each stream's answers are counted, and so is what the server says
it dropped. Each stream's answers are compared with those of a stream with the same events that was alone.

    python benchmarks/streams.py --streams 1 --streams 64 --streams 1024 --seconds 10
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import results
import typer
from processes import MemoryPeak, NotMeasuredError, Running, free_ports, last_words
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
Row = dict[str, Any]

console = Console(width=150)


def started(model: Path, log: Any) -> tuple[Running, int]:
    """The server and its gRPC port. Raises NotMeasuredError."""
    port = free_ports()
    serve = [sys.executable, "-m", "spikeserve", "serve", "--log-level", "warning"]
    ports = ["--http-port", str(port), "--grpc-port", str(port + 1)]
    server = Running([*serve, "--models", str(model), *ports], surroundings(None), log)
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
    server: Running, target: str, count: int, seconds: float, speed: float | None, window_us: int
) -> tuple[Row, list[Stream]]:
    clients = Clients(target, window_us)
    marks: list[tuple[float, float, float]] = []

    def mark() -> None:
        marks.append((time.perf_counter(), time.process_time(), server.usage().cpu_seconds))

    with MemoryPeak(server) as memory:
        streams = await run(clients, count, seconds, speed, mark)
        mark()
    await clients.close()
    (began, client, ours), (ended, client_end, ours_end) = marks
    took = ended - began
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
        "streams": count,
        "mode": "closed loop" if speed is None else "paced",
        "speed": speed,
        "windows_per_second": answered / took,
        "events_per_second": events / took,
        "windows_sent": sent,
        "windows_lost": sent - answered + sum(_dropped(stream) for stream in streams),
        **dict(zip(("p50_ms", "p99_ms", "max_ms"), quantiles, strict=True)),
        "server_cores": (ours_end - ours) / took,
        "client_cores": (client_end - client) / took,
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


async def answers_alone(target: str, seconds: float, window_us: int) -> list[list[bytes]]:
    """For each recording, the answers to a stream that nobody else shares the server with."""
    clients = Clients(target, window_us)
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
        "server cores", "client cores", "MiB",
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
            f"{row['memory_mib']:.0f}",
        )
    console.print(table)


async def contest(
    server: Running, target: str, counts: list[int], seconds: float, window_us: int
) -> list[Row]:
    alone = await answers_alone(target, min(seconds, 2.0), window_us)
    rows = []
    for count in counts:
        speed: float | None = None
        for _ in range(2):
            row, streams = await measure(server, target, count, seconds, speed, window_us)
            server.check()
            row["windows_compared"] = sum(
                min(len(stream.answers), len(alone[i % RECORDINGS]))
                for i, stream in enumerate(streams)
            )
            row["windows_differing"] = differing(streams, alone)
            rows.append(row)
            real_time = count * 1e6 / window_us
            speed = min(1.0, SHARE * row["windows_per_second"] / real_time)
    return rows


def main(
    streams: Annotated[list[int], typer.Option()] = [1, 64, 1024],  # noqa: B006
    seconds: Annotated[float, typer.Option(help="of each measurement")] = 10.0,
    model: Annotated[Path, typer.Option(help="checkpoint of an event model")] = MODEL,
    window_us: Annotated[int, typer.Option(help="a window of every stream")] = WINDOW_US,
    name: Annotated[str, typer.Option(help="of the file in results/")] = "streams",
) -> None:
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        server, port = started(model, log)
        try:
            target = f"127.0.0.1:{port}"
            rows = asyncio.run(contest(server, target, streams, seconds, window_us))
        finally:
            server.stop()
    show(rows)
    most = rows[-2]
    ratios = {
        "streams_in_real_time": most["windows_per_second"] * window_us / 1e6,
        "windows_lost": float(sum(row["windows_lost"] for row in rows)),
        "windows_differing": float(sum(row["windows_differing"] for row in rows)),
    }
    settings = {"model": model.stem, "window_us": window_us, "seconds": seconds}
    console.print(f"written: {results.save(name, __doc__ or '', settings, rows, ratios)}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except (NotMeasuredError, subprocess.SubprocessError) as error:
        sys.exit(f"streams were not measured: {error}")
