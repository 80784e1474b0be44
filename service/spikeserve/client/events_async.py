"""Event streams over gRPC, for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from spikeserve.client.answers import Ended, Opened, Window
from spikeserve.client.connection import (
    CHANNEL_OPTIONS,
    DEFAULT_RECONNECT_SECONDS,
    DEFAULT_TARGET,
    GIVE_UP_SECONDS,
    KEEP_BYTES,
    Outage,
    broke,
    moved,
    stream_id,
    with_key,
)
from spikeserve.client.errors import from_rpc
from spikeserve.client.events import _Closed
from spikeserve.client.outbox import Outbox
from spikeserve.client.packets import Packet
from spikeserve.client.terms import Progress, StreamTerms, open_message
from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spikeserve.grpc.v1.spikeserve_pb2_grpc import SpikeServeStub

T = TypeVar("T")


class AsyncStreamClient:
    """`StreamClient` for asyncio; packets may come from an asynchronous iterator."""

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        reconnect_seconds: float = DEFAULT_RECONNECT_SECONDS,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._target = target
        self._patience = reconnect_seconds
        self._metadata = with_key(metadata)
        self._channel = (
            grpc.aio.insecure_channel(target, CHANNEL_OPTIONS)
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, CHANNEL_OPTIONS)
        )
        self._stub = SpikeServeStub(self._channel)
        self._farewells: set[asyncio.Task[None]] = set()

    def stream(
        self, packets: Iterable[Packet] | AsyncIterable[Packet], **terms: Unpack[StreamTerms]
    ) -> AsyncEventStream:
        """As `StreamClient.stream`."""
        metadata = (*self._metadata, stream_id())
        progress = Progress(open_message(terms, self._patience > 0))

        def call(messages: AsyncIterator[pb.EventMessage], timeout: float | None = None) -> Any:
            return self._stub.StreamEvents(messages, timeout=timeout, metadata=metadata)

        source = _each(packets) if isinstance(packets, Iterable) else packets
        sender = _Sender(source, progress, KEEP_BYTES if self._patience > 0 else 0)
        return AsyncEventStream(
            call, sender, progress, self._target, self._patience, self._farewells
        )

    async def close(self) -> None:
        if self._farewells:
            await asyncio.wait(self._farewells, timeout=2 * GIVE_UP_SECONDS)
        # Whoever interrupts a stream shall not have to wait for a transport that does not come to its end.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GIVE_UP_SECONDS):
                await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


class AsyncEventStream(AsyncIterator[Window]):
    """`EventStream` for asyncio."""

    def __init__(
        self,
        call: Any,
        sender: _Sender,
        progress: Progress,
        target: str,
        patience: float,
        farewells: set[asyncio.Task[None]],
    ) -> None:
        self._farewells = farewells
        self._make_call = call
        self._sender = sender
        self._progress = progress
        self._target = target
        self._patience = patience
        self._cancelled = False
        self._connect()

    @property
    def opened(self) -> Opened | None:
        return self._progress.opened

    @property
    def ended(self) -> Ended | None:
        return self._progress.ended

    @property
    def reconnects(self) -> int:
        """How often the stream was resumed."""
        return self._progress.reconnects

    @property
    def lost_windows(self) -> int:
        """Windows whose answers were lost with a connection: the server keeps a bounded number."""
        return self._progress.lost_windows

    async def __anext__(self) -> Window:
        while True:
            try:
                async for answer in self._answers:
                    window = self._progress.take(answer)
                    self._sender.arrived(answer.WhichOneof("kind") == "opened")
                    if window is not None:
                        return window
                if self.ended is not None or not self._progress.resumable:
                    self._sender.stop()
                    raise StopAsyncIteration
                await self._resume(_Closed())
            except grpc.RpcError as error:
                await self._resume(error)
            except asyncio.CancelledError:
                failure = self._sender.failure
                self.cancel()
                # The transport cancels its own call when the packets fail.
                if failure is not None:
                    raise failure from None
                raise

    def cancel(self) -> None:
        """Ends the stream without waiting for further answers. `AsyncStreamClient.close` waits until the server knows."""
        if self._cancelled:
            return
        self._cancelled = True
        self._sender.stop()
        self._call.cancel()
        if self._progress.resumable and self.ended is None:
            # Else the server would wait for us to come back.
            task = asyncio.ensure_future(self._give_up())
            self._farewells.add(task)
            task.add_done_callback(self._farewells.discard)

    async def _give_up(self) -> None:
        with contextlib.suppress(grpc.RpcError):
            only = _each([self._progress.giving_up()])
            async for _ in self._make_call(only, timeout=GIVE_UP_SECONDS):
                pass

    def _connect(self) -> None:
        self._call = self._make_call(self._sender.connect())
        self._answers = aiter(self._call)

    async def _resume(self, error: grpc.RpcError) -> None:
        """A new connection that goes on where the broken one was. Raises ClientError, or what the packets raised."""
        try:
            if self._sender.failure is not None:
                self.cancel()
                raise self._sender.failure from error
            if (
                not self._progress.resumable
                or self._cancelled
                or not (broke(error) or moved(error))
            ):
                raise from_rpc(error, self._target) from error
            loop = asyncio.get_running_loop()
            outage = Outage(error, self._target, loop.time(), self._patience)
            while True:
                await asyncio.sleep(outage.pause(loop.time()))
                try:
                    self._connect()
                    self._progress.take(await anext(self._answers))
                    self._sender.rewind()
                    return
                except StopAsyncIteration:
                    outage.again(_Closed())
                except grpc.RpcError as again:
                    outage.again(again)
        except BaseException:
            self._sender.stop()
            raise


async def _each(items: Iterable[T]) -> AsyncIterator[T]:
    for item in items:
        yield item


class _Sender:
    """The messages of one stream, over one connection after the other.

    The transport cancels what reads them when its connection breaks; the packets must not notice that, so they are
    read by a task of their own. What they raise is kept: the transport would swallow it.
    """

    def __init__(self, packets: AsyncIterable[Packet], progress: Progress, keep: int) -> None:
        self._packets = aiter(packets)
        self._progress = progress
        self._outbox = Outbox(keep)
        self._pulling: asyncio.Future[Packet] | None = None
        self._opened = asyncio.Event()
        self._connection = 0
        self._stopped = False
        self.failure: Exception | None = None

    def connect(self) -> AsyncIterator[pb.EventMessage]:
        """The messages of a new connection; none but the first is sent before the server has answered it."""
        self._opened.set()
        self._opened = asyncio.Event()
        self._connection += 1
        return self._messages(self._connection, self._opened)

    def rewind(self) -> None:
        self._outbox.rewind(self._progress.sequence)
        self._opened.set()

    def arrived(self, opened: bool) -> None:
        self._outbox.arrived(self._progress.confirmed)
        if opened:
            self._opened.set()

    def stop(self) -> None:
        """Send nothing more: the call is over."""
        self._stopped = True
        self._opened.set()
        if self._pulling is not None:
            self._pulling.cancel()

    async def _messages(
        self, connection: int, opened: asyncio.Event
    ) -> AsyncIterator[pb.EventMessage]:
        yield self._progress.opening()
        # A message to a call that the server has refused fails in the transport, whose own error then hides the refusal.
        await opened.wait()
        while connection == self._connection and not self._stopped:
            message = self._outbox.next(self._progress.next_window)
            if message is not None:
                yield message
            elif self._outbox.ended:
                return
            else:
                await self._pull()

    async def _pull(self) -> None:
        """One more packet into the outbox, by whichever connection is there when it comes."""
        if self._pulling is None:
            self._pulling = asyncio.ensure_future(anext(self._packets))
        task = self._pulling
        await asyncio.wait({task})
        if task is not self._pulling:
            return
        self._pulling = None
        try:
            if not task.cancelled():
                self._outbox.add(task.result())
        except StopAsyncIteration:
            self._outbox.end()
        except Exception as error:
            self.failure = error
            raise
