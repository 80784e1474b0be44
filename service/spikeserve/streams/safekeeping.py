"""Sessions put where another server finds them: those without a connection, and every now and then those with one. Of whom
each is, is where its snapshot is."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Coroutine
from typing import Any

from pydantic import TypeAdapter, ValidationError

from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.repository import LoadedModel
from spikeserve.snapshots import ForeignError, SnapshotError, Snapshots, StoreUnavailableError, pack
from spikeserve.snapshots import unpack as unpack_snapshot
from spikeserve.streams.session import Session, Terms
from spiketrain.events.memory import Memory

logger = logging.getLogger(__name__)

_TERMS: TypeAdapter[Terms] = TypeAdapter(Terms)


class Safekeeping:
    """To be used on one event loop. Without `snapshots` nothing is kept anywhere else, with `interval` seconds of 0 nothing that has a
    connection."""

    def __init__(self, snapshots: Snapshots | None, interval: float = 0.0) -> None:
        self.snapshots = snapshots
        self._interval = interval
        self._tasks: set[asyncio.Task[bool]] = set()
        self._closed = False

    @property
    def keeps_going(self) -> bool:
        """Whether streams are kept while they have a connection."""
        return self.snapshots is not None and self._interval > 0

    def keep(self, session: Session) -> None:
        """Begin to save a session that no connection has; `session.saving` is the task."""
        # One that is finished has nothing to go on with, and would take the place of another one.
        if self.snapshots is not None and not session.finished:
            self._begin(session, self.save(session, session.saving))

    async def keep_up(self, session: Session, wait: bool = False) -> None:
        """Of a session with a connection, between two messages: begin to save what has changed, where it is time for that. With `wait`
        it is time now, and this returns when it is saved, or could not be."""
        now = asyncio.get_running_loop().time()
        due = wait or now >= session.save_after
        if not self.keeps_going or session.token is None or session.finished:
            return
        if not due or session.kept:
            return
        if session.saving is not None and not session.saving.done():
            return
        session.save_after = now + self._interval
        try:
            content = await session.save()
        except ServiceError:
            return  # whoever feeds it is told
        session.saved = True
        task = self._begin(session, self._put(session, content, session.last_sequence))
        if wait:
            await asyncio.wait({task})

    async def save(self, session: Session, before: asyncio.Task[bool] | None = None) -> bool:
        """Whether another server can go on with it. A failure of the store is counted, and nothing else. What `before` writes is
        written first."""
        if before is not None:
            await asyncio.wait({before})
        try:
            content = await session.save()
        except ServiceError:
            return False
        session.saved = True
        return await self._put(session, content, session.last_sequence)

    def discard(self, session: Session) -> None:
        """Begin to remove the snapshot of a session with which nobody is to go on."""
        if not self._closed and (session.stored is not None or session.saving is not None):
            self._watch(asyncio.create_task(self._remove(session)))

    async def _remove(self, session: Session) -> bool:
        if session.saving is not None:
            await asyncio.wait({session.saving})
        if self.snapshots is None or session.token is None or session.stored is None:
            return False
        try:
            return await self._taken_back(session, session.token)
        except StoreUnavailableError:
            return False  # it expires

    def _begin(self, session: Session, saving: Coroutine[Any, Any, bool]) -> asyncio.Task[bool]:
        session.saving = task = asyncio.create_task(saving)
        self._watch(task)
        return task

    def _watch(self, task: asyncio.Task[bool]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _put(self, session: Session, memory: Memory, sequence: int) -> bool:
        token = session.token
        if self.snapshots is None or token is None:
            return False
        try:
            snapshot = await asyncio.to_thread(pack, token, _content(session, memory))
            await self.snapshots.put(token, snapshot)
        except StoreUnavailableError:
            session.saved = False
            return False
        session.stored = hashlib.sha256(snapshot).digest()
        session.saved_sequence = sequence
        return True

    async def reclaim(self, session: Session) -> bool:
        """Whether the session is still ours; False where another server has gone on with it."""
        async with session.reclaiming:
            if session.saving is not None:
                await asyncio.wait({session.saving})
            if session.ended:
                # Given up meanwhile: its snapshot stands for it.
                return False
            if session.stored is None or self.snapshots is None or session.token is None:
                return True
            try:
                # Another server may have gone on with it, and have saved it since.
                ours = await self._taken_back(session, session.token)
            except StoreUnavailableError:
                # Then nobody else has found it there either.
                return True
            session.stored = None
            return ours

    async def _taken_back(self, session: Session, token: str) -> bool:
        """Whether the snapshot was there as we have written it. Raises StoreUnavailableError."""
        if self.snapshots is None:
            return False
        found = await self.snapshots.get(token)
        if found is None or hashlib.sha256(found).digest() != session.stored:
            return False
        return await self.snapshots.remove(token)

    async def found(self, token: str) -> Memory | None:
        """The content of a snapshot; it stays where it is. Raises ServiceError: UNAVAILABLE where the store fails, UNKNOWN_STREAM for what
        cannot be used."""
        if self.snapshots is None:
            return None
        try:
            snapshot = await self.snapshots.get(token)
            if snapshot is None:
                return None
            return await asyncio.to_thread(unpack_snapshot, token, snapshot)
        except StoreUnavailableError as error:
            raise _unavailable() from error
        except SnapshotError as error:
            self.snapshots.count("refused")
            logger.warning("a snapshot was refused: %s", error)
            if not isinstance(error, ForeignError):
                await self.take(token)
            raise unusable(str(error)) from error

    async def take(self, token: str) -> bool:
        """Whether the snapshot was there, and is the caller's now. Raises ServiceError UNAVAILABLE."""
        if self.snapshots is None:
            return False
        try:
            return await self.snapshots.remove(token)
        except StoreUnavailableError as error:
            raise _unavailable() from error

    async def settle(self) -> None:
        """Returns when all that is being saved is saved, or could not be."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        await self.settle()
        self._closed = True
        if self.snapshots is not None:
            await self.snapshots.close()


def _content(session: Session, memory: Memory) -> dict[str, Any]:
    model = session.stream.model
    return {
        "model": model.name,
        "version": model.version,
        "digest": model.manifest.digest,
        "terms": _TERMS.dump_python(session.terms, mode="json"),
        "session": memory,
    }


def terms_of(content: Memory) -> Terms:
    """What the stream was opened with. Raises ValueError."""
    try:
        return _TERMS.validate_python(content["terms"])
    except (ValidationError, KeyError) as error:
        raise ValueError(f"its terms cannot be read: {error}") from error


def check_model(content: Memory, model: LoadedModel) -> None:
    """Raises ServiceError UNKNOWN_STREAM where the snapshot is of another one."""
    if content.get("digest") != model.manifest.digest:
        raise unusable(
            f"it is of model {content.get('model')} {content.get('version')} with other weights than this server has"
        )


def unusable(why: str) -> ServiceError:
    return ServiceError(
        ErrorKind.UNKNOWN_STREAM,
        f"the stream was kept, but cannot go on here: {why}; open a new stream",
    )


def _unavailable() -> ServiceError:
    return ServiceError(
        ErrorKind.UNAVAILABLE, "the store in which streams are kept does not answer: try again", 1.0
    )
