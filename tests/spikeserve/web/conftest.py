from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from spikeserve.app import Server


@pytest.fixture
async def server(running) -> AsyncIterator[Server]:
    async with running(max_message_bytes=1 << 16, max_streams=1) as server:
        yield server


@pytest.fixture
async def http(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{server.http_port}", timeout=60
    ) as client:
        yield client
