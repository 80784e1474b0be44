"""Work on another event loop: its result, its context, its cancellation."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextvars import ContextVar

import pytest

from spikeserve.loops import LoopThread, OnLoop

told: ContextVar[str] = ContextVar("told", default="nothing")


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    running = LoopThread("side")
    yield running
    running.stop()


async def test_work_is_done_in_the_thread_with_the_callers_context(thread: LoopThread) -> None:
    async def work() -> tuple[str, str]:
        await asyncio.sleep(0)
        return threading.current_thread().name, told.get()

    told.set("something")
    assert await thread.run(work()) == ("side", "something")


async def test_an_exception_comes_back(thread: LoopThread) -> None:
    async def work() -> None:
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        await thread.run(work())


async def test_whoever_stops_waiting_cancels_the_work(thread: LoopThread) -> None:
    begun, cancelled = threading.Event(), threading.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    waiting = thread.run(work())
    assert await asyncio.to_thread(begun.wait, 30)
    waiting.cancel()
    assert await asyncio.to_thread(cancelled.wait, 30)


async def test_stopping_cancels_what_is_left_and_may_be_repeated() -> None:
    thread = LoopThread("side")
    begun, cancelled = threading.Event(), threading.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    waiting = thread.run(work())
    assert await asyncio.to_thread(begun.wait, 30)
    await asyncio.to_thread(thread.stop)
    assert cancelled.is_set()
    thread.stop()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_an_application_runs_at_home_and_its_messages_where_the_connection_is(
    thread: LoopThread,
) -> None:
    seen: list[str] = []

    async def app(scope, receive, send) -> None:
        seen.append(threading.current_thread().name)
        await send({"type": "answer", "to": await receive()})

    moved = OnLoop(app)
    moved.home = asyncio.get_running_loop()
    sent: list[object] = []

    async def connection() -> None:
        async def receive() -> dict[str, str]:
            return {"type": "question", "in": threading.current_thread().name}

        async def send(message: object) -> None:
            sent.append((message, threading.current_thread().name))

        await moved({}, receive, send)

    await thread.run(connection())
    assert seen == [threading.current_thread().name]
    assert sent == [({"type": "answer", "to": {"type": "question", "in": "side"}}, "side")]
