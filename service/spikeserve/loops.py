"""A second event loop, in a thread of its own, and how work gets from one loop to the other.

Pictures come by the thousand, and each takes a fraction of a millisecond of Python; an event stream needs the loop
several times for each of its windows, and would stand behind all of them each time. So pictures have their own loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

T = TypeVar("T")


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:  # not made for every platform
        return asyncio.new_event_loop
    return uvloop.new_event_loop


class LoopThread:
    """Runs coroutines until it is stopped; those that are left then are cancelled."""

    def __init__(self, name: str) -> None:
        self._started: Future[asyncio.AbstractEventLoop] = Future()
        self._stopping: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        self._loop = self._started.result()

    def run(self, work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        """To be awaited on another event loop. Cancelling it cancels the work; context variables go along."""
        return elsewhere(work, self._loop)

    def stop(self) -> None:
        """Returns when the thread has ended. May be called again."""
        if self._thread.is_alive() and self._stopping is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(self._until_stopped())

    async def _until_stopped(self) -> None:
        self._stopping = asyncio.Event()
        self._started.set_result(asyncio.get_running_loop())
        await self._stopping.wait()


class OnLoop:
    """An ASGI application that runs on the event loop `home`, wherever its connections are."""

    def __init__(self, app: ASGIApp) -> None:
        self.home: asyncio.AbstractEventLoop | None = None
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        here = asyncio.get_running_loop()
        if self.home is None or self.home is here:
            await self._app(scope, receive, send)
            return

        async def received() -> Message:
            return await elsewhere(_awaited(receive()), here)

        async def sent(message: Message) -> None:
            await elsewhere(_awaited(send(message)), here)

        await elsewhere(_awaited(self._app(scope, received, sent)), self.home)


def elsewhere(work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> asyncio.Future[T]:
    """The result of `work` on another event loop, to be awaited on this one."""
    return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))


async def _awaited(work: Any) -> Any:
    return await work
