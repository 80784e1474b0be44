"""What is lost when something goes wrong: real servers as processes, under load over HTTP and gRPC, and faults one by one.

A request counts as lost where it was sent and got no answer, or an error that is the server's fault. A refusal that
says so (503 or 429 with Retry-After, UNAVAILABLE, a port that nobody listens on) is counted apart: the client knows
that nothing was done and where it stands. Two servers stand behind a load balancer as in docs/operations.md, so that such
refusals do not reach the client. The Debian packages haproxy, nginx and libfaketime are needed for their rows only.

    python benchmarks/faults.py
"""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import grpc
import httpx
import numpy as np
import results
import typer
from fault_parts import Instance, Load, Outcome, balanced, damaged, load_on
from PIL import Image
from rich.console import Console
from rich.table import Table

from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spikeserve.grpc.v1.spikeserve_pb2_grpc import SpikeServeStub
from spikeserve.settings import BUNDLED_MODELS
from spiketrain.checkpoint import write_atomically

console = Console(width=140)
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
Row = dict[str, Any]

# A server whose executors fail in every 200th step.
FAILING = """
from spikeserve.repository import start
from spikeserve.cli import main
import itertools, sys
made = start.Chooser.__call__
steps = itertools.count(1)
def chosen(self):
    executor = made(self)
    step = executor.step
    def failing(slots, frames):
        if next(steps) % 200 == 0:
            raise RuntimeError("a fault on purpose")
        return step(slots, frames)
    executor.step = failing
    return executor
start.Chooser.__call__ = chosen
sys.argv = ["spikeserve", "serve"]
main()
"""


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models = folder / "models"
        self.picture = _picture()
        self.versions = [
            (BUNDLED_MODELS / f"{name}.safetensors").read_bytes()
            for name in ("fashion-clif", "fashion-lif")
        ]
        self.put(0)

    @property
    def file(self) -> Path:
        return self.models / "fashion" / "1.safetensors"

    def put(self, which: int) -> None:
        write_atomically(self.file, self.versions[which % len(self.versions)])

    def instance(self, name: str, **settings: object) -> Instance:
        return Instance(self.models, self.folder / f"{name}.log", **settings)

    # The faults. Each returns what became of the requests, and what else there is to say.

    async def sigterm(self) -> tuple[Outcome, str]:
        server = self.instance("sigterm", drain_seconds=30)
        await server.start()
        load = Load(server.http, server.grpc, self.picture, 8)
        load.start()
        await load.answered(300)
        ending = asyncio.create_task(server.end())
        await asyncio.sleep(0.5)
        outcome = await load.stop()
        return outcome, f"exit status {await ending}"

    async def rolling(self) -> tuple[Outcome, str]:
        pair = [self.instance(name, shutdown_delay_seconds=1, drain_seconds=30) for name in "ab"]
        for each in pair:
            await each.start()
        async with balanced(self.folder, *pair) as (http, rpc):
            load = Load(http, rpc, self.picture)
            load.start()
            for each in pair * 2:
                await load.answered(100)
                await each.end()
                await each.start()
            await load.answered(100)
            outcome = await load.stop()
        for each in pair:
            await each.end()
        return outcome, "4 restarts"

    async def sigkill(self) -> tuple[Outcome, str]:
        pair = [self.instance(f"kill-{name}") for name in "ab"]
        for each in pair:
            await each.start()
        async with balanced(self.folder, *pair, which="nginx") as (http, rpc):
            load = Load(http, rpc, self.picture)
            load.start()
            for each in pair * 2:
                await load.answered(100)
                await each.end(signal.SIGKILL)
                await load.answered(100)
                await each.start()
                await asyncio.sleep(2)  # nginx tries it again a second after it failed last
            outcome = await load.stop()
        for each in pair:
            await each.end()
        return outcome, "4 kills"

    async def reloads(self) -> tuple[Outcome, str]:
        server = self.instance("reloads", executor="reference")
        await server.start()
        url = f"{server.http}/models/fashion/load"
        async with load_on(server, self.picture) as load, httpx.AsyncClient(timeout=60) as http:
            for number in range(100):
                self.put(number + 1)
                (await http.post(url)).raise_for_status()
                await load.answered(5)
            await load.answered(100)
        loads = await server.metric('spikeserve_model_loads_total{model="fashion",outcome="loaded"')
        await asyncio.sleep(1)
        threads = len(os.listdir(f"/proc/{server._process.pid}/task")) if server._process else 0
        await server.end()
        return load.outcome, f"{loads - 1:.0f} reloads, {threads} threads at the end"

    async def corrupt(self) -> tuple[Outcome, str]:
        server = self.instance("corrupt", watch=True)
        await server.start()
        good = self.file.read_bytes()
        async with load_on(server, self.picture) as load, httpx.AsyncClient() as http:
            for content in damaged(good):
                await load.answered(20)
                self.file.write_bytes(content)
                (state,) = [await _fault(http, server.http)]
                if state["state"] != "ready":
                    raise RuntimeError(f"the working model is {state['state']}")
            self.file.write_bytes(good)
            await load.answered(20)
        await server.end()
        self.put(0)
        return load.outcome, f"5 files, the last: {state['reason'].rpartition('/')[2]}"

    async def silent_readers(self) -> tuple[Outcome, str]:
        server = self.instance("silent", drain_seconds=1)
        shutil.copy(BUNDLED_MODELS / "nmnist-clif.safetensors", self.models)
        await server.start()
        many = pb.EventMessage(advance=pb.Advance(time_us=10_000_000))
        async with (
            load_on(server, self.picture) as load,
            grpc.aio.insecure_channel(server.grpc) as channel,
        ):
            streams = [SpikeServeStub(channel).StreamEvents() for _ in range(50)]
            for stream in streams:
                await stream.write(pb.EventMessage(open=pb.OpenStream(start_us=0, rates=True)))
                await stream.write(pb.EventMessage(events=_one_event()))
                await stream.write(many)  # a thousand windows, whose answers nobody reads
            await load.answered(300)
            memory = await server.metric("process_resident_memory_bytes")
            for stream in streams:
                stream.cancel()
        await server.end()
        (self.models / "nmnist-clif.safetensors").unlink()
        return load.outcome, f"50 streams, {memory / 2**20:.0f} MiB"

    async def one_byte(self) -> tuple[Outcome, str]:
        server = self.instance("onebyte")
        await server.start()
        held = []
        async with load_on(server, self.picture) as load:
            for port in (server.http_port, server.grpc_port):
                for _ in range(1000):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.write(b"P")
                    held.append(writer)
            await load.answered(300)
        for writer in held:
            writer.close()
        await server.end()
        return load.outcome, "1,000 connections to each port"

    async def clock(self) -> tuple[Outcome, str]:
        server = self.instance("clock")
        moment = self.folder / "clock"
        moment.write_text("+0d")
        await server.start(
            LD_PRELOAD=str(FAKETIME),
            FAKETIME_TIMESTAMP_FILE=str(moment),
            FAKETIME_NO_CACHE="1",
            FAKETIME_DONT_FAKE_MONOTONIC="1",
        )
        async with load_on(server, self.picture) as load:
            for jump in ("+1d", "-1d", "+3600", "-3600", "+0d"):
                await load.answered(50)
                moment.write_text(jump)
            await load.answered(50)
        await server.end()
        days = {line[:10] for line in server.log.read_text().splitlines() if line[:2] == "20"}
        return load.outcome, f"a day and an hour to and fro, {len(days)} dates in the log"

    async def executor(self) -> tuple[Outcome, str]:
        server = self.instance("executor", executor="reference")
        await server.start(("-c", FAILING))
        async with load_on(server, self.picture) as load:
            await load.answered(800)
        crashes = await server.metric("spikeserve_engine_restarts_total")
        await server.end()
        return load.outcome, f"{crashes:.0f} exceptions"


def _picture() -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _one_event() -> pb.EventPacket:
    return pb.EventPacket(payload=bytes(8), base_us=0)


async def _fault(http: httpx.AsyncClient, url: str) -> dict[str, Any]:
    """The model, once the server has seen that its file is broken."""
    async with asyncio.timeout(60):
        while True:
            (model,) = (await http.get(f"{url}/models")).json()["models"]
            if model["reason"] is not None:
                return dict(model)
            await asyncio.sleep(0.05)


Fault = Callable[[Bench], Awaitable[tuple[Outcome, str]]]
FAULTS: dict[str, tuple[str, Fault, Path | None]] = {
    "sigterm": ("SIGTERM under load", Bench.sigterm, None),
    "rolling": ("rolling restart of two", Bench.rolling, Path("/usr/sbin/haproxy")),
    "sigkill": ("SIGKILL of one of two", Bench.sigkill, Path("/usr/sbin/nginx")),
    "reloads": ("hot reload 100 times", Bench.reloads, None),
    "corrupt": ("corrupt model, watched", Bench.corrupt, None),
    "silent": ("clients that never read", Bench.silent_readers, None),
    "onebyte": ("connections that send one byte", Bench.one_byte, None),
    "clock": ("clock jumps", Bench.clock, FAKETIME),
    "executor": ("exceptions inside the executor", Bench.executor, None),
}


async def _measured(name: str) -> Row | None:
    title, fault, needs = FAULTS[name]
    if needs is not None and not needs.exists():
        console.print(f"{title}: left out, {needs} is not there")
        return None
    console.print(f"{title} ...")
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        outcome, note = await fault(Bench(Path(folder)))
    return {
        "fault": title,
        "answered": outcome.answered,
        "refused": outcome.refused,
        "lost": sum(outcome.lost.values()),
        "how": dict(outcome.lost),
        "slowest_seconds": outcome.slowest,
        "seconds": time.monotonic() - began,
        "note": note,
    }


def main(
    only: Annotated[list[str] | None, typer.Option(help=f"of {', '.join(FAULTS)}")] = None,
) -> None:
    rows = [row for name in only or FAULTS if (row := asyncio.run(_measured(name))) is not None]
    table = Table(box=None)
    for title in ("fault", "answered", "refused", "lost", "slowest", "note"):
        table.add_column(title)
    for row in rows:
        how = "".join(f", {count} {what}" for what, count in row["how"].items())
        cells = (row["fault"], row["answered"], row["refused"], f"{row['lost']}{how}")
        table.add_row(*map(str, cells), f"{row['slowest_seconds']:.2f} s", row["note"])
    console.print(table)
    lost = {"lost_requests": float(sum(row["lost"] for row in rows))}
    if only is None:
        results.save("faults", __doc__ or "", {}, rows, lost)
    raise typer.Exit(int(lost["lost_requests"] > 0))


if __name__ == "__main__":
    typer.run(main)
