"""Where snapshots are kept: a folder or Redis, by what the setting says."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

REDIS_SCHEMES = ("redis://", "rediss://", "unix://")


class StoreSettingError(ValueError):
    """SPIKESERVE_SNAPSHOTS names a store that cannot be used. The message says why and what to do."""


class Store(Protocol):
    """Keeps a bounded number of snapshots for a bounded time; when there are too many the oldest goes.

    Called from several threads. Each method raises OSError where the store does not answer, or has no room, within
    seconds.
    """

    def put(self, name: str, snapshot: bytes) -> None:
        """In the place of one with the same name. Whole or not at all."""

    def get(self, name: str) -> bytes | None:
        """None where there is none, or it has expired."""

    def remove(self, name: str) -> bool:
        """Whether it was there. Of several that remove it at once, one is told that it was."""

    def sweep(self) -> None:
        """Remove what has expired."""

    def close(self) -> None: ...


def open_store(place: str, seconds: float, most: int) -> Store:
    """Raises StoreSettingError for a folder that cannot be written to, or an address of Redis that cannot be."""
    if place.startswith(REDIS_SCHEMES):
        from spikeserve.snapshots.redis_store import RedisStore

        return RedisStore(place, seconds, most)
    if "://" in place:
        known = ", ".join(REDIS_SCHEMES)
        raise StoreSettingError(f"snapshots: {place!r} is neither a folder nor {known}")
    from spikeserve.snapshots.folder import FolderStore

    return FolderStore(Path(place).expanduser(), seconds, most)
