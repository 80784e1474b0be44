"""How many servers a load takes, by a simulation that is checked against two real servers behind a balancer.

Calibrate: one server, closed loop with 1 to 16 clients; its replies say how long each picture was computed. A timestep of a
batch of n takes a + b n (fitted), the rest of a request (HTTP, decoding, encoding) c, of which one thread can do one at a time.
Simulate: Poisson arrivals; each goes to the server with the fewest requests under way; there it waits for its turn on that
thread, joins the batch at the next timestep, and leaves after T of them.
Check: the same arrivals, sent to two servers behind HAProxy (deploy/gateway/haproxy.cfg), at shares of the throughput that
two servers reach together. Peer: M/D/1, the usual rule of thumb, with the service time of one request at one client.

    python benchmarks/capacity.py [--seconds 10]
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import itertools
import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from load import Tally, closed_loop, connect, open_loop
from processes import free_ports, running, stop_when_told
from results import save
from rich.console import Console
from systems import System

HERE = Path(__file__).parent
MODEL = HERE.parent / "service/spikeserve/models/fashion-clif.safetensors"
PICTURE = HERE.parent / "examples/garment.png"
GATEWAY = HERE.parent / "deploy/gateway/haproxy.cfg"
TIMESTEPS = 4
CONCURRENCIES = (1, 2, 4, 8, 16)
SHARES = (0.3, 0.5, 0.7)
SLOTS = 32
OURS = System(
    "spikeserve", "ours", "spikeserve", "spikeserve", query="?exit=off&rates=false",
    arguments=("--slots", str(SLOTS)),
)  # fmt: skip


class Costs(NamedTuple):
    """Seconds: `fixed` and `each` of a timestep, `request` of the thread that talks to clients."""

    fixed: float
    each: float
    request: float

    @property
    def alone(self) -> float:
        """One request on an idle server."""
        return self.request + TIMESTEPS * (self.fixed + self.each)


def simulate(costs: Costs, rate: float, servers: int, seconds: float, seed: int) -> list[float]:
    """The latency of each request."""
    dice = random.Random(seed)
    arrivals: list[float] = []
    now = 0.0
    while now < seconds:
        now += dice.expovariate(rate)
        arrivals.append(now)
    # By server: when its talking thread is free; ready pictures; those in slots with timesteps left; under way.
    talk = [0.0] * servers
    ready: list[list[tuple[float, float]]] = [[] for _ in range(servers)]
    slots: list[list[list[float]]] = [[] for _ in range(servers)]
    busy = [False] * servers
    load = [0] * servers
    latencies: list[float] = []
    order = itertools.count()
    events: list[tuple[float, int, str, int, float]] = []
    for at in arrivals:
        heapq.heappush(events, (at, next(order), "arrive", -1, at))

    def step(server: int, now: float) -> None:
        while ready[server] and len(slots[server]) < SLOTS:
            _, arrived = ready[server].pop(0)
            slots[server].append([TIMESTEPS, arrived])
        if slots[server]:
            busy[server] = True
            took = costs.fixed + costs.each * len(slots[server])
            heapq.heappush(events, (now + took, next(order), "stepped", server, 0.0))
        else:
            busy[server] = False

    while events:
        now, _, what, server, arrived = heapq.heappop(events)
        if what == "arrive":
            server = min(range(servers), key=load.__getitem__)
            load[server] += 1
            talk[server] = max(talk[server], now) + costs.request
            heapq.heappush(events, (talk[server], next(order), "ready", server, arrived))
        elif what == "ready":
            ready[server].append((now, arrived))
            if not busy[server]:
                step(server, now)
        else:
            left = []
            for slot in slots[server]:
                slot[0] -= 1
                if slot[0]:
                    left.append(slot)
                else:
                    latencies.append(now - slot[1])
                    load[server] -= 1
            slots[server] = left
            step(server, now)
    return latencies


async def measured(port: int, rate: float, seconds: float) -> dict[str, float]:
    begin = time.perf_counter() + 1.0
    tally = Tally(begin, begin + seconds)
    await open_loop(port, requests(), rate, True, tally)
    return tally.result(0.0)


async def closed(port: int, concurrency: int, seconds: float) -> dict[str, float]:
    begin = time.perf_counter() + 1.0
    tally = Tally(begin, begin + seconds)
    await closed_loop(port, requests(), concurrency, tally, None)
    return tally.result(0.0)


def requests() -> Iterator[bytes]:
    return itertools.cycle([OURS.request(PICTURE.read_bytes())])


async def compute_seconds(port: int, concurrency: int, seconds: float) -> float:
    """The mean time that replies say they were computed for, at so many clients."""
    found: list[float] = []
    until = time.perf_counter() + seconds

    async def client() -> None:
        connection = await connect(port)
        content = next(requests())
        while time.perf_counter() < until:
            _, body = await connection.ask(content)
            found.append(json.loads(body)["timing_seconds"]["compute"])
        connection.transport.close()

    await asyncio.gather(*(client() for _ in range(concurrency)))
    return float(np.median(found))


async def ready(port: int) -> None:
    for _ in range(600):
        try:
            connection = await connect(port)
            status, _ = await connection.ask(b"GET /health/ready HTTP/1.1\r\nHost: a\r\n\r\n")
            connection.transport.close()
            if status == 200:
                return
        except OSError:
            pass
        await asyncio.sleep(0.2)
    raise SystemExit("capacity: the server is not ready")


def calibrate(port: int, seconds: float, console: Console) -> Costs:
    computing, total = [], []
    for concurrency in CONCURRENCIES:
        computing.append(asyncio.run(compute_seconds(port, concurrency, seconds)) / TIMESTEPS)
        row = asyncio.run(closed(port, concurrency, seconds))
        total.append(row["requests_per_second"])
        console.print(f"{concurrency} clients: {row['requests_per_second']:.0f} requests/s, "
                      f"{1e3 * computing[-1]:.3f} ms a timestep")  # fmt: skip
    # Of a batch, those that talk meanwhile are not in it; the fit is over what was in it.
    each, fixed = np.polyfit(CONCURRENCIES, computing, 1)
    alone = 1 / total[0]
    request = max(1e-5, alone - TIMESTEPS * computing[0])
    return Costs(max(1e-6, float(fixed)), max(1e-7, float(each)), request)


def quantiles(latencies: list[float]) -> tuple[float, float]:
    p50, p99 = np.percentile(np.array(latencies) * 1e3, [50, 99])
    return float(p50), float(p99)


def rule_of_thumb(service: float, rate: float, seconds: float) -> list[float]:
    """M/D/1 by simulation: one queue, one request after the other."""
    dice = random.Random(1)
    now = free = 0.0
    latencies = []
    while now < seconds:
        now += dice.expovariate(rate)
        free = max(free, now) + service
        latencies.append(free - now)
    return latencies


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    given = parser.parse_args()
    haproxy = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    if haproxy is None:
        raise SystemExit("capacity: haproxy is not installed")
    stop_when_told()
    console = Console(width=140)
    method = (__doc__ or "").split("\n\n", 1)[1].rpartition("\n\n")[0]
    console.print(method)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(MODEL, folder / "model.safetensors")
        ports = [free_ports() for _ in range(2)]
        with running(OURS, folder, ports[0], folder):
            asyncio.run(ready(ports[0]))
            costs = calibrate(ports[0], given.seconds / 3, console)
            console.print({key: f"{1e3 * value:.4f} ms" for key, value in costs._asdict().items()})
            with running(OURS, folder, ports[1], folder):
                http, rpc = free_ports(), free_ports()
                variables = {
                    **os.environ,
                    "BIND_HTTP": f"127.0.0.1:{http}", "BIND_GRPC": f"127.0.0.1:{rpc}",
                    "SPIKESERVE_1": "127.0.0.1", "SPIKESERVE_2": "127.0.0.1",
                    "HTTP_1": str(ports[0]), "GRPC_1": str(ports[0] + 1),
                    "HTTP_2": str(ports[1]), "GRPC_2": str(ports[1] + 1),
                }  # fmt: skip
                balancer = subprocess.Popen([haproxy, "-db", "-f", str(GATEWAY)], env=variables)
                try:
                    asyncio.run(ready(ports[1]))
                    time.sleep(2)
                    most = asyncio.run(closed(http, 16, given.seconds))["requests_per_second"]
                    for share in SHARES:
                        rate = share * most
                        real = asyncio.run(measured(http, rate, given.seconds))
                        if real["errors"]:
                            raise SystemExit(f"capacity: {real['error']}")
                        p50, p99 = quantiles(simulate(costs, rate, 2, 60.0, 0))
                        thumb50, thumb99 = quantiles(rule_of_thumb(costs.alone, rate / 2, 60.0))
                        rows.append(
                            {
                                "share": share, "requests_per_second": rate,
                                "measured_p50_ms": real["p50_ms"], "simulated_p50_ms": p50,
                                "rule_p50_ms": thumb50, "measured_p99_ms": real["p99_ms"],
                                "simulated_p99_ms": p99, "rule_p99_ms": thumb99,
                            }
                        )  # fmt: skip
                        console.print(rows[-1])
                finally:
                    balancer.kill()
                    balancer.wait()
    ratios = {
        f"simulated_over_measured_p{q}_at_{row['share']}": row[f"simulated_p{q}_ms"]
        / row[f"measured_p{q}_ms"]
        for row in rows
        for q in (50, 99)
    }
    ratios |= {
        f"rule_over_measured_p99_at_{row['share']}": row["rule_p99_ms"] / row["measured_p99_ms"]
        for row in rows
    }
    settings = {
        "most_requests_per_second": most,
        "costs_ms": {k: 1e3 * v for k, v in costs._asdict().items()},
    }
    save("capacity", method, settings, rows, ratios)


if __name__ == "__main__":
    main()
