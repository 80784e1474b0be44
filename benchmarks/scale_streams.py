"""What a stream costs while it is open: memory and processor time of streams that wait, of windows, and the bytes of a state.

Idle: streams of the bundled nmnist-clif, each on a connection of its own as cameras have, are opened, answered one window, and left
alone. Memory a stream is what the server's processes grew by from the first part of the streams to the last; what the first ones bring with them
is not in it. Windows: cameras in real time, as many as leave the processor half idle. The state is what a snapshot holds; the bytes
of a window are those of its messages.

    python benchmarks/scale_streams.py --streams 1000
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import grpc
import results
import typer
from load import connect
from processes import NotMeasuredError, Running, stop_when_told
from rich.console import Console
from scale import request
from scale_servers import Subject, place
from stream_clients import Clients, Stream, run

from spikeserve.engine.executor import Sample
from spikeserve.engine.reference import ReferenceExecutor
from spikeserve.settings import BUNDLED_MODELS
from spiketrain.checkpoint import load_checkpoint
from spiketrain.energy import fan_out
from spiketrain.manifest import DurationWindow, EventInput

MODEL = BUNDLED_MODELS / "nmnist-clif.safetensors"
PARTS = 4
REAL_TIME = 10
Row = dict[str, Any]

console = Console(width=150, highlight=False)


def state_bytes(path: Path) -> int:
    """Of a stream's state, as it is saved."""
    checkpoint = load_checkpoint(path)
    network = checkpoint.network()
    executor = ReferenceExecutor(network, 1, fan_out(network))
    executor.admit(0, Sample())
    return len(executor.save(0))


async def idle(
    server: Running, target: str, count: int, window_us: int, seconds: float
) -> list[Row]:
    """Memory and processor time after each part of the streams."""
    clients = Clients(target, window_us)
    await clients.close()
    rows: list[Row] = []
    streams: list[Stream] = []
    each = count // PARTS
    for _ in range(PARTS):
        options = [("grpc.use_local_subchannel_pool", 1)]
        clients.channels = [grpc.aio.insecure_channel(target, options) for _ in range(each)]
        more = await clients.open(each)
        for stream in more:
            await stream.send(0, 0.0)
            await stream.receive()
        streams += more
        await asyncio.sleep(1.0)
        begun, began = server.usage(), time.perf_counter()
        await asyncio.sleep(seconds)
        spent = server.usage().cpu_seconds - begun.cpu_seconds
        cores = spent / (time.perf_counter() - began)
        rows.append(
            {
                "part": "idle",
                "streams": len(streams),
                "memory_mib": begun.memory / (1 << 20),
                "cores": cores,
            }
        )
        console.print(rows[-1])
    return rows


async def windows(server: Running, target: str, window_us: int, seconds: float) -> Row:
    clients = Clients(target, window_us)
    marks: list[tuple[float, float]] = []

    def mark() -> None:
        marks.append((server.usage().cpu_seconds, time.perf_counter()))

    streams = await run(clients, REAL_TIME, seconds, 1.0, mark)
    mark()
    await clients.close()
    (began_cpu, began), (ended_cpu, ended) = marks
    answered = sum(len(stream.answered) for stream in streams)
    sizes = [
        sum(map(len, source.messages(k)))
        for source in clients.sources
        for k in range(source.windows)
    ]
    answers = [len(answer) for stream in streams for answer in stream.answers]
    return {
        "part": "windows", "streams": REAL_TIME, "windows_a_second": answered / (ended - began),
        "processor_ms": 1e3 * (ended_cpu - began_cpu) / answered,
        "bytes_in": sum(sizes) / len(sizes), "bytes_out": sum(answers) / len(answers),
    }  # fmt: skip


async def reply_bytes(port: int) -> int:
    connection = await connect(port)
    _, body = await connection.ask(request())
    connection.transport.close()
    return len(body)


def main(
    streams: Annotated[int, typer.Option(help="how many are left open")] = 1000,
    seconds: Annotated[float, typer.Option(help="of each measurement")] = 5.0,
    name: Annotated[str, typer.Option(help="of the file in results/")] = "scale-streams",
) -> None:
    manifest = load_checkpoint(MODEL).manifest
    if not isinstance(manifest.input, EventInput) or not isinstance(
        manifest.input.window, DurationWindow
    ):
        raise NotMeasuredError("the model's windows are no durations")
    window_us = manifest.input.window.microseconds
    subject = Subject("streams", MODEL, slots=32, max_queue=256)
    with tempfile.TemporaryDirectory() as folder, place(subject, 1, Path(folder)) as where:
        (server,) = where.servers
        target = f"127.0.0.1:{where.port + 1}"
        before = server.usage().memory / (1 << 20)
        rows: list[Row] = [asyncio.run(windows(server, target, window_us, seconds))]
        console.print(rows[0])
        rows += asyncio.run(idle(server, target, streams, window_us, seconds))
    first, last = rows[1], rows[-1]
    grown = (last["memory_mib"] - first["memory_mib"]) * (1 << 20)
    each = grown / (last["streams"] - first["streams"])
    pictures = Subject("pictures", BUNDLED_MODELS / "fashion-clif.safetensors", 32, 256)
    with tempfile.TemporaryDirectory() as folder, place(pictures, 1, Path(folder)) as where:
        reply = asyncio.run(reply_bytes(where.port))
        resting = where.servers[0].usage().memory / (1 << 20)
    rows.append(
        {"part": "picture", "bytes_in": len(request()), "bytes_out": reply, "memory_mib": resting}
    )
    ratios = {
        "bytes_a_stream": each,
        "state_bytes": float(state_bytes(MODEL)),
        "cores_idle": last["cores"],
        "memory_mib_before": before,
    }
    console.print(ratios)
    settings = {"model": manifest.name, "streams": streams, "window_us": window_us}
    console.print(f"written: {results.save(name, __doc__ or '', settings, rows, ratios)}")


if __name__ == "__main__":
    stop_when_told()
    try:
        typer.run(main)
    except NotMeasuredError as error:
        sys.exit(f"not measured: {error}")
