"""Two servers behind the gateway of deploy/gateway: streams come back to the one that has their state."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from spikeserve.app import Server
from spikeserve.client import AsyncStreamClient, Window, cut
from spiketrain.events.types import Events

CONFIGURATION = Path(__file__).parents[3] / "deploy" / "gateway" / "haproxy.cfg"
STREAMS = 16
LONG = 60


class Gateway:
    """HAProxy, which can be killed and started again on the same ports."""

    def __init__(self, one: Server, two: Server) -> None:
        self.http, self.grpc = _free_ports(2)
        self._environment = {
            **os.environ,
            "BIND_HTTP": f"127.0.0.1:{self.http}",
            "BIND_GRPC": f"127.0.0.1:{self.grpc}",
            "SPIKESERVE_1": "127.0.0.1",
            "SPIKESERVE_2": "127.0.0.1",
            "HTTP_1": str(one.http_port),
            "HTTP_2": str(two.http_port),
            "GRPC_1": str(one.grpc_port),
            "GRPC_2": str(two.grpc_port),
        }
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            _haproxy(), "-db", "-f", str(CONFIGURATION), env=self._environment
        )
        async with httpx.AsyncClient() as client:
            for _ in range(LONG * 20):
                try:
                    reply = await client.get(f"http://127.0.0.1:{self.http}/health/ready")
                    if reply.status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                assert self._process.returncode is None, "the gateway has ended"
                await asyncio.sleep(0.05)
        raise AssertionError("the gateway is not ready")

    async def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        await self._process.wait()


def _haproxy() -> str:
    # Debian has it where only root looks.
    return shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or ""


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


pytestmark = pytest.mark.skipif(not _haproxy(), reason="haproxy is not installed")


@asynccontextmanager
async def behind(one: Server, two: Server) -> AsyncIterator[Gateway]:
    gateway = Gateway(one, two)
    await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.kill()


def facts(windows: list[Window]) -> list[tuple[Any, ...]]:
    return [(w.index, w.start_us, w.end_us, w.events, w.predictions, w.raw) for w in windows]


async def test_streams_come_back_to_the_server_that_has_them(running: Any, events: Events) -> None:
    async with running() as one, running() as two, behind(one, two) as gateway:
        async with AsyncStreamClient(f"127.0.0.1:{one.grpc_port}") as client:
            whole = [w async for w in client.stream(cut(events), start_us=0)]
        half, all_begun = asyncio.Event(), asyncio.Event()
        begun = 0

        async def follow(client: AsyncStreamClient) -> tuple[list[Window], int]:
            nonlocal begun
            windows: list[Window] = []

            async def packets() -> AsyncIterator[Events]:
                for i, packet in enumerate(cut(events)):
                    if i == 4:
                        await half.wait()
                    yield packet  # type: ignore[misc]

            stream = client.stream(packets(), start_us=0)
            async for window in stream:
                windows.append(window)
                if window.index == 1:
                    begun += 1
                    if begun == STREAMS:
                        all_begun.set()
            return windows, stream.reconnects

        # A connection for each, as cameras have.
        clients = [AsyncStreamClient(f"127.0.0.1:{gateway.grpc}") for _ in range(STREAMS)]
        tasks = [asyncio.create_task(follow(client)) for client in clients]
        async with asyncio.timeout(LONG):
            await all_begun.wait()
        served = [
            each.metrics.registry.get_sample_value("spikeserve_open_streams") for each in (one, two)
        ]
        assert sum(served) == STREAMS
        assert min(served) > 0
        await gateway.kill()
        await gateway.start()
        half.set()
        async with asyncio.timeout(LONG):
            results = await asyncio.gather(*tasks)
        for client in clients:
            await client.close()
        for windows, reconnects in results:
            assert reconnects >= 1
            assert facts(windows) == facts(whole)


async def test_pictures_go_to_the_other_server_when_one_is_stopped(
    running: Any, png: bytes
) -> None:
    async with running() as one:
        # Long enough for the gateway to notice that it is not ready any more.
        leaving = {"shutdown_delay_seconds": 2, "drain_seconds": 30}
        async with running(**leaving) as two, behind(one, two) as gateway:
            statuses: list[int] = []
            some = asyncio.Event()

            async def ask(count: int) -> None:
                async with httpx.AsyncClient() as client:
                    for _ in range(count):
                        url = f"http://127.0.0.1:{gateway.http}/classify"
                        statuses.append((await client.post(url, content=png)).status_code)
                        if len(statuses) == 20:
                            some.set()

            asking = [asyncio.create_task(ask(30)) for _ in range(4)]
            await some.wait()
            await two.stop()
            await asyncio.gather(*asking)
        assert statuses == [200] * 120


async def test_streams_go_on_at_the_other_server_when_one_is_terminated(
    running: Any, model_folder: Path, tmp_path: Path, events: Events
) -> None:
    """kill -TERM of the process that has half of the streams."""
    ports = dict(zip(("http", "grpc"), _free_ports(2), strict=True))
    store = str(tmp_path / "snapshots")
    given = [f"SPIKESERVE_{name}_PORT={port}" for name, port in ports.items()]
    environment = {
        **os.environ,
        **dict(each.split("=") for each in given),
        "SPIKESERVE_MODELS": str(model_folder),
        "SPIKESERVE_EXECUTOR": "reference",
        "SPIKESERVE_TORCH_THREADS": "1",
        "SPIKESERVE_SLOTS": "4",
        "SPIKESERVE_SHUTDOWN_DELAY_SECONDS": "1.5",
        "SPIKESERVE_SNAPSHOTS": store,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "spikeserve", "serve", env=environment
    )
    one = SimpleNamespace(http_port=ports["http"], grpc_port=ports["grpc"])
    try:
        await _ready(ports["http"])
        async with running(snapshots=store) as two, behind(one, two) as gateway:  # type: ignore[arg-type]
            async with AsyncStreamClient(f"127.0.0.1:{two.grpc_port}") as client:
                whole = [w async for w in client.stream(cut(events), start_us=0)]
            go_on, all_begun = asyncio.Event(), asyncio.Event()
            begun: set[int] = set()

            async def follow(number: int) -> tuple[list[Window], int, int]:
                async def packets() -> AsyncIterator[Events]:
                    for i, packet in enumerate(cut(events)):
                        if i == 4:
                            await go_on.wait()
                        yield packet  # type: ignore[misc]

                windows: list[Window] = []
                async with AsyncStreamClient(f"127.0.0.1:{gateway.grpc}") as client:
                    stream = client.stream(packets(), start_us=0)
                    async for window in stream:
                        windows.append(window)
                        begun.add(number)
                        if len(begun) == STREAMS:
                            all_begun.set()
                return windows, stream.reconnects, stream.lost_windows

            tasks = [asyncio.create_task(follow(number)) for number in range(STREAMS)]
            async with asyncio.timeout(LONG):
                await all_begun.wait()
            here = len(two.streams)
            assert 0 < here < STREAMS
            process.terminate()
            async with asyncio.timeout(LONG):
                for _ in range(LONG * 20):
                    if len(two.streams) == STREAMS or any(task.done() for task in tasks):
                        break
                    await asyncio.sleep(0.05)
                go_on.set()
                results = await asyncio.gather(*tasks)
                assert await process.wait() == 0
            for windows, _, lost in results:
                assert facts(windows) == facts(whole)
                assert lost == 0
            moved = sum(reconnects > 0 for _, reconnects, _ in results)
            assert moved == STREAMS - here
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _ready(port: int) -> None:
    async with httpx.AsyncClient() as client:
        for _ in range(LONG * 20):
            with contextlib.suppress(httpx.TransportError):
                if (await client.get(f"http://127.0.0.1:{port}/health/ready")).status_code == 200:
                    return
            await asyncio.sleep(0.05)
    raise AssertionError("the server is not ready")
