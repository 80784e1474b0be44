"""Clients that send slowly, or nothing: they hold no more than their connection, and not for ever."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from spikeserve.rest.connections import ImpatientProtocol

HEAD = b"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n"


async def reply_to(port: int, sent: bytes) -> bytes:
    """All that comes back until the server closes the connection, to a client that sends no more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    try:
        async with asyncio.timeout(60):
            return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize("sent", [b"", b"P", HEAD[:-2]])
async def test_headers_that_do_not_come_end_the_connection(running, monkeypatch, sent) -> None:
    monkeypatch.setattr(ImpatientProtocol, "head_seconds", 0.2)
    async with running() as server:
        assert await reply_to(server.http_port, sent) == b""


async def test_so_do_those_of_a_second_request(running, monkeypatch) -> None:
    monkeypatch.setattr(ImpatientProtocol, "head_seconds", 0.2)
    async with running() as server:
        first = b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n"
        reply = await reply_to(server.http_port, first + HEAD[:-2])
        assert reply.startswith(b"HTTP/1.1 200 ")
        assert reply.count(b"HTTP/1.1") == 1


async def test_a_body_that_does_not_come_is_refused(running) -> None:
    async with running(receive_seconds=0.2) as server:
        reply = await reply_to(server.http_port, HEAD + b"half")
        assert reply.startswith(b"HTTP/1.1 504 ")
        assert b"SPIKESERVE_RECEIVE_SECONDS" in reply
        assert b"onnection: close" in reply


async def test_an_answer_may_take_longer_than_the_body(running, png: bytes) -> None:
    async with running(receive_seconds=0.05) as server:
        url = f"http://127.0.0.1:{server.http_port}/classify?timesteps=128"
        async with httpx.AsyncClient(timeout=60) as http:
            replies = await asyncio.gather(*(http.post(url, content=png) for _ in range(20)))
        assert {reply.status_code for reply in replies} <= {200, 504}
        assert any(reply.status_code == 200 for reply in replies)


async def test_a_thousand_connections_that_send_one_byte_stop_nobody(running, png: bytes) -> None:
    async with running() as server:
        held = []
        for _ in range(1000):
            _, writer = await asyncio.open_connection("127.0.0.1", server.http_port)
            writer.write(b"P")
            held.append(writer)
        url = f"http://127.0.0.1:{server.http_port}/classify"
        async with httpx.AsyncClient(timeout=60) as http:
            for _ in range(5):
                assert (await http.post(url, content=png)).status_code == 200
        for writer in held:
            writer.close()
