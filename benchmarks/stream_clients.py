"""Many event streams from one process, over gRPC: messages made beforehand, answers kept as bytes and read afterwards.

So the client costs little beside the server, which has the same processors. Ten recordings of the emulated camera, each of one second and
repeated without end, are shared by all streams.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spiketrain.events import wire
from spiketrain.events.demo import demo_events
from spiketrain.events.types import Events

RECORDINGS = 10
_METHOD = "/spikeserve.v1.SpikeServe/StreamEvents"
_CHANNELS = 8
_SECOND_US = 1_000_000


class Source:
    """One recording's messages. `events[k]` is how many events window k of each second has.

    With a `busy` share below 1 only the first windows of each second have events, as where little moves.
    """

    def __init__(self, digit: int, window_us: int, busy: float = 1.0) -> None:
        self.window_us = window_us
        self.windows = _SECOND_US // window_us
        chunks = itertools.takewhile(
            lambda chunk: chunk.until_us <= _SECOND_US,
            demo_events(digit, itertools.repeat(digit), chunk_us=window_us),
        )
        seen = Events.concatenate([chunk.events for chunk in chunks]).sorted()
        self.packets: list[tuple[int, bytes] | None] = []
        self.events: list[int] = []
        for k in range(self.windows):
            part = seen[(seen.t >= k * window_us) & (seen.t < (k + 1) * window_us)]
            if k >= busy * self.windows:
                part = part[:0]
            self.events.append(len(part))
            payload, base_us = (
                wire.encode(wire.Encoding.COLUMNS_V1, part) if len(part) else (b"", 0)
            )
            self.packets.append((base_us, payload) if len(part) else None)

    def messages(self, window: int) -> list[bytes]:
        """What closes this window of the stream: its events, if it has any, and the time that was reached."""
        second, k = divmod(window, self.windows)
        advance = pb.Advance(time_us=(window + 1) * self.window_us)
        closing = pb.EventMessage(advance=advance).SerializeToString()
        if (packet := self.packets[k]) is None:
            return [closing]
        base_us, payload = packet
        events = pb.EventPacket(base_us=second * _SECOND_US + base_us, payload=payload)
        return [pb.EventMessage(events=events).SerializeToString(), closing]


@dataclass
class Stream:
    """`due` is when each window closed at the camera, `answered` when its answer was here: times of perf_counter()."""

    source: Source
    call: Any
    due: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    answers: list[bytes] = field(default_factory=list)
    ended: pb.StreamEnded | None = None

    async def open(self, opening: bytes) -> None:
        await self.call.write(opening)
        answer = pb.EventAnswer.FromString(await self.call.read())
        if answer.WhichOneof("kind") != "opened":
            raise RuntimeError("the stream was not opened")

    async def send(self, window: int, due: float) -> None:
        self.due.append(due)
        for message in self.source.messages(window):
            await self.call.write(message)

    async def receive(self) -> None:
        self.answers.append(await self.call.read())
        self.answered.append(time.perf_counter())

    async def closed_loop(self, until: float) -> None:
        """Each window when the one before it has been answered."""
        for window in itertools.count():
            if (now := time.perf_counter()) >= until:
                return
            await self.send(window, now)
            await self.receive()

    async def paced(self, begin: float, until: float, speed: float) -> None:
        """A window every `window_us` of the camera's time, which runs `speed` times as fast, whatever is answered."""
        count = max(1, int((until - begin) * speed / self.source.window_us * 1e6))
        reader = asyncio.create_task(self._receive_all(count))
        for window in range(count):
            due = begin + (window + 1) * self.source.window_us / 1e6 / speed
            await asyncio.sleep(due - time.perf_counter())
            await self.send(window, due)
        await reader

    async def finish(self) -> None:
        await self.call.write(pb.EventMessage(end=pb.EndOfStream()).SerializeToString())
        async for content in _each(self.call):
            answer = pb.EventAnswer.FromString(content)
            if answer.WhichOneof("kind") == "ended":
                self.ended = answer.ended

    async def _receive_all(self, count: int) -> None:
        for _ in range(count):
            await self.receive()


async def _each(call: Any) -> AsyncIterator[bytes]:
    while (content := await call.read()) is not grpc.aio.EOF:
        yield content


class Clients:
    def __init__(self, target: str, window_us: int, busy: float = 1.0) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.channels = [grpc.aio.insecure_channel(target, options) for _ in range(_CHANNELS)]
        self.sources = [Source(digit, window_us, busy) for digit in range(RECORDINGS)]
        opening = pb.OpenStream(
            start_us=0, encoding=pb.ENCODING_COLUMNS_V1, window_us=window_us, force=True
        )
        self.opening = pb.EventMessage(open=opening).SerializeToString()

    async def open(self, count: int) -> list[Stream]:
        streams = []
        for i in range(count):
            channel = self.channels[i % len(self.channels)]
            call = channel.stream_stream(_METHOD, _same, _same)()
            streams.append(Stream(self.sources[i % RECORDINGS], call))
        for stream in streams:
            await stream.open(self.opening)
        return streams

    async def close(self) -> None:
        for channel in self.channels:
            await channel.close()


def _same(content: bytes) -> bytes:
    return content


async def run(
    clients: Clients,
    count: int,
    seconds: float,
    speed: float | None,
    begun: Callable[[], None],
) -> list[Stream]:
    """Opens so many streams, runs them for a time and ends them; closed loop where `speed` is None."""
    streams = await clients.open(count)
    begun()
    began = time.perf_counter()
    dice = random.Random(0)
    if speed is None:
        runs = [stream.closed_loop(began + seconds) for stream in streams]
    else:
        # Cameras do not take their windows in step.
        period = clients.sources[0].window_us / 1e6 / speed
        starts = [began + dice.random() * period for _ in streams]
        runs = [
            stream.paced(start, start + seconds, speed)
            for stream, start in zip(streams, starts, strict=True)
        ]
    await asyncio.gather(*runs)
    await asyncio.gather(*(stream.finish() for stream in streams))
    return streams
