"""Files of a data set, in a folder or in a ZIP archive that stays packed; and their digests, remembered."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from spiketrain.checkpoint import write_atomically
from spiketrain.data.lazy import readers

MAX_BYTES = 2 << 30
"""Of one file that is read into memory."""

_REMEMBERED = ".spiketrain-digests.json"


@dataclass(frozen=True, slots=True)
class Stored:
    """A file `name` under the folder `place`, or a member of the archive `place`."""

    place: Path
    name: str
    size: int
    packed: bool = False

    def __str__(self) -> str:
        return f"{self.place}/{self.name}"

    def read(self) -> bytes:
        """Raises ValueError for one that is too large or damaged in its archive, OSError where it cannot be read."""
        if self.size > MAX_BYTES:
            raise ValueError(f"{self}: {self.size} bytes, more than the limit of {MAX_BYTES}")
        if not self.packed:
            return (self.place / self.name).read_bytes()
        try:
            return _archive(self.place).read(self.name)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, KeyError) as error:
            raise ValueError(f"{self}: {error}; get the archive anew") from error


class Tree:
    """The files of a folder, or of a ZIP archive below the folder `top` in it."""

    def __init__(self, place: Path, top: str = "") -> None:
        self.place = place
        self.packed = place.is_file()
        self._top = f"{top}/" if top and self.packed else ""
        if self.packed:
            self._members = {
                each.filename: each.file_size
                for each in _archive(place).infolist()
                if not each.is_dir() and each.filename.startswith(self._top)
            }

    def files(self, under: str = "", suffixes: Sequence[str] = ()) -> list[Stored]:
        """All files below the folder `under`, in order of their names; with one of the suffixes, if any are given."""
        if not self.packed:
            found = list(_below(self.place, under))
        else:
            start = f"{self._top}{under}/" if under else self._top
            found = [
                Stored(self.place, name, size, True)
                for name, size in self._members.items()
                if name.startswith(start)
            ]
        endings = tuple(suffix.lower() for suffix in suffixes)
        if endings:
            found = [each for each in found if each.name.lower().endswith(endings)]
        return sorted(found, key=lambda each: each.name)

    def file(self, name: str) -> Stored | None:
        if self.packed:
            member = self._top + name
            if member not in self._members:
                return None
            return Stored(self.place, member, self._members[member], True)
        path = self.place / name
        return Stored(self.place, name, path.stat().st_size) if path.is_file() else None

    def parts(self, stored: Stored) -> tuple[str, ...]:
        """The folders and the name of a file below the top."""
        return tuple(stored.name.removeprefix(self._top).split("/"))

    def text(self, name: str) -> str | None:
        stored = self.file(name)
        return None if stored is None else stored.read().decode("utf-8", "replace")


def _below(root: Path, under: str) -> Iterable[Stored]:
    try:
        entries = list(os.scandir(root / under if under else root))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        name = f"{under}/{entry.name}" if under else entry.name
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _below(root, name)
        elif entry.is_file():
            yield Stored(root, name, entry.stat().st_size)


@functools.lru_cache(maxsize=64)
def _opened(path: Path, modified: int, size: int) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: {error}; get the archive anew") from error


def _archive(path: Path) -> zipfile.ZipFile:
    """Open once; reading from several threads is what ZipFile allows."""
    about = path.stat()
    return _opened(path, about.st_mtime_ns, about.st_size)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remembered_digests(folder: Path, paths: Iterable[Path]) -> dict[Path, str]:
    """sha256 of each file; known ones, by size and time of change, from a list in `folder`, which is kept up to date."""
    record = folder / _REMEMBERED
    known: dict[str, list[object]] = {}
    try:
        known = json.loads(record.read_text())
    except (OSError, ValueError):
        known = {}
    stamps = {path: [path.stat().st_size, path.stat().st_mtime_ns] for path in paths}
    found: dict[Path, str] = {}
    missing = []
    for path, stamp in stamps.items():
        entry = known.get(_key(path, folder))
        if isinstance(entry, list) and len(entry) == 3 and entry[:2] == stamp:
            found[path] = str(entry[2])
        else:
            missing.append(path)
    for path, digest in zip(missing, readers().map(sha256_of, missing), strict=True):
        found[path] = digest
        known[_key(path, folder)] = [*stamps[path], digest]
    if missing:
        # Where the folder may not be written to, the digests are computed again next time.
        with contextlib.suppress(OSError):
            write_atomically(record, json.dumps(known).encode())
    return found


def _key(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def digest_of_lines(lines: Iterable[str]) -> str:
    total = hashlib.sha256()
    for line in lines:
        total.update(f"{line}\n".encode())
    return total.hexdigest()
