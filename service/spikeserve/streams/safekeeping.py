"""Sessions without a connection, put where another server finds them; of whom each is, is where its snapshot is."""

from __future__ import annotations

import asyncio
import hashlib
import logging
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
    """To be used on one event loop. Without `snapshots` nothing is kept anywhere else."""

    def __init__(self, snapshots: Snapshots | None) -> None:
        self.snapshots = snapshots
        self._tasks: set[asyncio.Task[bool]] = set()

    def keep(self, session: Session) -> None:
        """Begin to save a session that no connection has; `session.saving` is the task."""
        # One that is finished has nothing to go on with, and would take the place of another one.
        if self.snapshots is None or session.finished:
            return
        session.saving = task = asyncio.create_task(self.save(session))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def save(self, session: Session) -> bool:
        """Whether another server can go on with it. A failure of the store is counted, and nothing else."""
        if self.snapshots is None or session.token is None:
            return False
        try:
            content = _content(session, await session.save())
            token = session.token
            snapshot = await asyncio.to_thread(pack, token, content)
            await self.snapshots.put(token, snapshot)
        except (ServiceError, StoreUnavailableError):
            return False
        session.stored = hashlib.sha256(snapshot).digest()
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
                found = await self.snapshots.get(session.token)
                if found is None or hashlib.sha256(found).digest() != session.stored:
                    return False
                ours = await self.snapshots.remove(session.token)
            except StoreUnavailableError:
                # Then nobody else has found it there either.
                return True
            session.stored = None
            return ours

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
