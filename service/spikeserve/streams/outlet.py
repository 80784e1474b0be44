"""Answers on their way to a client, and what becomes of them, and of what it sends, when it does not read.

Answers are written as they come, and nothing is taken in before they are (the policy `wait`); or they wait in a bounded
queue that a task writes from. A client is slow when the queue is full and its oldest answer has waited for
`slow_seconds`: none is that only because a message has closed many windows.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.metrics import Metrics
from spikeserve.settings import Settings, SlowPolicy
from spikeserve.streams.session import Session
from spikeserve.streams.stream import WindowAnswer
from spikeserve.streams.terms import slow_policy


@dataclass
class Refusal:
    """Messages that were not taken in, one after the other; numbers of packets, 0 where the client gives none."""

    error: ServiceError
    messages: int = 0
    first_sequence: int = 0
    last_sequence: int = 0

    def add(self, sequence: int) -> None:
        self.messages += 1
        self.first_sequence = self.first_sequence or sequence
        self.last_sequence = max(self.last_sequence, sequence)


Write = Callable[[WindowAnswer | Refusal], Awaitable[None]]


class SlowClientError(ServiceError):
    """The connection is ended; the stream need not be."""


class Outlet:
    """One connection's way out. `write` returns when the transport has taken what it was given.

    `failed` has what writing in the background has raised.
    """

    def __init__(
        self, session: Session, settings: Settings, metrics: Metrics, write: Write
    ) -> None:
        self.policy: SlowPolicy = slow_policy(session.terms[0], settings)
        self._loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[BaseException] = self._loop.create_future()
        self._session = session
        self._metrics = metrics
        self._write = write
        self._most = settings.max_waiting_answers
        self._patience = settings.slow_seconds
        # Each with the time since which it waits.
        self._waiting: deque[tuple[float, WindowAnswer | Refusal]] = deque()
        self._some = asyncio.Event()
        self._room = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._writer: asyncio.Task[None] | None = None

    async def admits(self, sequence: int = 0) -> bool:
        """Whether the next message, with this number, is to be taken in; else its refusal is on its way.

        Raises SlowClientError where the policy is to end the connection.
        """
        if not await self._is_slow():
            return True
        if self.policy == "drop-oldest":
            self._drop()
            return True
        if self.policy == "refuse":
            self._refuse(sequence)
            return False
        self._metrics.streams_ended.labels("slow").inc()
        raise SlowClientError(
            ErrorKind.OVER_QUOTA, f"{self._complaint()}, so its connection was ended", 1.0
        )

    async def send(self, answers: Iterable[WindowAnswer]) -> None:
        if self.policy == "wait":
            for answer in answers:
                await self._write(answer)
            return
        for answer in answers:
            self._put(answer)

    async def flush(self) -> None:
        """Returns when all has been written."""
        await self._empty.wait()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.cancel()
        self._waiting.clear()

    async def _is_slow(self) -> bool:
        """Decided when there is room again, or the oldest answer has waited for too long."""
        while len(self._waiting) >= self._most:
            left = self._waiting[0][0] + self._patience - self._loop.time()
            if left <= 0:
                return True
            self._room.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._room.wait()
        return False

    def _drop(self) -> None:
        """So many that there is room for one."""
        dropped = len(self._waiting) - self._most + 1
        for _ in range(dropped):
            self._waiting.popleft()
        self._session.dropped_answers += dropped
        self._metrics.answers_dropped.inc(dropped)

    def _refuse(self, sequence: int) -> None:
        last = self._waiting[-1][1]
        if not isinstance(last, Refusal):
            last = Refusal(
                ServiceError(
                    ErrorKind.OVER_QUOTA,
                    f"{self._complaint()}, so nothing is taken in until it reads",
                )
            )
            self._put(last)
        last.add(sequence)
        self._session.refused_messages += 1
        self._metrics.messages_refused.inc()

    def _complaint(self) -> str:
        return (
            f"{self._most} answers wait for a client that does not read them "
            f"(SPIKESERVE_MAX_WAITING_ANSWERS), for {self._patience:g} s (SPIKESERVE_SLOW_SECONDS)"
        )

    def _put(self, item: WindowAnswer | Refusal) -> None:
        self._waiting.append((self._loop.time(), item))
        self._empty.clear()
        self._some.set()
        if self._writer is None:
            self._writer = asyncio.create_task(self._run())
            self._writer.add_done_callback(self._ended)

    async def _run(self) -> None:
        while True:
            await self._some.wait()
            while self._waiting:
                _, item = self._waiting.popleft()
                if len(self._waiting) < self._most:
                    self._room.set()
                await self._write(item)
            self._some.clear()
            self._empty.set()

    def _ended(self, writer: asyncio.Task[None]) -> None:
        if not writer.cancelled() and (error := writer.exception()) and not self.failed.done():
            self.failed.set_result(error)
