"""What faults.py is made of: a server as a process, clients that note what became of each request, a load balancer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import textwrap
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx
import numpy as np

from spikeserve.client import RETRY_OPTIONS, AsyncStreamClient, cut, paced
from spikeserve.client.retries import DEFAULT_RETRIES, Attempts
from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spikeserve.grpc.v1.spikeserve_pb2_grpc import SpikeServeStub
from spiketrain.events.types import Events

# What a server may answer that does not answer: it says that another attempt will be.
_RETRY_AFTER = 1.0  # what the server says with a refusal
_REFUSED_HTTP = (429, 503)
_REFUSED_GRPC = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)

BALANCER = """
    defaults
        mode http
        timeout connect 5s
        timeout check 5s
        timeout client 60s
        timeout server 60s
        option redispatch 1
        retries 3
        retry-on conn-failure empty-response response-timeout
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


GATEWAY = Path(__file__).parent.parent / "deploy" / "gateway" / "haproxy.cfg"


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [each.getsockname()[1] for each in sockets]


class Instance:
    """`spikeserve serve`, or another command that serves; its log is a file."""

    def __init__(
        self, models: Path, log: Path, ports: Sequence[int] | None = None, **settings: object
    ) -> None:
        self.http_port, self.grpc_port = ports or free_ports(2)
        self.models = models
        self.log = log
        self._settings = settings
        self._process: asyncio.subprocess.Process | None = None

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("it was not started")
        return self._process.pid

    async def start(
        self, command: Sequence[str] = ("-m", "spikeserve", "serve"), **variables: str
    ) -> None:
        given = {
            "models": self.models,
            "http_port": self.http_port,
            "grpc_port": self.grpc_port,
            "torch_threads": 1,
            "admin": "open",
        } | self._settings
        environment = {f"SPIKESERVE_{name.upper()}": str(value) for name, value in given.items()}
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, *command, env=os.environ | environment | variables, stderr=log
            )
        await self.ready()

    async def ready(self) -> None:
        async with httpx.AsyncClient() as http, asyncio.timeout(120):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if (await http.get(f"{self.http}/health/ready")).status_code == 200:
                        return
                await asyncio.sleep(0.05)

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """The exit status."""
        if self._process is None:
            return 0
        if self._process.returncode is None:
            self._process.send_signal(number)
        return await self._process.wait()

    async def metric(self, name: str) -> float:
        """The sum over all labels."""
        async with httpx.AsyncClient() as http:
            lines = (await http.get(f"{self.http}/metrics")).text.splitlines()
        found = [line for line in lines if line.startswith(name)]
        return sum(float(line.rpartition(" ")[2]) for line in found)


@dataclass
class Outcome:
    """What became of requests: answered; refused in so many words; lost, by how."""

    answered: int = 0
    refused: int = 0
    slowest: float = 0.0
    lost: Counter[str] = field(default_factory=Counter)


class Load:
    """Clients over HTTP and gRPC that ask one picture after the other, from `start` to `stop`."""

    def __init__(
        self,
        http: str,
        grpc_address: str,
        picture: bytes,
        clients: int = 4,
        retrying: bool = False,
    ) -> None:
        self._retrying = retrying
        self._options = RETRY_OPTIONS if retrying else []
        self.repeated = 0
        self.outcome = Outcome()
        self._http, self._grpc, self._picture = http, grpc_address, picture
        self._clients = clients
        self._stopping = False
        self._more = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        for each in (self._over_http, self._over_grpc) * self._clients:
            self._tasks.append(asyncio.create_task(each()))

    async def answered(self, more: int) -> None:
        wanted = self.outcome.answered + more
        async with asyncio.timeout(300):
            while self.outcome.answered < wanted:
                self._more.clear()
                await self._more.wait()

    def let_go(self) -> None:
        """What is asked from now on is not counted: each client finishes what it has begun."""
        self._stopping = True

    async def stop(self) -> Outcome:
        self.let_go()
        await asyncio.gather(*self._tasks)
        return self.outcome

    async def _over_http(self) -> None:
        async with httpx.AsyncClient(timeout=60) as http:
            while not self._stopping:
                began = time.monotonic()
                try:
                    reply = await self._posted(http)
                except httpx.ConnectError:
                    self.outcome.refused += 1  # nothing was sent
                    await asyncio.sleep(0.05)
                except httpx.HTTPError as error:
                    self.outcome.lost[type(error).__name__] += 1
                else:
                    refused = reply.status_code in _REFUSED_HTTP
                    self._count(reply.status_code == 200, refused, str(reply.status_code), began)
                    if refused:
                        await asyncio.sleep(_RETRY_AFTER)

    async def _posted(self, http: httpx.AsyncClient) -> httpx.Response:
        """As the package's client sends it, where `retrying`."""
        attempts = Attempts(DEFAULT_RETRIES if self._retrying else 0, 60)
        while True:
            try:
                reply = await http.post(f"{self._http}/classify", content=self._picture)
                pause = attempts.pause(reply)
            except httpx.TransportError as error:
                pause = attempts.pause(error)
                if pause is None:
                    raise
            if pause is None:
                return reply
            self.repeated += 1
            await asyncio.sleep(pause)

    async def _over_grpc(self) -> None:
        async with grpc.aio.insecure_channel(self._grpc, self._options) as channel:
            stub = SpikeServeStub(channel)
            while not self._stopping:
                began = time.monotonic()
                try:
                    await stub.Classify(pb.ClassifyRequest(image=self._picture), timeout=60)
                except grpc.aio.AioRpcError as error:
                    trailing = error.trailing_metadata() or ()
                    # Ours says which error it is; without it, the connection broke, or was never there.
                    ours = any(name == "error-type" for name, _ in trailing)
                    unsent = "connect" in (error.details() or "").lower()
                    refused = error.code() in _REFUSED_GRPC and (ours or unsent)
                    self._count(False, refused, error.code().name, began)
                    if refused:
                        await asyncio.sleep(_RETRY_AFTER)
                else:
                    self._count(True, False, "", began)

    def _count(self, answered: bool, refused: bool, how: str, began: float) -> None:
        if answered:
            self.outcome.answered += 1
            self._more.set()
            self.outcome.slowest = max(self.outcome.slowest, time.monotonic() - began)
        elif refused:
            self.outcome.refused += 1
        else:
            self.outcome.lost[how] += 1


@contextlib.asynccontextmanager
async def load_on(instance: Instance, picture: bytes, clients: int = 4) -> AsyncIterator[Load]:
    load = Load(instance.http, instance.grpc, picture, clients)
    load.start()
    try:
        yield load
    finally:
        await load.stop()


@contextlib.asynccontextmanager
async def balanced(
    folder: Path, a: Instance, b: Instance, gateway: bool = False
) -> AsyncIterator[tuple[str, str]]:
    """haproxy before both, set up as docs/operations.md or (`gateway`) deploy/gateway has it; its address for HTTP and for gRPC."""
    http, rpc = free_ports(2)
    ports = {"http": http, "grpc": rpc, "a_http": a.http_port, "a_grpc": a.grpc_port}
    ports |= {"b_http": b.http_port, "b_grpc": b.grpc_port}
    file = folder / "haproxy.conf"
    text = textwrap.dedent(BALANCER).format(folder=folder, **ports)
    await asyncio.to_thread(file.write_text, text)
    of_gateway = {
        "BIND_HTTP": f"127.0.0.1:{http}",
        "BIND_GRPC": f"127.0.0.1:{rpc}",
        "SPIKESERVE_1": "127.0.0.1",
        "SPIKESERVE_2": "127.0.0.1",
        "HTTP_1": str(a.http_port),
        "HTTP_2": str(b.http_port),
        "GRPC_1": str(a.grpc_port),
        "GRPC_2": str(b.grpc_port),
    }
    process = await asyncio.create_subprocess_exec(
        "/usr/sbin/haproxy",
        *("-f", str(GATEWAY if gateway else file), "-db"),
        env=os.environ | of_gateway,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await asyncio.sleep(1)
        yield f"http://127.0.0.1:{http}", f"127.0.0.1:{rpc}"
    finally:
        process.terminate()
        await process.wait()


async def streamed(
    target: str, seconds: int, sensor: tuple[int, int] = (34, 34)
) -> tuple[list[tuple[object, ...]], int]:
    """The answers to so many seconds of noise, sent as fast as a camera would, and how often the stream was resumed."""
    random = np.random.default_rng(0)
    times = np.sort(random.integers(0, seconds * 1_000_000, seconds * 2000))
    x, y = (random.integers(0, side, len(times)).astype(np.uint16) for side in sensor)
    events = Events(times, x, y, random.integers(0, 2, len(times)).astype(np.uint8))
    async with AsyncStreamClient(target, reconnect_seconds=60) as client:
        stream = client.stream(paced(cut(events, 20_000), 1.0), start_us=0)
        answers: list[tuple[object, ...]] = [
            (window.index, window.events, window.predictions, window.raw) async for window in stream
        ]
    return answers, stream.reconnects


def damaged(content: bytes) -> Iterator[bytes]:
    """A checkpoint that is broken in one way after the other."""
    middle = len(content) // 2
    yield content[:middle]
    yield content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    yield b""
    yield b"text"
    yield bytes(8) + content[8:]
