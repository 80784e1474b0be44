"""A load generator that costs little: one process, one event loop, HTTP/1.1 over connections that stay open.

Closed loop: each of C connections sends its next request when the answer to the last one has come. Open loop: requests
go out at times fixed beforehand, over a free connection or else a new one, whatever became of those before; latency counts from the time
a request was due. Requests are whole messages made beforehand; of a reply only status and length are read. What the
generator itself takes of the processor is measured and reported.

    python load.py --system NAME --folder MODEL --pictures N --port P --concurrency 8 --seconds 5
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pictures import read_pictures
from systems import System, chosen

_END_OF_HEAD = b"\r\n\r\n"


class Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.buffer = bytearray()
        self.needed = 0
        self.body_at = 0
        self.answer: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(ConnectionError(f"the connection was closed: {error}"))

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if not self.needed:
            at = self.buffer.find(_END_OF_HEAD)
            if at < 0:
                return
            self.body_at = at + len(_END_OF_HEAD)
            self.needed = self.body_at + _content_length(bytes(self.buffer[:at]))
        if len(self.buffer) >= self.needed and self.answer is not None:
            status = int(self.buffer[9:12])
            body = bytes(self.buffer[self.body_at : self.needed])
            self.buffer.clear()
            self.needed = 0
            if not self.answer.done():
                self.answer.set_result((status, body))

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body. Raises ConnectionError."""
        if self.transport is None or self.transport.is_closing():
            raise ConnectionError("the connection is closed")
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self.answer


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    raise ConnectionError("a reply without Content-Length")


async def connect(port: int) -> Connection:
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(Connection, "127.0.0.1", port)
    return connection


class Tally:
    """Counts what is answered between `begin` and `end`, times of time.perf_counter()."""

    def __init__(self, begin: float, end: float) -> None:
        self.begin, self.end = begin, end
        self.latencies: list[float] = []
        self.errors = 0
        self.error = ""

    def add(self, sent: float, now: float) -> None:
        if self.begin <= now < self.end:
            self.latencies.append(now - sent)

    def fail(self, why: str) -> None:
        self.errors += 1
        self.error = why

    def result(self, cpu_seconds: float) -> dict[str, Any]:
        seconds = self.end - self.begin
        found = np.array(self.latencies or [np.nan]) * 1e3
        quantiles = np.percentile(found, [50, 90, 99, 100]).tolist()
        return {
            "requests": len(self.latencies),
            "seconds": seconds,
            "requests_per_second": len(self.latencies) / seconds,
            "mean_ms": float(found.mean()),
            **dict(zip(("p50_ms", "p90_ms", "p99_ms", "max_ms"), quantiles, strict=True)),
            "errors": self.errors,
            "error": self.error,
            "client_cores": cpu_seconds / seconds,
        }


async def closed_loop(
    port: int, requests: Iterator[bytes], concurrency: int, tally: Tally, most: int | None
) -> None:
    left = itertools.count() if most is None else iter(range(most))

    async def client() -> None:
        connection = await connect(port)
        while time.perf_counter() < tally.end and next(left, None) is not None:
            began = time.perf_counter()
            try:
                status, body = await connection.ask(next(requests))
            except ConnectionError as error:
                tally.fail(str(error))
                connection = await connect(port)
                continue
            if status == 200:
                tally.add(began, time.perf_counter())
            else:
                tally.fail(f"{status} {body[:200]!r}")
        connection.transport.close()

    await asyncio.gather(*(client() for _ in range(concurrency)))


async def open_loop(
    port: int, requests: Iterator[bytes], rate: float, poisson: bool, tally: Tally
) -> None:
    """`rate` requests/s; at even distances, or as a Poisson process."""
    free: list[Connection] = []
    dice = random.Random(0)
    due = time.perf_counter()
    running: set[asyncio.Task[None]] = set()

    async def one(due: float) -> None:
        try:
            connection = free.pop() if free else await connect(port)
            status, body = await connection.ask(next(requests))
            free.append(connection)
        except (ConnectionError, OSError) as error:
            tally.fail(str(error))
            return
        if status == 200:
            tally.add(due, time.perf_counter())
        else:
            tally.fail(f"{status} {body[:200]!r}")

    while due < tally.end:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.create_task(one(due))
        running.add(task)
        task.add_done_callback(running.discard)
        due += dice.expovariate(rate) if poisson else 1 / rate
    await asyncio.wait(running, timeout=30)


async def _run(given: argparse.Namespace, system: System, pictures: list[bytes]) -> dict[str, Any]:
    requests = itertools.cycle([system.request(picture) for picture in pictures])
    begin = time.perf_counter() + given.warm_up
    tally = Tally(begin, begin + given.seconds)
    loop = asyncio.get_running_loop()
    marks: list[float] = []

    def mark(word: str) -> None:  # the driver reads the server's clocks at these moments
        marks.append(time.process_time())
        sys.stdout.write(f"{word}\n")
        sys.stdout.flush()

    loop.call_later(given.warm_up, mark, "begin")
    loop.call_later(given.warm_up + given.seconds, mark, "end")
    if given.rate:
        await open_loop(given.port, requests, given.rate, given.poisson, tally)
    else:
        await closed_loop(given.port, requests, given.concurrency, tally, given.requests)
    if given.requests is not None:  # it ended when they were done, not at a time
        tally.end = min(tally.end, time.perf_counter())
    elif len(marks) < 2:
        await asyncio.sleep(max(0.0, tally.end - time.perf_counter()) + 0.01)
    spent = marks[1] - marks[0] if len(marks) == 2 else time.process_time()
    return tally.result(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--system", required=True)
    parser.add_argument("--query", help="instead of the system's own")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--pictures", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warm-up", type=float, default=1.0)
    parser.add_argument("--requests", type=int, help="end after so many")
    parser.add_argument("--rate", type=float, help="requests/s: open loop")
    parser.add_argument("--poisson", action="store_true")
    given = parser.parse_args()
    (system,) = chosen([given.system])
    if given.query is not None:
        system = replace(system, query=given.query)
    pictures = read_pictures(given.folder, given.pictures).content
    try:
        import uvloop

        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    except ImportError:
        runner = asyncio.Runner()
    with runner:
        result = runner.run(_run(given, system, pictures))
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
