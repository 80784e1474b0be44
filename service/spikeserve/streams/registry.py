"""All streams of a server: opening, counting and closing them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.metrics import Metrics
from spikeserve.repository import Repository
from spikeserve.settings import Settings
from spikeserve.streams.parking import Parking
from spikeserve.streams.stream import Stream
from spikeserve.streams.terms import StreamOptions, input_of, shutting_down, windows_of


class Streams:
    """All open streams. To be used on one event loop. `parking` has those that wait for their clients."""

    def __init__(self, repository: Repository, metrics: Metrics, settings: Settings) -> None:
        self._repository = repository
        self._settings = settings
        self.workers = ThreadPoolExecutor(settings.decode_threads, "windows")
        self.parking = Parking(settings.resume_seconds, settings.max_parked_streams)
        self._open: set[Stream] = set()
        self._closed = False
        metrics.watch_streams(lambda: len(self), lambda: len(self.parking))

    def __len__(self) -> int:
        """How many are open, those that wait for their clients too."""
        return len(self._open)

    async def open(self, options: StreamOptions) -> Stream:
        """Raises ServiceError: NOT_FOUND, IMPOSSIBLE where model and options do not fit, UNAVAILABLE at the limit."""
        model = self._repository.get(options.model, options.version, "events")
        spec = input_of(model, options)
        windows = windows_of(model, spec, options)
        if self._closed:
            raise shutting_down()
        limit = self._settings.max_streams
        # A client that is here goes before one that may come back.
        if len(self._open) >= limit and not self.parking.evict():
            raise ServiceError(ErrorKind.UNAVAILABLE, f"{limit} streams are open, the limit", 5.0)
        engine = model.engine.open_stream()
        stream = Stream(
            model,
            spec,
            windows,
            engine,
            options,
            self._settings,
            self.workers,
            self._open.discard,
        )
        self._open.add(stream)
        return stream

    async def close(self) -> None:
        """Close all streams; those who wait for them are told that the server is shutting down."""
        self._closed = True
        self.parking.close()
        for stream in list(self._open):
            stream.end(shutting_down())
        self.workers.shutdown(wait=False, cancel_futures=True)
