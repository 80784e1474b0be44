"""Pictures have an event loop of their own: what is done for them never stands in the way of event streams."""

from __future__ import annotations

import asyncio
import json
import threading

import grpc
import httpx
import pytest
import websockets

from spikeserve.app import Server
from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spikeserve.grpc.v1.spikeserve_pb2_grpc import SpikeServeStub
from spikeserve.rest.replies import ClassifyReply

OPEN = json.dumps({"open": {"model": "moves", "sensor": "34x34", "start_us": 0}})


async def windows_after(websocket, t_us: int, count: int) -> list[int]:
    await websocket.send(json.dumps({"advance": t_us}))
    return [json.loads(await websocket.recv())["window"]["index"] for _ in range(count)]


async def test_streams_go_on_while_the_loop_of_pictures_is_held_up(
    server: Server, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, go_on = threading.Event(), threading.Event()
    classify = server.classifier.classify

    async def slow(request):
        held.set()
        go_on.wait(60)
        return await classify(request)

    monkeypatch.setattr(server.classifier, "classify", slow)
    http = f"127.0.0.1:{server.http_port}"
    async with (
        websockets.connect(f"ws://{http}/events") as websocket,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
        httpx.AsyncClient(base_url=f"http://{http}", timeout=60) as client,
    ):
        await websocket.send(OPEN)
        assert "opened" in json.loads(await websocket.recv())
        picture = asyncio.create_task(client.post("/classify", content=png))
        try:
            assert await asyncio.to_thread(held.wait, 30)
            async with asyncio.timeout(30):
                assert await windows_after(websocket, 30_000, 3) == [0, 1, 2]
                await SpikeServeStub(channel).ListModels(pb.ListModelsRequest())
        finally:
            go_on.set()
        assert (await picture).status_code == 200


async def test_a_connection_that_had_requests_can_become_a_websocket(server: Server) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.http_port)
    writer.write(b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    await reader.readexactly(int(httpx.Headers(_headers(head))["content-length"]))
    upgrade = (
        "GET /events HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    writer.write(upgrade.encode())
    async with asyncio.timeout(30):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    writer.close()


async def test_the_answer_to_a_picture_is_what_its_description_says(
    http: httpx.AsyncClient, png: bytes
) -> None:
    for query in ("", "?rates=false"):
        content = (await http.post(f"/classify{query}", content=png)).content
        reply = ClassifyReply.model_validate_json(content, strict=True, extra="forbid")
        assert reply.model_dump(exclude_none=True) == json.loads(content)


def _headers(head: bytes) -> list[tuple[str, str]]:
    lines = head.decode().split("\r\n")[1:]
    return [
        (name, value.strip()) for name, _, value in (line.partition(":") for line in lines) if name
    ]
