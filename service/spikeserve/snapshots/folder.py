"""Snapshots as files of one folder, which several servers of one machine, or a shared disk, may have in common."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from spikeserve.snapshots.store import StoreSettingError

_SUFFIX = ".snapshot"
_UNFINISHED = ".unfinished"
# Nothing takes longer to write.
_UNFINISHED_SECONDS = 60.0


class FolderStore:
    """A `Store`. Only its owner may read the files: a stream's state tells what its camera saw."""

    def __init__(
        self, folder: Path, seconds: float, most: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._folder = folder
        self._seconds = seconds
        self._most = most
        # Of the file system's kind: another server, or this one later, has to understand it.
        self._clock = clock
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
            self.sweep()
        except OSError as error:
            raise StoreSettingError(
                f"snapshots: cannot write to the folder {folder}: {error.strerror or error}"
            ) from error

    def put(self, name: str, snapshot: bytes) -> None:
        descriptor, path = tempfile.mkstemp(_UNFINISHED, dir=self._folder)
        try:
            # Not forced to the disk: it is servers that end here, and a file that a machine's end has cut is told by
            # its checksum.
            with os.fdopen(descriptor, "wb") as file:
                file.write(snapshot)
            now = self._clock()
            os.utime(path, (now, now))
            os.replace(path, self._path(name))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise
        self.sweep()

    def get(self, name: str) -> bytes | None:
        path = self._path(name)
        try:
            if path.stat().st_mtime < self._clock() - self._seconds:
                return None
            return path.read_bytes()
        except FileNotFoundError:
            return None

    def remove(self, name: str) -> bool:
        try:
            self._path(name).unlink()
        except FileNotFoundError:
            return False
        return True

    def sweep(self) -> None:
        now = self._clock()
        kept: list[tuple[float, str]] = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                age = _age(entry, now)
                if age is None:
                    continue
                lasts = _UNFINISHED_SECONDS if entry.name.endswith(_UNFINISHED) else self._seconds
                if age > lasts:
                    _unlink(entry.path)
                elif entry.name.endswith(_SUFFIX):
                    kept.append((age, entry.path))
        kept.sort(reverse=True)
        for _, path in kept[: max(0, len(kept) - self._most)]:
            _unlink(path)

    def close(self) -> None:
        pass

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{_SUFFIX}"


def _age(entry: os.DirEntry[str], now: float) -> float | None:
    """None for what is not ours, or has gone meanwhile."""
    if not entry.name.endswith((_SUFFIX, _UNFINISHED)):
        return None
    try:
        return now - entry.stat(follow_symlinks=False).st_mtime
    except FileNotFoundError:
        return None


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
