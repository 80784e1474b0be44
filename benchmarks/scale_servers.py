"""Real servers, alone and behind HAProxy, with the processor time of each of their threads: what scale.py measures."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from load import Connection, connect
from processes import NotMeasuredError, Running, free_ports, machine_seconds

HERE = Path(__file__).parent
GATEWAY = HERE.parent / "deploy" / "gateway" / "haproxy.cfg"
WARM_UP = 1.0


@dataclass(frozen=True)
class Subject:
    """A server to be measured. `delays` of an executor that sleeps: milliseconds of a timestep, and of a sample in it."""

    name: str
    model: Path
    slots: int
    max_queue: int
    delays: tuple[float, float] | None = None

    def command(self, port: int) -> list[str]:
        program = [str(HERE / "scale_delayed.py")] if self.delays else ["-m", "spikeserve"]
        given = ["--http-port", str(port), "--grpc-port", str(port + 1), "--log-level", "warning"]
        return [sys.executable, *program, "serve", "--models", str(self.model), *given]

    def variables(self) -> dict[str, str]:
        chosen = {
            "SPIKESERVE_SLOTS": str(self.slots),
            "SPIKESERVE_MAX_QUEUE": str(self.max_queue),
            "SPIKESERVE_TORCH_THREADS": "1",
            "SPIKESERVE_PROBE_SHARE": "0",
            "SPIKESERVE_EXECUTOR": "reference" if self.delays else "cpu",
            "OMP_NUM_THREADS": "1",
        }
        if self.delays:
            chosen["SLEEP_MS"] = ",".join(map(str, self.delays))
        return {**os.environ, **chosen}


class Threads(NamedTuple):
    """Processor seconds of a server since its start: of the event loop, and of all other threads, which is the engine."""

    loop: float
    engine: float


class Place:
    """Where requests go: one server, or HAProxy before two."""

    def __init__(self, port: int, servers: list[Running], ports: list[int]) -> None:
        self.port = port
        self.servers = servers
        self.ports = ports
        self._loops = {server.popen.pid: _loops(server.popen.pid) for server in servers}
        self.balancer: subprocess.Popen[bytes] | None = None

    def threads(self) -> Threads:
        """Of all servers together."""
        found = [_threads(pid, loops) for pid, loops in self._loops.items()]
        return Threads(sum(each.loop for each in found), sum(each.engine for each in found))

    def balancer_seconds(self) -> float:
        return 0.0 if self.balancer is None else sum(_threads(self.balancer.pid, set()))

    def steps(self) -> tuple[float, float]:
        """Timesteps, and samples in them, of all servers."""
        steps = samples = 0.0
        for port in self.ports:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
                text = reply.read().decode()
            for name, value in re.findall(
                r"^spikeserve_batch_size_(sum|count)\{.*\} (\S+)", text, re.M
            ):
                steps += float(value) if name == "count" else 0.0
                samples += float(value) if name == "sum" else 0.0
        return steps, samples


# By number on x86-64 and on ARM: who waits in one of these is an event loop.
_EPOLL_WAIT = ("232", "281", "22")


def _loops(pid: int) -> set[str]:
    """The threads of a server at rest that wait for sockets."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return {each.name for each in tasks if (each / "syscall").read_text().startswith(_EPOLL_WAIT)}


def _threads(pid: int, loops: set[str]) -> Threads:
    loop = other = 0.0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            seconds = int((task / "schedstat").read_text().split()[0]) / 1e9
            if task.name in loops:
                loop += seconds
            else:
                other += seconds
    return Threads(loop, other)


@contextlib.contextmanager
def place(subject: Subject, count: int, folder: Path) -> Generator[Place]:
    """One server, or two behind the balancer, all ready."""
    with contextlib.ExitStack() as stack:
        ports = []
        servers = []
        for number in range(count):
            port = free_ports()
            log = stack.enter_context((folder / f"{subject.name}-{number}.log").open("wb"))
            server = Running(subject.command(port), subject.variables(), log)
            stack.callback(server.stop)
            _wait(port, server)
            ports.append(port)
            servers.append(server)
        time.sleep(0.5)  # until they are at rest
        found = Place(ports[0], servers, ports)
        if count > 1:
            found.port = free_ports()
            log = stack.enter_context((folder / "haproxy.log").open("wb"))
            found.balancer = _haproxy(found.port, ports, log)
            stack.callback(found.balancer.wait)
            stack.callback(found.balancer.kill)
            _wait(found.port, servers[0])
            time.sleep(1.5)  # until it has looked at all servers
        yield found


def _haproxy(port: int, ports: list[int], log: IO[bytes]) -> subprocess.Popen[bytes]:
    program = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        raise NotMeasuredError("haproxy is not installed")
    one, two = ports
    where = {
        "BIND_HTTP": f"127.0.0.1:{port}",
        "BIND_GRPC": f"127.0.0.1:{port + 1}",
        **{f"SPIKESERVE_{i}": "127.0.0.1" for i in (1, 2)},
        "HTTP_1": str(one),
        "GRPC_1": str(one + 1),
        "HTTP_2": str(two),
        "GRPC_2": str(two + 1),
    }
    command = [program, "-db", "-f", str(GATEWAY)]
    return subprocess.Popen(command, env=os.environ | where, stdout=log, stderr=log)


def _wait(port: int, server: Running) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        server.check()
        with contextlib.suppress(OSError):
            url = f"http://127.0.0.1:{port}/health/ready"
            with urllib.request.urlopen(url, timeout=5) as reply:
                if reply.status == 200:
                    return
        time.sleep(0.1)
    raise NotMeasuredError("the server is not ready after 120 s")


@dataclass
class Measured:
    """`sent` are the times of all requests, from the first on, with those before `begin` as warm-up; in seconds."""

    begin: float
    end: float
    sent: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    refused: int = 0
    # Processor seconds between `begin` and `end`, of all answered and refused then.
    client: float = 0.0
    balancer: float = 0.0
    loop: float = 0.0
    engine: float = 0.0
    others: float = 0.0
    passes: float = 0.0
    pictures: float = 0.0

    @property
    def seconds(self) -> float:
        return self.end - self.begin

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds


class Client:
    """Sends requests and notes what becomes of them, with its own clock, which starts at 0."""

    def __init__(self, place: Place, request: bytes, measured: Measured) -> None:
        self._place = place
        self._request = request
        self._measured = measured
        self._free: list[Connection] = []
        self._zero = 0.0

    def run(self, rate: float | None, clients: int, timesteps: int) -> Measured:
        """An open loop with Poisson arrivals at `rate`, or a closed one of so many clients."""
        try:
            import uvloop

            runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        except ImportError:
            runner = asyncio.Runner()
        with runner:
            runner.run(self._run(rate, clients, timesteps))
        return self._measured

    async def _run(self, rate: float | None, clients: int, timesteps: int) -> None:
        self._zero = time.perf_counter()
        measured = self._measured
        watch = asyncio.create_task(self._watch(timesteps))
        if rate is None:
            await asyncio.gather(*(self._closed() for _ in range(clients)))
        else:
            await self._open(rate)
        await watch
        for connection in self._free:
            connection.transport.close()
        measured.sent.sort()

    def _now(self) -> float:
        return time.perf_counter() - self._zero

    async def _watch(self, timesteps: int) -> None:
        """Reads all clocks when the time that is looked at begins, and when it ends."""
        place, measured = self._place, self._measured
        readings = []
        for at in (measured.begin, measured.end):
            await asyncio.sleep(at - self._now())
            steps = await asyncio.to_thread(place.steps)
            clocks = (time.process_time(), place.balancer_seconds(), *place.threads())
            readings.append((*clocks, machine_seconds(), *steps))
        first, last = readings
        client, balancer, loop, engine, machine, steps, samples = (
            b - a for a, b in zip(first, last, strict=True)
        )
        measured.client, measured.balancer = client, balancer
        measured.loop, measured.engine = loop, engine
        measured.others = max(0.0, machine - client - balancer - loop - engine)
        measured.passes, measured.pictures = steps / timesteps, samples / timesteps

    async def _one(self) -> None:
        measured = self._measured
        free = self._free.pop() if self._free else None
        try:
            # The server closes connections that it has not heard of for some seconds.
            connection = free or await connect(self._place.port)
            sent = self._now()
            status, _ = await connection.ask(self._request)
        except ConnectionError as error:
            if free is None:
                raise NotMeasuredError(f"a request failed: {error}") from error
            connection = await connect(self._place.port)
            sent = self._now()
            status, _ = await connection.ask(self._request)
        measured.sent.append(sent)
        self._free.append(connection)
        now = self._now()
        if not measured.begin <= now < measured.end:
            return
        if status == 200:
            measured.latencies.append(now - sent)
        elif status == 503:
            measured.refused += 1
        else:
            raise NotMeasuredError(f"a request was answered with {status}")

    async def _closed(self) -> None:
        while self._now() < self._measured.end:
            await self._one()

    async def _open(self, rate: float) -> None:
        dice = random.Random(0)
        due = 0.0
        tasks: set[asyncio.Task[None]] = set()
        while due < self._measured.end:
            await asyncio.sleep(max(0.0, due - self._now()))
            tasks.add(asyncio.create_task(self._one()))
            due += dice.expovariate(rate)
        await asyncio.gather(*tasks)


def measure(
    where: Place, request: bytes, timesteps: int, seconds: float, *,
    rate: float | None = None, clients: int = 0,
) -> Measured:  # fmt: skip
    measured = Measured(WARM_UP, WARM_UP + seconds)
    return Client(where, request, measured).run(rate, clients, timesteps)


def hop(seconds: float = 1.0) -> float:
    """What it takes until a process that waits for a socket goes on: half a round trip between two that do nothing else."""
    code = (
        "import socket,sys; s=socket.create_connection(('127.0.0.1',int(sys.argv[1])))\n"
        "while d:=s.recv(64): s.sendall(d)"
    )
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = str(listening.getsockname()[1])
        child = subprocess.Popen([sys.executable, "-c", code, port])
        try:
            other, _ = listening.accept()
            with other:
                took = []
                end = time.perf_counter() + seconds
                for _ in itertools.takewhile(
                    lambda _: time.perf_counter() < end, itertools.count()
                ):
                    began = time.perf_counter()
                    other.sendall(b"x")
                    other.recv(64)
                    took.append(time.perf_counter() - began)
        finally:
            child.kill()
            child.wait()
    return sorted(took)[len(took) // 2] / 2
