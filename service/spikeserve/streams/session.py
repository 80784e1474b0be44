"""A stream as its client meets it: numbered packets in any encoding, and answers kept until they have arrived.

A session may outlive its connection (streams.parking). Each message is taken in whole or not at all, whatever becomes
of the connection meanwhile; so a client that comes back, sends again what has a higher number than the last one taken
in, and is sent again what it has not seen, goes on exactly where it was.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias, TypeVar

from pydantic import TypeAdapter

from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.settings import Settings
from spikeserve.streams.stream import Stream, WindowAnswer
from spikeserve.streams.terms import StreamOptions
from spiketrain.events import wire
from spiketrain.events.memory import Memory, Remembers, expect
from spiketrain.events.types import Events

T = TypeVar("T")

Terms: TypeAlias = tuple[StreamOptions, wire.Encoding]
_ANSWERS: TypeAdapter[list[WindowAnswer]] = TypeAdapter(list[WindowAnswer])

# Larger payloads are decoded in a thread: a camera's words take a while, and the event loop has other streams too.
_INLINE_BYTES = 1 << 17


class PacketCount(Remembers):
    """Numbers of packets only rise: what is left out was lost, what does not rise was sent again."""

    MEMORY: ClassVar[dict[str, Any]] = {"last": int, "lost": int, "repeated": int}

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


@dataclass(frozen=True)
class Packet:
    """One message of events. `sequence` is 0 where the client does not number its packets."""

    sequence: int
    encoding: wire.Encoding
    payload: bytes
    base_us: int


class Session(Remembers):
    """`terms` are what the client opened the stream with, and the encoding of packets that name none. With `resumable` a message
    that has begun is finished even if the connection breaks, and answers are kept.

    `stored` is the digest of its snapshot, where there is one, `saved` is whether that is of the present state, `saved_sequence` the last
    packet that is in it, `saving` is the task that writes one. `leaving` is done when its connection is to let go of it, because the
    server ends, `silent` when it is to end because its client says nothing."""

    MEMORY: ClassVar[dict[str, Any]] = {
        "windows": int,
        "events": int,
        "finished": bool,
        "dropped_answers": int,
        "refused_messages": int,
        "_packets": PacketCount,
        "_decoder": wire.Decoder,
        "_given_up": int,
    }

    def __init__(
        self,
        stream: Stream,
        settings: Settings,
        workers: ThreadPoolExecutor,
        terms: Terms,
        resumable: bool = False,
    ) -> None:
        self.stream = stream
        self.terms = terms
        self.resumable = resumable
        self.token: str | None = None
        self.windows = self.events = 0
        self.dropped_answers = self.refused_messages = 0
        self.finished = False
        self._settings = settings
        self._workers = workers
        self._packets = PacketCount()
        self._decoder = wire.Decoder()
        self._kept: deque[WindowAnswer] = deque()
        self._given_up = 0  # answers before this window were let go without having arrived
        self._under_way: asyncio.Future[Any] | None = None
        self._free = asyncio.Event()
        self._turn = asyncio.Lock()
        self._claims = 0
        loop = asyncio.get_running_loop()
        self.taken_over: asyncio.Future[None] = loop.create_future()
        self.leaving: asyncio.Future[None] = loop.create_future()
        self.silent: asyncio.Future[None] = loop.create_future()
        if resumable:
            stream.silent = self._was_silent
        self.ended = False
        self.stored: bytes | None = None
        self.saved = False
        self.saved_sequence = 0
        self.save_after = float("-inf")
        self.saving: asyncio.Task[bool] | None = None
        self.reclaiming = asyncio.Lock()

    @property
    def drops(self) -> tuple[int, int, int, int, int, int]:
        """As the stream's, then packets lost and packets repeated."""
        return (*self.stream.drops, self._packets.lost, self._packets.repeated)

    @property
    def last_sequence(self) -> int:
        """The highest number of a packet taken in."""
        return self._packets.last

    @property
    def next_window(self) -> int:
        """The first one that is not answered yet."""
        return self.stream.next_window

    # What a client sends.

    async def feed(self, packet: Packet) -> list[WindowAnswer]:
        """Raises ServiceError: MALFORMED for a payload that is not what its encoding says, and as Stream.feed."""
        return await self._whole(self._feed(packet))

    async def advance(self, t_us: int) -> list[WindowAnswer]:
        return await self._whole(self._keep(self.stream.advance(t_us)))

    async def finish(self) -> list[WindowAnswer]:
        """The last answers. The engine's part is freed; a session that is known by a token can still repeat itself."""
        if self.finished:
            return []
        return await self._whole(self._finish())

    def acknowledge(self, next_window: int) -> None:
        """The client has all answers before this one."""
        while self._kept and self._kept[0].index < next_window:
            self._kept.popleft()

    def answers_from(self, window: int) -> tuple[int, list[WindowAnswer]]:
        """Those kept from this window on; and the first one that is not lost, which is it unless too many were kept."""
        first = max(window, self._given_up)
        return first, [answer for answer in self._kept if answer.index >= first]

    # To go on elsewhere.

    async def save(self) -> Memory:
        """All that it remembers, the stream's part too, once the message under way is taken in. Raises ServiceError where the stream was
        closed."""
        await self._settled()
        stream = await self.stream.save()
        kept = _ANSWERS.dump_python(list(self._kept), mode="json")
        return self.memory() | {"stream": stream, "kept": kept}

    def remember(self, memory: Memory) -> None:
        """In a fresh session, what `save` gave, without the stream's part. Raises ValueError."""
        expect(memory, (*(name.lstrip("_") for name in self.MEMORY), "kept"))
        super().remember({name: value for name, value in memory.items() if name != "kept"})
        self._kept.extend(_ANSWERS.validate_python(memory["kept"]))
        if self.finished:
            self.stream.end(None)

    # Whose it is.

    @property
    def claimed(self) -> bool:
        """Another connection waits for it."""
        return self._claims > 0

    @property
    def free(self) -> bool:
        """No connection has it."""
        return self._free.is_set()

    @property
    def kept(self) -> bool:
        """Its snapshot is of the present state."""
        return self.saved and self.stored is not None

    async def take_over(self) -> None:
        """Give it to another connection, once the one that has it has let go and the message under way is taken in."""
        self._claims += 1
        try:
            async with self._turn:
                if not self.taken_over.done():
                    self.taken_over.set_result(None)
                await self._free.wait()
                await self._settled()
                self._free.clear()
                loop = asyncio.get_running_loop()
                self.taken_over, self.silent = loop.create_future(), loop.create_future()
                self.stream.wake()
        finally:
            self._claims -= 1

    def release(self) -> None:
        """The connection has let go."""
        self._free.set()

    def end(self, reason: ServiceError | None) -> None:
        """Close the stream, and let go of the answers."""
        self.ended = True
        self.stream.end(reason)
        if self._under_way is not None:
            self._under_way.cancel()
        self._kept.clear()

    def _was_silent(self) -> bool:
        """Whether it was the client of a connection, which may come back."""
        if not self.free and not self.silent.done():
            self.silent.set_result(None)
        return not self.free

    async def _settled(self) -> None:
        if self._under_way is not None and not self._under_way.done():
            await asyncio.wait({self._under_way})

    async def _whole(self, work: Coroutine[Any, Any, T]) -> T:
        self.saved = False
        if not self.resumable:
            return await work
        self._under_way = task = asyncio.ensure_future(work)
        # Nobody may be there any more to be told how it ended.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(task)

    async def _feed(self, packet: Packet) -> list[WindowAnswer]:
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
        if len(packet.payload) <= _INLINE_BYTES:
            events = self._decode(packet)
        else:
            loop = asyncio.get_running_loop()
            events = await loop.run_in_executor(self._workers, self._decode, packet)
        return await self._keep(self.stream.feed(events))

    def _decode(self, packet: Packet) -> Events:
        most = self._settings.max_message_events
        try:
            return self._decoder.feed(packet.encoding, packet.payload, packet.base_us, most)
        except ValueError as error:
            large = isinstance(error, wire.TooManyEventsError)
            raise ServiceError(
                ErrorKind.TOO_LARGE if large else ErrorKind.MALFORMED,
                f"events: packet {packet.sequence}: {error}",
            ) from None

    async def _finish(self) -> list[WindowAnswer]:
        answers = await self._keep(self.stream.finish())
        self.finished = True
        return answers

    async def _keep(self, work: Coroutine[Any, Any, list[WindowAnswer]]) -> list[WindowAnswer]:
        count = self._packets
        answers = [
            replace(
                answer,
                sequence=count.last,
                lost_packets=count.lost,
                repeated_packets=count.repeated,
            )
            for answer in await work
        ]
        self.windows += len(answers)
        self.events += sum(answer.events for answer in answers)
        if self.resumable:
            while len(self._kept) > self._settings.max_kept_answers:
                self._given_up = self._kept.popleft().index + 1
            self._kept.extend(answers)
        return answers
