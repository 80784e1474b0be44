"""All streams of a server: opening, counting and closing them, and going on with those that were left."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.metrics import Metrics
from spikeserve.repository import LoadedModel, Repository
from spikeserve.settings import Settings
from spikeserve.snapshots import Snapshots, open_store
from spikeserve.streams.outlet import Outlet, Write
from spikeserve.streams.parking import Parking
from spikeserve.streams.safekeeping import Safekeeping, check_model, terms_of, unusable
from spikeserve.streams.session import Session, Terms
from spikeserve.streams.stream import Stream
from spikeserve.streams.terms import (
    StreamOptions,
    input_of,
    shutting_down,
    slow_policy,
    was_silent,
    windows_of,
)
from spiketrain.events import wire
from spiketrain.events.memory import Memory

# A bare token is enough; what else is said must be true.
_BARE: Terms = (StreamOptions(), wire.Encoding.COLUMNS_V1)


class Streams:
    """All open streams. To be used on one event loop. `parking` has those that wait for their clients, `safekeeping`
    what another server may go on with. Raises StoreSettingError."""

    def __init__(self, repository: Repository, metrics: Metrics, settings: Settings) -> None:
        self._repository = repository
        self._settings = settings
        self.workers = ThreadPoolExecutor(settings.decode_threads, "windows")
        self._metrics = metrics
        self.safekeeping = Safekeeping(
            _snapshots(metrics, settings), settings.snapshot_interval_seconds
        )
        self.parking = Parking(
            settings.resume_seconds,
            settings.max_parked_streams,
            self.safekeeping.keep,
            self.safekeeping.discard,
        )
        self._open: set[Stream] = set()
        self._closed = False
        metrics.watch_streams(lambda: len(self), lambda: len(self.parking))

    def __len__(self) -> int:
        """How many are open, those that wait for their clients too."""
        return len(self._open)

    @property
    def resume_seconds(self) -> float:
        """For how long a client can come back."""
        snapshots = self.safekeeping.snapshots
        return max(self.parking.seconds, 0.0 if snapshots is None else snapshots.seconds)

    async def open(self, options: StreamOptions) -> Stream:
        """Raises ServiceError: NOT_FOUND, IMPOSSIBLE where model and options do not fit, UNAVAILABLE at the limit."""
        model = self._repository.get(options.model, options.version, "events")
        return self._opened(model, options, None)

    def outlet(self, session: Session, write: Write) -> Outlet:
        """The way out of a connection that has this session."""
        return Outlet(session, self._settings, self._metrics, write)

    def silent(self) -> ServiceError:
        """What a client is told whose connection is ended, but not its stream."""
        self._metrics.streams_ended.labels("idle").inc()
        return was_silent(self._settings)

    async def resume(self, token: str, terms: Terms) -> Session:
        """The session of that token, from memory or from its snapshot. It is the caller's now.

        Raises ServiceError: UNKNOWN_STREAM; IMPOSSIBLE where it was opened on other terms; UNAVAILABLE.
        """
        session = self.parking.known(token)
        if session is not None:
            _check_terms(session, terms)
            self.parking.hold(session)
            try:
                ours = await self.safekeeping.reclaim(session)
            except BaseException:
                if session.free:
                    self.parking.leave(session)
                raise
            if not ours:
                self.parking.forget(session)
                session = None
        if session is None:
            session = await self._restored(token, terms)
        await self.parking.claim(session)
        return session

    async def give_up(self, token: str) -> None:
        """Its client will not come back. Raises ServiceError UNKNOWN_STREAM, UNAVAILABLE."""
        session = self.parking.known(token)
        ours = False
        if session is not None:
            ours = await self.safekeeping.reclaim(session)
            self.parking.forget(session)
        if not ours and not await self.safekeeping.take(token):
            raise self.parking.unknown()

    def drain(self) -> None:
        """Connections let go of the streams with which another server can go on."""
        if self.safekeeping.snapshots is not None:
            for session in self.parking.sessions:
                if not session.leaving.done():
                    session.leaving.set_result(None)

    async def close(self) -> None:
        """Close all streams; those who wait for them are told that the server is shutting down."""
        self._closed = True
        for session in self.parking.sessions:
            if session.free and not session.kept:
                self.safekeeping.keep(session)
        await self.safekeeping.close()
        self.parking.close()
        for stream in list(self._open):
            stream.end(shutting_down())
        self.workers.shutdown(wait=False, cancel_futures=True)

    def _opened(self, model: LoadedModel, options: StreamOptions, state: bytes | None) -> Stream:
        spec = input_of(model, options)
        windows = windows_of(model, spec, options)
        slow_policy(options, self._settings)
        if self._closed:
            raise shutting_down()
        limit = self._settings.max_streams
        # A client that is here goes before one that may come back.
        if len(self._open) >= limit and not self.parking.evict():
            raise ServiceError(ErrorKind.UNAVAILABLE, f"{limit} streams are open, the limit", 5.0)
        engine = model.engine.open_stream(state)
        stream = Stream(
            model,
            spec,
            windows,
            engine,
            options,
            self._settings,
            self.workers,
            self._forget,
        )
        self._open.add(stream)
        return stream

    def _forget(self, stream: Stream) -> None:
        self._open.discard(stream)
        if stream.reason is not None and stream.reason.kind is ErrorKind.DEADLINE:
            self._metrics.streams_ended.labels("idle").inc()

    async def _restored(self, token: str, terms: Terms) -> Session:
        """From its snapshot, which is gone then."""
        content = await self.safekeeping.found(token)
        if content is None:
            # Another call may have been faster.
            return self.parking.find(token)
        try:
            session = self._from_snapshot(content, terms)
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise unusable(f"its snapshot cannot be used: {error}") from error
        try:
            if not await self.safekeeping.take(token):
                session.end(None)
                return self.parking.find(token)
        except BaseException:
            session.end(None)
            raise
        if self.safekeeping.snapshots is not None:
            self.safekeeping.snapshots.count("resumed")
        self.parking.register(session, token)
        session.release()
        return session

    def _from_snapshot(self, content: Memory, terms: Terms) -> Session:
        """Raises ServiceError as `resume`, ValueError and its like for a content that does not fit."""
        opened_on = terms_of(content)
        memory = dict(content["session"])
        of_stream = dict(memory.pop("stream"))
        state = of_stream.pop("engine")
        try:
            model = self._repository.get(str(content["model"]), str(content["version"]), "events")
        except ServiceError as error:
            if error.kind is ErrorKind.UNAVAILABLE:
                raise
            raise unusable(error.message) from error
        check_model(content, model)
        try:
            stream = self._opened(model, opened_on[0], state)
        except ServiceError as error:
            if error.kind is ErrorKind.UNAVAILABLE:
                raise
            raise unusable(error.message) from error
        session = Session(stream, self._settings, self.workers, opened_on, resumable=True)
        try:
            _check_terms(session, terms)
            stream.remember(of_stream)
            session.remember(memory)
        except BaseException:
            session.end(None)
            raise
        return session


def _snapshots(metrics: Metrics, settings: Settings) -> Snapshots | None:
    if settings.snapshots is None:
        return None
    seconds = settings.snapshot_seconds
    store = open_store(settings.snapshots, seconds, settings.max_snapshots)
    return Snapshots(store, seconds, metrics.snapshots)


def _check_terms(session: Session, terms: Terms) -> None:
    if terms not in (session.terms, _BARE):
        raise ServiceError(
            ErrorKind.IMPOSSIBLE,
            f"resume_token is of a stream of model {session.stream.model.name} that was opened on other terms: "
            "repeat those, or send the token alone",
        )
