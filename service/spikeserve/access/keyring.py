"""The keys of the server, as the file has them now: it may be changed while the server runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from spikeserve.access.keys import KeyEntry, KeysError, digest, read_keys

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0


class Keyring:
    """Raises KeysError where the file cannot be used. One that becomes unusable later leaves the keys as they were."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._looked = clock()
        self._stamp = _stamp(path)
        self._keys = _by_digest(path)

    def find(self, key: str) -> KeyEntry | None:
        """The entry of this key, where there is one that has not expired."""
        self._look()
        entry = self._keys.get(digest(key))
        return None if entry is None or entry.expired(datetime.now(UTC)) else entry

    def knows(self, name: str) -> bool:
        """Whether a key of this name is in the file, expired or not."""
        return any(entry.name == name for entry in self._keys.values())

    def _look(self) -> None:
        """When somebody asks, and once a second at most: idle, this costs nothing."""
        now = self._clock()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = _by_digest(self._path)
        except KeysError as error:
            logger.error("the keys stay as they were: %s", error)
        else:
            logger.info("%d keys were read from %s", len(self._keys), self._path)


def _by_digest(path: Path) -> dict[str, KeyEntry]:
    return {entry.sha256: entry for entry in read_keys(path).keys}


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
