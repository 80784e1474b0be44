from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc
import numpy as np
import pytest

from spikeserve.app import Server
from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spikeserve.grpc.v1.spikeserve_pb2_grpc import SpikeServeStub
from spiketrain.events import wire
from spiketrain.events.types import Events

COLUMNS = wire.Encoding.COLUMNS_V1


@pytest.fixture
async def server(running) -> AsyncIterator[Server]:
    async with running() as server:
        yield server


@pytest.fixture
async def channel(server: Server) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> SpikeServeStub:
    return SpikeServeStub(channel)


@pytest.fixture
def events() -> Events:
    """100 ms of noise on 34 x 34 pixels."""
    random = np.random.default_rng(0)
    count = 5000
    return Events(
        np.sort(random.integers(0, 100_000, count)),
        random.integers(0, 34, count).astype(np.uint16),
        random.integers(0, 34, count).astype(np.uint16),
        random.integers(0, 2, count).astype(np.uint8),
    )


@pytest.fixture
def packet() -> Callable[..., pb.EventMessage]:
    def make(events: Events, sequence: int = 0, **fields: object) -> pb.EventMessage:
        payload, base_us = wire.encode(COLUMNS, events)
        given = {"sequence": sequence, "base_us": base_us, "payload": payload}
        return pb.EventMessage(events=pb.EventPacket(**given | fields))

    return make


@pytest.fixture
def all_free(server: Server) -> Callable[[], object]:
    """Waits until no stream is open and no slot is taken."""

    async def wait() -> None:
        def value(name: str, labels: dict[str, str]) -> float | None:
            return server.metrics.registry.get_sample_value(f"spikeserve_{name}", labels)

        for _ in range(300):
            in_use = value("slots_in_use", {"model": "moves", "version": "1"})
            if value("open_streams", {}) == 0 and in_use == 0:
                return
            await asyncio.sleep(0.05)
        pytest.fail("a stream or a slot was never given back")

    return wait
