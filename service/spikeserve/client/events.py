"""Event streams, over gRPC."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

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
from spikeserve.client.errors import ClientError, from_rpc
from spikeserve.client.outbox import Outbox
from spikeserve.client.packets import Packet
from spikeserve.client.terms import Progress, StreamTerms, open_message
from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spikeserve.grpc.v1.spikeserve_pb2_grpc import SpikeServeStub


class StreamClient:
    """A server's gRPC interface at `target`, HOST:PORT.

    When the connection breaks in the midst of a stream, it is tried again for `reconnect_seconds`, and the stream goes
    on where it was: the server keeps its state, what it has not got is sent again, and no answer comes twice. 0 leaves
    that out. `credentials` are for TLS; `metadata` goes with every call.
    """

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
            grpc.insecure_channel(target, CHANNEL_OPTIONS)
            if credentials is None
            else grpc.secure_channel(target, credentials, CHANNEL_OPTIONS)
        )
        self._stub = SpikeServeStub(self._channel)

    def stream(self, packets: Iterable[Packet], **terms: Unpack[StreamTerms]) -> EventStream:
        """Sends the packets, from a thread of its own, and gives the answers: one Window for each window.

        Raises ClientError when the answers are read.
        """
        metadata = (*self._metadata, stream_id())
        progress = Progress(open_message(terms, self._patience > 0))

        def call(messages: Iterator[pb.EventMessage], timeout: float | None = None) -> Any:
            return self._stub.StreamEvents(messages, timeout=timeout, metadata=metadata)

        sender = _Sender(packets, progress, KEEP_BYTES if self._patience > 0 else 0)
        return EventStream(call, sender, progress, self._target, self._patience)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class EventStream(Iterator[Window]):
    """The answers of one stream. `opened` is known from the first answer on, `ended` after the last."""

    def __init__(
        self, call: Any, sender: _Sender, progress: Progress, target: str, patience: float
    ) -> None:
        self._make_call = call
        self._sender = sender
        self._progress = progress
        self._target = target
        self._patience = patience
        self._cancelled = threading.Event()
        self._call = call(sender.connect(opened=True))

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

    def __next__(self) -> Window:
        while True:
            try:
                for answer in self._call:
                    window = self._progress.take(answer)
                    self._sender.arrived()
                    if window is not None:
                        return window
                if self.ended is not None or not self._progress.resumable:
                    self._sender.stop()
                    raise StopIteration
                self._resume(None)
            except grpc.RpcError as error:
                self._resume(error)

    def cancel(self) -> None:
        """Ends the stream without waiting for further answers."""
        if self._cancelled.is_set():
            return
        self._cancelled.set()
        self._sender.stop()
        self._call.cancel()
        if self._progress.resumable and self.ended is None:
            # Else the server would wait for us to come back. It does not matter if it cannot be reached.
            with contextlib.suppress(grpc.RpcError):
                list(self._make_call(iter([self._progress.giving_up()]), timeout=GIVE_UP_SECONDS))

    def _resume(self, error: grpc.RpcError | None) -> None:
        """A new connection that goes on where the broken one was. Raises ClientError, or what the packets raised."""
        if self._sender.failure is not None:
            self.cancel()
            raise self._sender.failure from error
        if error is None:
            error = _Closed()
        lost = not (broke(error) or moved(error))
        if not self._progress.resumable or self._cancelled.is_set() or lost:
            self._sender.stop()
            raise from_rpc(error, self._target) from error
        outage = Outage(error, self._target, time.monotonic(), self._patience)
        try:
            while True:
                self._cancelled.wait(outage.pause(time.monotonic()))
                try:
                    self._call = self._make_call(self._sender.connect(opened=False))
                    self._progress.take(next(iter(self._call)))
                    self._sender.rewind()
                    return
                except StopIteration:
                    outage.again(_Closed())
                except grpc.RpcError as again:
                    outage.again(again)
        except ClientError:
            self._sender.stop()
            raise


class _Closed(grpc.RpcError):
    """The server's side was closed without an error, and without an end."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "the connection was closed in the midst of the stream"

    def trailing_metadata(self) -> tuple[()]:
        return ()


class _Sender:
    """The messages of one stream, over one connection after the other.

    The transport reads them in a thread of its own for each connection. That of a broken one may still wait for the
    next packet: what comes of it is sent by its successor. What the packets themselves raise is kept, as the transport
    would swallow it.
    """

    def __init__(self, packets: Iterable[Packet], progress: Progress, keep_bytes: int) -> None:
        self._packets = iter(packets)
        self._progress = progress
        self._outbox = Outbox(keep_bytes)
        self._outbox_lock = threading.Lock()
        self._packets_lock = threading.Lock()
        self._connection = 0
        self._opened = threading.Event()
        self._stopped = False
        self.failure: Exception | None = None

    def connect(self, opened: bool) -> Iterator[pb.EventMessage]:
        """The messages of a new connection; unless `opened`, none but the first is sent before `rewind`."""
        self._opened.set()  # whoever waited for the last connection need not any more
        self._opened = threading.Event()
        if opened:
            self._opened.set()
        self._connection += 1
        return self._messages(self._connection, self._opened)

    def rewind(self) -> None:
        with self._outbox_lock:
            self._outbox.rewind(self._progress.sequence)
        self._opened.set()

    def arrived(self) -> None:
        with self._outbox_lock:
            self._outbox.arrived(self._progress.confirmed)

    def stop(self) -> None:
        """Send nothing more."""
        self._stopped = True
        self._opened.set()

    def _messages(self, connection: int, opened: threading.Event) -> Iterator[pb.EventMessage]:
        yield self._progress.opening()
        opened.wait()
        while True:
            with self._outbox_lock:
                if connection != self._connection or self._stopped:
                    return
                message = self._outbox.next(self._progress.next_window)
            if message is not None:
                yield message
            elif self._outbox.ended:
                return
            else:
                self._pull(connection)

    def _pull(self, connection: int) -> None:
        """One more packet into the outbox."""
        with self._packets_lock:
            if connection != self._connection or self._outbox.ended:
                return
            try:
                packet = next(self._packets, None)
                with self._outbox_lock:
                    if packet is None:
                        self._outbox.end()
                    else:
                        self._outbox.add(packet)
            except Exception as error:
                self.failure = error
                raise
