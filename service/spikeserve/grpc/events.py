"""One event stream: messages in, answers out, one at a time.

Nothing is read before the answers to what was read have been written, so a client that does not read its answers
stops its own stream and holds nothing but its place, until the stream has been idle for too long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

import grpc

from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.grpc import convert
from spikeserve.grpc.boundary import Context, Unreadable, current_call, unreadable
from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spikeserve.settings import Settings
from spikeserve.streams import Stream, Streams, WindowAnswer
from spiketrain.events import wire

T = TypeVar("T")

_INLINE_BYTES = 1 << 17


class PacketCount:
    """Numbers of packets only rise: what is left out was lost, what does not rise was sent again."""

    def __init__(self) -> None:
        self.last = 0
        self.lost = 0
        self.repeated = 0

    def is_new(self, number: int) -> bool:
        if number == 0:
            return True
        if number <= self.last:
            self.repeated += 1
            return False
        self.lost += number - self.last - 1
        self.last = number
        return True


async def serve_events(streams: Streams, settings: Settings, context: Context) -> None:
    """The conversation of one StreamEvents call. Raises ServiceError; whatever happens, the stream is closed."""
    try:
        async with asyncio.timeout(settings.stream_idle_seconds):
            opening = _opening(await context.read())
    except TimeoutError:
        raise ServiceError(
            ErrorKind.DEADLINE,
            f"nothing came for {settings.stream_idle_seconds:g} s after the call: send `open` first",
        ) from None
    encoding = convert.encoding(opening.encoding, wire.Encoding.COLUMNS_V1)
    stream = await streams.open(convert.stream_options(opening))
    current_call.get().answered_by(stream.model.name, stream.model.version)
    conversation = _Conversation(stream, encoding, settings, context)
    try:
        await conversation.run()
    finally:
        # Shielded: the slot is given back even when this call is cancelled once more meanwhile.
        await asyncio.shield(conversation.close())


def _opening(message: object) -> pb.OpenStream:
    if message is grpc.aio.EOF:
        raise ServiceError(
            ErrorKind.MALFORMED, "the stream ended before it began: send `open` first"
        )
    checked = _checked(message)
    if checked.WhichOneof("kind") != "open":
        raise ServiceError(
            ErrorKind.MALFORMED, f"the first message is {_name(checked)}: send `open` first"
        )
    return checked.open


def _checked(message: object) -> pb.EventMessage:
    if isinstance(message, Unreadable):
        raise unreadable()
    if not isinstance(message, pb.EventMessage):
        raise TypeError(f"read {type(message).__name__} from an event stream")
    return message


def _name(message: pb.EventMessage) -> str:
    kind = message.WhichOneof("kind")
    return f"`{kind}`" if kind else "empty, or of a kind that this server does not know"


class _Conversation:
    def __init__(
        self, stream: Stream, encoding: wire.Encoding, settings: Settings, context: Context
    ) -> None:
        self._stream = stream
        self._encoding = encoding
        self._settings = settings
        self._context = context
        self._packets = PacketCount()
        self._decoder = wire.Decoder()
        self._totals = pb.StreamEnded()
        self._closed = asyncio.create_task(stream.wait_closed())

    async def run(self) -> None:
        await self._write(pb.EventAnswer(opened=convert.stream_opened(self._stream)))
        while True:
            message = await self._unless_closed(self._context.read())
            if message is grpc.aio.EOF:
                break
            checked = _checked(message)
            if checked.WhichOneof("kind") == "end":
                break
            await self._answer(await self._take(checked))
        await self._answer(await self._stream.finish())
        self._totals.drops.CopyFrom(self._drops(*self._stream.drops))
        await self._write(pb.EventAnswer(ended=self._totals))

    async def close(self) -> None:
        await self._stream.close()
        self._closed.cancel()

    async def _take(self, message: pb.EventMessage) -> list[WindowAnswer]:
        kind = message.WhichOneof("kind")
        if kind == "events":
            return await self._feed(message.events)
        if kind == "advance":
            return await self._stream.advance(message.advance.time_us)
        raise ServiceError(
            ErrorKind.MALFORMED,
            f"a message is {_name(message)}: after `open` come `events`, `advance` and `end`",
        )

    async def _feed(self, packet: pb.EventPacket) -> list[WindowAnswer]:
        limit = self._settings.max_message_bytes
        if len(packet.payload) > limit:
            raise ServiceError(
                ErrorKind.TOO_LARGE,
                f"packet {packet.sequence} has {len(packet.payload)} bytes, the limit is {limit} "
                "(SPIKESERVE_MAX_MESSAGE_BYTES): send its events in several",
            )
        lost = self._packets.lost
        if not self._packets.is_new(packet.sequence):
            return []
        if self._packets.lost > lost:
            self._decoder.lost()
        most = self._settings.max_message_events
        given = (packet, self._encoding, self._decoder, most)
        if len(packet.payload) <= _INLINE_BYTES:
            events = convert.packet_events(*given)
        else:
            # A camera's words take a while, and the event loop has other streams too.
            events = await asyncio.to_thread(convert.packet_events, *given)
        return await self._stream.feed(events)

    async def _answer(self, answers: list[WindowAnswer]) -> None:
        for answer in answers:
            self._totals.windows += 1
            self._totals.events += answer.events
            drops = self._drops(answer.late, answer.outside, answer.skipped, answer.filtered)
            classes = self._stream.model.manifest.classes
            window = convert.window_answer(answer, classes, drops, self._packets.last)
            await self._write(pb.EventAnswer(window=window))

    def _drops(self, late: int, outside: int, skipped: int, filtered: int) -> pb.Drops:
        return pb.Drops(
            late_events=late,
            outside_events=outside,
            skipped_windows=skipped,
            lost_packets=self._packets.lost,
            repeated_packets=self._packets.repeated,
            filtered_events=filtered,
        )

    async def _write(self, answer: pb.EventAnswer) -> None:
        await self._unless_closed(self._context.write(answer))

    async def _unless_closed(self, action: Awaitable[T]) -> T:
        """The result of `action`, or the reason for which the server closed the stream meanwhile."""
        task: asyncio.Future[T] = asyncio.ensure_future(action)
        waiting: set[asyncio.Future[Any]] = {task, self._closed}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if not task.done() and (reason := self._closed.result()) is not None:
                raise reason.again()
            return await task
        finally:
            task.cancel()
