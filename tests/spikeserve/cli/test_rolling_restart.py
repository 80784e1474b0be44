"""Two servers behind a load balancer, restarted one after the other while requests come: none is lost."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import httpx
import pytest

from spikeserve.app import Server
from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spikeserve.grpc.v1.spikeserve_pb2_grpc import SpikeServeStub

pytestmark = pytest.mark.skipif(shutil.which("haproxy") is None, reason="needs haproxy")

CONFIGURATION = """
    defaults
        mode http
        timeout connect 5s
        timeout check 5s
        timeout client 60s
        timeout server 60s
        option redispatch 1
        retries 3
        # For a connection that the server closed in the moment in which it was used again.
        retry-on conn-failure empty-response
        option httpchk GET /health/ready
        default-server check inter 100 fall 1 rise 1
    listen rest
        bind 127.0.0.1:{http}
        server a 127.0.0.1:{a_http}
        server b 127.0.0.1:{b_http}
    listen grpc
        bind 127.0.0.1:{grpc} proto h2
        server a 127.0.0.1:{a_grpc} proto h2 check-proto h1 port {a_http}
        server b 127.0.0.1:{b_grpc} proto h2 check-proto h1 port {b_http}
"""
NAMES = ("http", "grpc", "a_http", "a_grpc", "b_http", "b_grpc")


def free_ports() -> dict[str, int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in NAMES]
        return {name: each.getsockname()[1] for name, each in zip(NAMES, sockets, strict=True)}


@contextlib.asynccontextmanager
async def balancer(file: Path) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        "haproxy", "-f", str(file), "-db", stderr=asyncio.subprocess.PIPE
    )
    try:
        yield
    finally:
        process.kill()
        await process.communicate()


class Load:
    """Clients that ask again and again, and what became of it."""

    def __init__(self) -> None:
        self.answered = 0
        self.failures: list[BaseException] = []
        self._stop = asyncio.Event()
        self._changed = asyncio.Event()
        self._clients: list[asyncio.Task[None]] = []

    def add(self, ask: Callable[[], Awaitable[object]]) -> None:
        self._clients.append(asyncio.create_task(self._run(ask)))

    async def more(self, requests: int) -> None:
        """Returns when so many more have been answered."""
        wanted = self.answered + requests
        async with asyncio.timeout(120):
            while self.answered < wanted and not self.failures:
                self._changed.clear()
                await self._changed.wait()

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._clients)

    async def _run(self, ask: Callable[[], Awaitable[object]]) -> None:
        while not self._stop.is_set():
            try:
                await ask()
                self.answered += 1
            except Exception as error:
                self.failures.append(error)
            self._changed.set()


async def answers(url: str, png: bytes) -> None:
    """Returns once the balancer has found a server."""
    async with httpx.AsyncClient() as http, asyncio.timeout(60):
        while True:
            with contextlib.suppress(httpx.TransportError):
                if (await http.post(url, content=png)).status_code == 200:
                    return
            await asyncio.sleep(0.05)


async def test_a_rolling_restart_loses_no_request(
    make_settings, tmp_path: Path, png: bytes
) -> None:
    ports = free_ports()

    async def started(name: str) -> Server:
        server = Server(
            make_settings(
                http_port=ports[f"{name}_http"],
                grpc_port=ports[f"{name}_grpc"],
                shutdown_delay_seconds=0.5,
                drain_seconds=30,
            )
        )
        await server.start()
        assert server.health.ready
        return server

    servers = {name: await started(name) for name in "ab"}
    url = f"http://127.0.0.1:{ports['http']}/classify"
    file = tmp_path / "haproxy.cfg"
    file.write_text(textwrap.dedent(CONFIGURATION).format(**ports))
    load = Load()
    try:
        async with (
            balancer(file),
            httpx.AsyncClient(timeout=60) as http,
            grpc.aio.insecure_channel(f"127.0.0.1:{ports['grpc']}") as channel,
        ):
            await answers(url, png)
            stub = SpikeServeStub(channel)

            async def over_http() -> None:
                (await http.post(url, content=png)).raise_for_status()

            async def over_grpc() -> None:
                await stub.Classify(pb.ClassifyRequest(image=png), wait_for_ready=True)

            for ask in (over_http, over_grpc) * 3:
                load.add(ask)
            for name in "ab":
                await load.more(20)
                await servers[name].stop()
                servers[name] = await started(name)
            await load.more(20)
            await load.stop()
    finally:
        await load.stop()
        for server in servers.values():
            await server.stop()
    assert [repr(each) for each in load.failures] == []
    assert load.answered >= 60
