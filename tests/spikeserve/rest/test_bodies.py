"""Limits are kept while a body is read, and a client that leaves is not computed for."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from spikeserve.app import Server

LIMIT = 10_000


async def exchange(port: int, request: bytes) -> bytes:
    """What comes back until the server closes the connection; the request need not be complete."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    await writer.drain()
    async with asyncio.timeout(30):
        reply = await reader.read()
    writer.close()
    return reply


async def test_an_announced_size_beyond_the_limit_is_refused_before_it_is_sent(running) -> None:
    async with running(max_body_bytes=LIMIT) as server:
        request = b"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999999\r\n\r\n"
        reply = await exchange(server.http_port, request)
    assert reply.startswith(b"HTTP/1.1 413 ")
    assert b"10000 bytes" in reply


async def test_a_chunked_body_is_refused_as_soon_as_it_is_beyond_the_limit(running) -> None:
    async with running(max_body_bytes=LIMIT) as server:
        head = b"POST /classify HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunk = b"1000\r\n" + bytes(0x1000) + b"\r\n"
        # The last chunk is never sent.
        reply = await exchange(server.http_port, head + chunk * 3)
    assert reply.startswith(b"HTTP/1.1 413 ")


async def test_the_limit_itself_is_allowed(running, png: bytes) -> None:
    async with (
        running(max_body_bytes=LIMIT) as server,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.http_port}") as http,
    ):
        for size, status in ((LIMIT, 200), (LIMIT + 1, 413), (len(png), 200)):
            reply = await http.post("/classify", content=png.ljust(size, b"\0"))
            assert reply.status_code == status


async def test_a_client_that_leaves_while_it_sends_is_forgotten(server: Server, png: bytes) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", server.http_port)
    writer.write(b"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf")
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.http_port}") as http:
        assert (await http.post("/classify", content=png)).status_code == 200
        for _ in range(300):
            if 'code="499"' in (await http.get("/metrics")).text:
                break
            await asyncio.sleep(0.1)
        else:
            pytest.fail("the request of the client that left was never counted as cancelled")


async def test_a_client_that_leaves_while_it_waits_cancels_its_request(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()
    here = asyncio.get_running_loop()

    async def hang(request: object) -> None:  # on the event loop of pictures
        here.call_soon_threadsafe(begun.set)
        try:
            await asyncio.Event().wait()
        finally:
            here.call_soon_threadsafe(cancelled.set)

    monkeypatch.setattr(server.classifier, "classify", hang)
    _, writer = await asyncio.open_connection("127.0.0.1", server.http_port)
    writer.write(b"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody")
    async with asyncio.timeout(30):
        await begun.wait()
        assert not cancelled.is_set()
        writer.close()
        await cancelled.wait()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00",
        b"GET\r\n\r\n",
        b"POST /classify HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        bytes(100),
    ],
)
async def test_what_is_not_http_is_turned_away(server: Server, request_bytes: bytes) -> None:
    reply = await exchange(server.http_port, request_bytes)
    assert reply == b"" or reply.startswith(b"HTTP/1.1 400 ")
