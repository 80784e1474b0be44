"""Pictures, events, and servers of small models for clients made for Triton and KServe."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from spikeserve.app import Server
from spiketrain.events.types import Events

WINDOW_US = 10_000


@pytest.fixture(scope="session")
def pictures() -> np.ndarray:
    """Four of 28 x 28 grey pixels, uint8 [N, H, W, C]."""
    return np.random.default_rng(0).integers(0, 256, (4, 28, 28, 1), np.uint8)


@pytest.fixture(scope="session")
def events() -> Events:
    """100 ms of noise on 34 x 34 pixels."""
    random = np.random.default_rng(0)
    count = 3000
    return Events(
        np.sort(random.integers(0, 100_000, count)),
        random.integers(0, 34, count).astype(np.uint16),
        random.integers(0, 34, count).astype(np.uint16),
        random.integers(0, 2, count).astype(np.uint8),
    )


def rows(events: Events) -> np.ndarray:
    """As a model of events takes them: int64 [N, 4] of t, x, y and p."""
    return np.stack([events.t, events.x, events.y, events.p], axis=1).astype(np.int64)


@pytest.fixture
def http(threaded_server: Server) -> Iterator[httpx.Client]:
    """Without a protocol's client."""
    base = f"http://127.0.0.1:{threaded_server.http_port}"
    with httpx.Client(base_url=base, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def parts(events: Events) -> list[np.ndarray]:
    """The events of every 25 ms, so that windows are closed by several requests."""
    edges = np.searchsorted(events.t, [25_000, 50_000, 75_000])
    return np.split(rows(events), edges)
