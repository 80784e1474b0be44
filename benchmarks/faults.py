"""What is lost when something goes wrong: real servers as processes, under load over HTTP and gRPC, and faults one by one.

A request counts as lost where it was sent and got no answer, or an error that is the server's fault. A refusal that
says so (503 or 429 with Retry-After, UNAVAILABLE, a port that nobody listens on) is counted apart: the client knows
that nothing was done and where it stands. Two servers stand behind a load balancer as in docs/operations.md, so that such
refusals do not reach the client. The Debian packages haproxy, redis-server and libfaketime are needed for their rows only.

    python benchmarks/faults.py
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import json
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
from fault_parts import (
    Instance,
    Load,
    Outcome,
    balanced,
    damaged,
    free_ports,
    load_on,
    streamed,
)
from PIL import Image
from rich.console import Console
from rich.table import Table

from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spikeserve.grpc.v1.spikeserve_pb2_grpc import SpikeServeStub
from spikeserve.settings import BUNDLED_MODELS
from spiketrain.checkpoint import write_atomically
from spiketrain.events import wire
from spiketrain.events.types import Events

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
        async with balanced(self.folder, *pair, gateway=True) as (http, rpc):
            load = Load(http, rpc, self.picture, retrying=True)
            load.start()
            for each in pair * 2:
                await load.answered(100)
                await each.end(signal.SIGKILL)
                await load.answered(100)
                await each.start()
                await asyncio.sleep(2)  # the gateway asks every half second
            outcome = await load.stop()
        for each in pair:
            await each.end()
        return (
            outcome,
            f"4 kills; {load.repeated} pictures sent again by their HTTP clients, those over gRPC as their channel does",
        )

    async def killed_streams(self) -> tuple[Outcome, str]:
        shutil.copy(BUNDLED_MODELS / "nmnist-clif.safetensors", self.models)
        settings = {"snapshots": self.folder / "snapshots", "snapshot_interval_seconds": 1}
        pair = [self.instance(f"streams-{name}", **settings) for name in "ab"]
        for each in pair:
            await each.start()
        async with balanced(self.folder, *pair, gateway=True) as (_, rpc):
            whole, _ = await streamed(pair[0].grpc, 10)
            tasks = [asyncio.create_task(streamed(rpc, 10)) for _ in range(16)]
            await asyncio.sleep(4)
            await pair[0].end(signal.SIGKILL)
            results = await asyncio.gather(*tasks, return_exceptions=True)
        await pair[1].end()
        outcome, moved = Outcome(), 0
        for result in results:
            if isinstance(result, BaseException):
                outcome.lost[type(result).__name__] += len(whole)
                continue
            answers, reconnects = result
            moved += reconnects > 0
            same = len(set(answers) & set(whole))
            outcome.answered += same
            outcome.lost["windows"] += len(whole) - same
        outcome.lost = +outcome.lost
        return outcome, f"16 streams, {moved} of them at the one that was killed; windows"

    async def full_disk(self) -> tuple[Outcome, str]:
        disk = self.folder / "disk"
        disk.mkdir()
        await _shell("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk))
        try:
            (disk / "full").write_bytes(bytes(60 << 10))
            return await self._without_store(str(disk), None)
        finally:
            await _shell("umount", "-l", str(disk))

    async def no_redis(self) -> tuple[Outcome, str]:
        (port,) = free_ports(1)
        redis = await asyncio.create_subprocess_exec(
            *("/usr/bin/redis-server", "--port", str(port), "--save", ""),
            stdout=asyncio.subprocess.DEVNULL,
        )
        return await self._without_store(f"redis://127.0.0.1:{port}/0", redis)

    async def _without_store(
        self, store: str, redis: asyncio.subprocess.Process | None
    ) -> tuple[Outcome, str]:
        """Streams whose connections break, beside pictures, while their store fails."""
        shutil.copy(BUNDLED_MODELS / "nmnist-clif.safetensors", self.models)
        server = self.instance("store", snapshots=store, snapshot_interval_seconds=0.2)
        await server.start()
        async with load_on(server, self.picture) as load:
            tasks = [asyncio.create_task(streamed(server.grpc, 5)) for _ in range(4)]
            await asyncio.sleep(2)
            if redis is not None:
                redis.kill()
                await redis.wait()
            results = await asyncio.gather(*tasks)
            await load.answered(50)
        failed = await server.metric('spikeserve_snapshots_total{outcome="failed"')
        await server.end()
        most = max(len(answers) for answers, _ in results)
        windows = sum(len(answers) for answers, _ in results)
        load.outcome.lost["windows"] += 4 * most - windows
        load.outcome.lost = +load.outcome.lost
        return load.outcome, f"4 streams, {windows} windows; {failed:.0f} attempts to save failed"

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
        server = self.instance("silent", drain_seconds=1, slow_seconds=0.2)
        shutil.copy(BUNDLED_MODELS / "nmnist-clif.safetensors", self.models)
        await server.start()
        before = await server.metric("process_resident_memory_bytes")
        # Each beyond what the transport of its own connection holds.
        fixed = [("http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1)]
        policies = (pb.SLOW_CLIENT_WAIT, pb.SLOW_CLIENT_DROP_OLDEST, pb.SLOW_CLIENT_REFUSE, pb.SLOW_CLIENT_CLOSE)  # fmt: skip
        async with load_on(server, self.picture) as load:
            channels = [grpc.aio.insecure_channel(server.grpc, fixed) for _ in range(48)]
            streams = [SpikeServeStub(channel).StreamEvents() for channel in channels]
            writers = [
                asyncio.create_task(_never_read(stream, policies[number % 4]))
                for number, stream in enumerate(streams)
            ]
            await load.answered(300)
            await _each_policy(server)
            memory = await server.metric("process_resident_memory_bytes") - before
            dropped = await server.metric("spikeserve_stream_answers_dropped_total")
            refused = await server.metric("spikeserve_stream_messages_refused_total")
            ended = await server.metric('spikeserve_streams_ended_total{reason="slow"')
            for stream, writer in zip(streams, writers, strict=True):
                writer.cancel()
                stream.cancel()
            for channel in channels:
                await channel.close()
        await server.end()
        (self.models / "nmnist-clif.safetensors").unlink()
        what = f"{dropped:.0f} answers dropped, {refused:.0f} messages refused, {ended:.0f} ended"
        return load.outcome, f"48 streams, 12 of each policy: {what}; {memory / 2**20:.0f} MiB more"

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


async def _never_read(stream: Any, policy: pb.SlowClient.ValueType) -> None:
    """A window for each event, and its answer, as long as the server takes them."""
    await stream.write(pb.EventMessage(open=pb.OpenStream(start_us=0, rates=True, slow=policy)))
    with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
        for number in itertools.count():
            times = np.arange(50) * 100_000 + number * 5_000_000
            zero = np.zeros(50, np.uint16)
            payload, base = wire.encode(
                wire.Encoding.COLUMNS_V1, Events(times, zero, zero, zero.astype(np.uint8))
            )
            await stream.write(
                pb.EventMessage(events=pb.EventPacket(payload=payload, base_us=base))
            )


async def _each_policy(server: Instance) -> None:
    """Returns when each of the clients that never read has met its policy."""
    async with asyncio.timeout(120):
        while True:
            dropped = await server.metric("spikeserve_stream_answers_dropped_total")
            refused = await server.metric("spikeserve_stream_messages_refused_total")
            ended = await server.metric('spikeserve_streams_ended_total{reason="slow"')
            if dropped and refused and ended >= 12:
                return
            await asyncio.sleep(0.5)


async def _shell(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(*command)
    if await process.wait():
        raise RuntimeError(f"{' '.join(command)} failed")


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
    "sigkill": ("SIGKILL of one of two", Bench.sigkill, Path("/usr/sbin/haproxy")),
    "streams": (
        "SIGKILL of one of two with streams",
        Bench.killed_streams,
        Path("/usr/sbin/haproxy"),
    ),
    "disk": ("full disk on snapshots", Bench.full_disk, None),
    "redis": ("Redis killed", Bench.no_redis, Path("/usr/bin/redis-server")),
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
    failed = any(row["lost"] for row in rows)
    file = results.RESULTS / "faults.json"
    if only is not None and file.exists():
        # What was measured before stays.
        new = {row["fault"]: row for row in rows}
        old = {row["fault"]: row for row in json.loads(file.read_text())["rows"]}
        titles = [title for title, *_ in FAULTS.values()]
        rows = [{**old, **new}[title] for title in titles if title in {**old, **new}]
    lost = {"lost": float(sum(row["lost"] for row in rows))}
    results.save("faults", __doc__ or "", {}, rows, lost)
    raise typer.Exit(int(failed))


if __name__ == "__main__":
    typer.run(main)
