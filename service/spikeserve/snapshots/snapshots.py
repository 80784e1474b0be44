"""The store as streams use it: never in the event loop's way, counted, and left alone for a while when it fails."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from prometheus_client import Counter

from spikeserve.snapshots.store import Store

logger = logging.getLogger(__name__)

T = TypeVar("T")

# A store that hangs shall take its time from one stream, not from all of them one after the other.
_PAUSE_SECONDS = 1.0
_THREADS = 4


class StoreUnavailableError(RuntimeError):
    """The store has failed, now or a moment ago."""


class Snapshots:
    """To be used on one event loop. `seconds` is how long the store keeps one; `counter` has one label, the outcome:
    saved, resumed, refused (damaged, of another model or release), failed."""

    def __init__(
        self,
        store: Store,
        seconds: float,
        counter: Counter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds = seconds
        self._store = store
        self._counter = counter
        self._clock = clock
        self._threads = ThreadPoolExecutor(_THREADS, "snapshots")
        self._failed_until = float("-inf")
        self._failing = False
        self._sweeping: asyncio.TimerHandle | None = None
        for outcome in ("saved", "resumed", "refused", "failed"):
            counter.labels(outcome)

    def count(self, outcome: str) -> None:
        self._counter.labels(outcome).inc()

    async def put(self, token: str, snapshot: bytes) -> None:
        """Raises StoreUnavailableError."""
        await self._call(lambda: self._store.put(_name(token), snapshot))
        self.count("saved")
        if self._sweeping is None:
            self._sweep_later()

    async def get(self, token: str) -> bytes | None:
        """Raises StoreUnavailableError."""
        return await self._call(lambda: self._store.get(_name(token)))

    async def remove(self, token: str) -> bool:
        """Whether it was there, and nobody else has taken it. Raises StoreUnavailableError."""
        return await self._call(lambda: self._store.remove(_name(token)))

    async def close(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
        await asyncio.to_thread(self._threads.shutdown)
        self._store.close()

    async def _call(self, action: Callable[[], T]) -> T:
        if self._clock() < self._failed_until:
            self.count("failed")
            raise StoreUnavailableError("the store of snapshots failed a moment ago")
        try:
            result = await asyncio.get_running_loop().run_in_executor(self._threads, action)
        except OSError as error:
            self.count("failed")
            self._failed_until = self._clock() + _PAUSE_SECONDS
            if not self._failing:
                logger.warning("streams cannot be kept beyond this server: %s", error)
            self._failing = True
            raise StoreUnavailableError(f"the store of snapshots fails: {error}") from error
        if self._failing:
            logger.warning("the store of snapshots works again")
        self._failing = False
        return result

    def _sweep_later(self) -> None:
        """Once when what was written now has expired: without new ones nobody else would look."""
        loop = asyncio.get_running_loop()
        self._sweeping = loop.call_later(self.seconds + 1, self._sweep)

    def _sweep(self) -> None:
        self._sweeping = None
        self._threads.submit(self._store.sweep)


def _name(token: str) -> str:
    """What the store calls a stream: whoever can read its list cannot take over streams."""
    return hashlib.sha256(token.encode()).hexdigest()
