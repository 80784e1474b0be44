"""However much traffic there was, and whatever clients sent, the number of time series stays what it was."""

from __future__ import annotations

import asyncio

import httpx
import numpy as np

from spikeserve.app import Server
from spikeserve.streams import StreamOptions
from spiketrain.events.types import Events

ROUNDS, PICTURES, STREAMS = 3, 40, 10


def series(server: Server) -> int:
    return sum(len(family.samples) for family in server.metrics.registry.collect())


async def traffic(server: Server, client: httpx.AsyncClient, png: bytes, number: int) -> None:
    for i in range(PICTURES):
        headers = {"X-Request-Id": f"{number}-{i}", "User-Agent": f"agent {number} {i}"}
        for query in ("", f"?model=nobody-{number}-{i}", f"?version={number}{i}", "?top_k=99"):
            await client.post(f"/classify{query}", content=png, headers=headers)
        await client.get(f"/made/up/{number}/{i}")
        await client.get(f"/models/nobody-{number}-{i}")
    for i in range(STREAMS):
        await one_stream(server, number * STREAMS + i)


async def one_stream(server: Server, seed: int) -> None:
    draws = np.random.default_rng(seed)
    count = 500
    events = Events(
        np.sort(draws.integers(0, 100_000, count)),
        draws.integers(0, 34, count).astype(np.uint16),
        draws.integers(0, 34, count).astype(np.uint16),
        draws.integers(0, 2, count).astype(np.uint8),
    )
    stream = await server.streams.open(StreamOptions())
    await stream.feed(events)
    await stream.finish()
    stream.end(None)


async def test_series_do_not_grow_with_traffic(running, png: bytes) -> None:
    async with running() as server:
        address = f"http://127.0.0.1:{server.http_port}"
        async with httpx.AsyncClient(base_url=address, timeout=60) as client:
            counts = []
            for number in range(ROUNDS):
                await traffic(server, client, png, number)
                await asyncio.sleep(0)
                counts.append(series(server))
    assert counts == [counts[0]] * ROUNDS
    assert counts[0] < 1000
