"""GET /events: the same stream as over gRPC, over a WebSocket."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from spikeserve.app import Server
from spikeserve.streams import StreamOptions
from spiketrain.events import Events, wire

WINDOW_US = 10_000


def some_events(seed: int = 0, n: int = 400, span_us: int = 45_000) -> Events:
    random = np.random.default_rng(seed)
    return Events(
        np.sort(random.integers(0, span_us, n)),
        random.integers(0, 34, n).astype(np.uint16),
        random.integers(0, 34, n).astype(np.uint16),
        random.integers(0, 2, n).astype(np.uint8),
    )


def packet(events: Events) -> bytes:
    payload, base_us = wire.encode(wire.Encoding.COLUMNS_V1, events)
    return struct.pack("<q", base_us) + payload


@asynccontextmanager
async def connected(server: Server, **options: Any) -> AsyncIterator[ClientConnection]:
    async with connect(f"ws://127.0.0.1:{server.http_port}/events", **options) as socket:
        yield socket


async def opened(socket: ClientConnection, **terms: Any) -> dict[str, Any]:
    await socket.send(json.dumps({"open": {"start_us": 0, **terms}}))
    return json.loads(await socket.recv())


async def rest_of(socket: ClientConnection) -> tuple[list[dict[str, Any]], int]:
    """All that is said until the server closes, and its close code."""
    said = []
    try:
        while True:
            said.append(json.loads(await asyncio.wait_for(socket.recv(), 30)))
    except ConnectionClosed:
        return said, socket.close_code or 0


async def test_answers_are_those_of_the_stream_itself(server: Server) -> None:
    events = some_events()
    stream = await server.streams.open(StreamOptions(start_us=0))
    expected = [*await stream.feed(events), *await stream.finish()]
    await stream.close()
    async with connected(server) as socket:
        said = (await opened(socket, sensor="34x34"))["opened"]
        assert (said["model"], said["sensor"], said["window_us"]) == ("moves", [34, 34], WINDOW_US)
        for begin in range(0, len(events), 90):
            await socket.send(packet(events[begin : begin + 90]))
        await socket.send(json.dumps({"end": True}))
        answers, code = await rest_of(socket)
    assert code == 1000
    windows = [each["window"] for each in answers[:-1]]
    assert [each["index"] for each in windows] == [each.index for each in expected] == [0, 1, 2, 3, 4]  # fmt: skip
    for got, wanted in zip(windows, expected, strict=True):
        assert got["events"] == wanted.events
        assert got["predictions"][0]["index"] == wanted.predictions[0].index
        assert got["raw"][0]["probability"] == wanted.raw[0].probability
    assert answers[-1]["ended"]["windows"] == 5
    assert answers[-1]["ended"]["events"] == len(events)


async def test_time_passes_without_events(server: Server) -> None:
    async with connected(server) as socket:
        await opened(socket)
        await socket.send(packet(some_events(n=3, span_us=100)))
        await socket.send(json.dumps({"advance": 2 * WINDOW_US}))
        windows = [json.loads(await socket.recv())["window"] for _ in range(2)]
    assert [(each["end_us"], each["events"]) for each in windows] == [(10_000, 3), (20_000, 0)]


@pytest.mark.parametrize(
    ("first", "status"),
    [
        ("not json", 400),
        ("[]", 400),
        ('{"advance": 3}', 400),
        (b"\0" * 8, 400),
        ('{"open": 3}', 400),
        ('{"open": {"model": "nope"}}', 404),
        ('{"open": {"model": "pictures"}}', 422),
        ('{"open": {"sensor": "640x480"}}', 422),
        ('{"open": {"nonsense": 1}}', 422),
        ('{"open": {"format": "npz"}}', 422),
        ('{"open": {"filter": ["what:x=1"]}}', 422),
        ('{"open": {"model": "' + "x" * 20_000 + '"}}', 413),
        ("[" * 10_000, 400),
    ],
)
async def test_a_wrong_opening_is_answered_with_a_problem(
    server: Server, first: str | bytes, status: int
) -> None:
    async with connected(server) as socket:
        await socket.send(first)
        said, code = await rest_of(socket)
    assert [each["error"]["status"] for each in said] == [status]
    assert said[0]["error"]["detail"]
    assert code == 1008
    assert len(server.streams) == 0


@pytest.mark.parametrize(
    ("message", "status"),
    [
        (b"", 400),
        (b"\0" * 7, 400),
        (b"\0" * 11, 400),
        ('{"advance": "soon"}', 400),
        ('{"advance": true}', 400),
        ('{"advance": 99999999999999999999999}', 400),
        ('{"open": {}}', 400),
        ('{"end": false}', 400),
        (b"\0" * ((1 << 16) + 16), 413),
        # Above what the transport takes, which closes without a word of ours.
        (b"\0" * ((1 << 16) + 80), None),
    ],
)
async def test_a_wrong_message_ends_the_stream_with_a_problem(
    server: Server, message: str | bytes, status: int | None
) -> None:
    async with connected(server) as socket:
        await opened(socket)
        await socket.send(message)
        said, code = await rest_of(socket)
    assert [each["error"]["status"] for each in said] == ([status] if status else [])
    assert code == (1008 if status else 1009)
    await until_none_is_open(server)


async def test_the_limit_of_streams_holds_and_a_client_that_leaves_frees_its_place(
    server: Server,
) -> None:
    async with connected(server) as first:
        await opened(first)
        async with connected(server) as second:
            await second.send('{"open": {}}')
            said, code = await rest_of(second)
        assert said[0]["error"]["status"] == 503
        assert code == 1013
    await until_none_is_open(server)
    async with connected(server) as third:
        assert "opened" in await opened(third)


async def test_an_idle_stream_is_closed(running) -> None:
    async with running(stream_idle_seconds=0.2) as server:
        for terms in (None, '{"open": {}}'):
            async with connected(server) as socket:
                if terms:
                    await socket.send(terms)
                said, _ = await rest_of(socket)
            assert said[-1]["error"]["status"] == 504


@pytest.mark.parametrize(
    "origin", ["http://elsewhere.example", "null", "http://127.0.0.1", "http://127.0.0.1:1"]
)
async def test_pages_of_other_origins_are_refused(server: Server, origin: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with connected(server, origin=origin):
            pass
    assert refused.value.response.status_code == 403
    problem = json.loads(refused.value.response.body or b"")
    assert problem["title"] == "Not allowed"


async def test_its_own_page_is_not(server: Server) -> None:
    async with connected(server, origin=f"http://127.0.0.1:{server.http_port}") as socket:
        assert "opened" in await opened(socket)


async def test_a_server_that_stops_tells_its_streams(running) -> None:
    async with running() as server, connected(server) as socket:
        await opened(socket)
        stopping = asyncio.create_task(server.stop())
        said, code = await rest_of(socket)
        await stopping
    assert code in (1012, 1013)
    assert all(each["error"]["status"] == 503 for each in said)


async def test_refusals_are_counted_and_listed(server: Server, http: httpx.AsyncClient) -> None:
    async with connected(server) as socket:
        await socket.send("{}")
        await rest_of(socket)
    [refusal] = (await http.get("/status")).json()["refusals"]
    assert (refusal["route"], refusal["status"]) == ("/events", 400)
    metrics = (await http.get("/metrics")).text
    assert 'spikeserve_requests_total{code="400",model="",route="/events",version=""} 1.0' in metrics  # fmt: skip


async def until_none_is_open(server: Server) -> None:
    for _ in range(3000):
        if not len(server.streams):
            return
        await asyncio.sleep(0.01)
    pytest.fail("a stream is still open")
