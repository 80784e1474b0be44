"""A whole recording as a stream: the same windows, filters and decisions, decoded piece by piece in the workers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.settings import Settings
from spikeserve.streams.registry import Streams
from spikeserve.streams.stream import Stream, WindowAnswer
from spikeserve.streams.terms import StreamOptions
from spiketrain.events.formats import EventFormatError, Recording, open_recording
from spiketrain.events.types import Events

T = TypeVar("T")

_CHUNK = 1 << 16


@dataclass(frozen=True)
class RecordingAnswer:
    """`format` is a name of spiketrain.events.formats; `sensor` what the recording says; `answers` those of the windows.

    `damage` says why the recording could not be read to its end: the answers are to what could be read.
    """

    model: str
    version: str
    classes: tuple[str, ...]
    format: str
    sensor: tuple[int, int] | None
    events: int
    answers: tuple[WindowAnswer, ...]
    drops: tuple[int, int, int, int]
    damage: str | None
    decode_seconds: float
    total_seconds: float


class Recordings:
    """Classifies recordings, on the event loop of `streams`."""

    def __init__(self, streams: Streams, settings: Settings) -> None:
        self._streams = streams
        self._settings = settings

    async def classify(
        self,
        content: bytes,
        options: StreamOptions,
        *,
        format: str | None = None,
        topic: str | None = None,
    ) -> RecordingAnswer:
        """`format` names the format where the content does not tell, `topic` one of several cameras.

        The recording's sensor counts where `options` name none. Raises ServiceError: UNSUPPORTED_MEDIA for what is no
        recording, MALFORMED for one without a single event that can be read, TOO_LARGE, and as Streams.open.
        """
        began = time.monotonic()
        reader = _Reader(self._streams.workers)
        try:
            recording = await reader.open(content, format, topic)
            if options.sensor is None and recording.sensor is not None:
                options = replace(options, sensor=recording.sensor)
            stream = await self._streams.open(options)
            try:
                return await self._run(stream, recording, reader, began)
            finally:
                await stream.close()
        finally:
            reader.close()

    async def _run(
        self, stream: Stream, recording: Recording, reader: _Reader, began: float
    ) -> RecordingAnswer:
        most_events = self._settings.max_recording_events
        answers: list[WindowAnswer] = []
        while (events := await reader.next()) is not None:
            if recording.events_read > most_events:
                raise ServiceError(
                    ErrorKind.TOO_LARGE,
                    f"the recording has more than {most_events} events (SPIKESERVE_MAX_RECORDING_EVENTS): stream it",
                )
            # A piece, at most as many events as a message may have.
            step = self._settings.max_message_events
            for begin in range(0, len(events), step):
                answers += await stream.feed(events[begin : begin + step], self._left(answers))
        if not recording.events_read:
            raise ServiceError(ErrorKind.MALFORMED, reader.damage or "the recording has no events")
        answers += await stream.finish(self._left(answers))
        return RecordingAnswer(
            model=stream.model.name,
            version=stream.model.version,
            classes=tuple(stream.model.manifest.classes),
            format=recording.format,
            sensor=recording.sensor,
            events=recording.events_read,
            answers=tuple(answers),
            drops=stream.drops,
            damage=reader.damage,
            decode_seconds=reader.seconds,
            total_seconds=time.monotonic() - began,
        )

    def _left(self, answers: list[WindowAnswer]) -> int:
        """How many windows more there may be."""
        most = self._settings.max_recording_windows
        if len(answers) > most:
            raise ServiceError(
                ErrorKind.TOO_LARGE,
                f"the recording has more than {most} windows (SPIKESERVE_MAX_RECORDING_WINDOWS): stream it",
            )
        # Room for one message more, so that it is this limit that is named.
        return most - len(answers) + self._settings.max_message_windows


class _Reader:
    """The pieces of a recording, read in the workers, until its end or the damage that ends it."""

    def __init__(self, workers: ThreadPoolExecutor) -> None:
        self._workers = workers
        self._recording: Recording | None = None
        self._last: Future[Any] | None = None
        self.damage: str | None = None
        self.seconds = 0.0

    async def open(self, content: bytes, format: str | None, topic: str | None) -> Recording:
        def opened() -> Recording:
            self._recording = _opened(content, format, topic)
            return self._recording

        return await self._in_worker(opened)

    async def next(self) -> Events | None:
        return await self._in_worker(self._next)

    def close(self) -> None:
        """When the last piece is done: a worker may still be at it for a client that has left."""
        if self._last is not None:
            self._last.add_done_callback(self._close)

    def _close(self, _: Future[Any]) -> None:
        if self._recording is not None:
            self._recording.close()

    def _next(self) -> Events | None:
        if self._recording is None:
            return None
        began = time.thread_time()
        try:
            return next(iter(self._recording), None)
        except EventFormatError as error:
            self.damage = str(error)
            return None
        finally:
            self.seconds += time.thread_time() - began

    async def _in_worker(self, work: Callable[[], T]) -> T:
        future = self._workers.submit(work)
        self._last = future
        return await asyncio.wrap_future(future)


def _opened(content: bytes, format: str | None, topic: str | None) -> Recording:
    if not content:
        raise ServiceError(ErrorKind.MALFORMED, "the body is empty: send the bytes of a recording")
    try:
        return open_recording(content, format, stream=topic, chunk_events=_CHUNK)
    except EventFormatError as error:
        raise ServiceError(ErrorKind.UNSUPPORTED_MEDIA, str(error)) from None
