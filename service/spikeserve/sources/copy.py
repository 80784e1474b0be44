"""The copy of one address in the cache: made file by file, each verified before it takes its name."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from spikeserve.sources.address import (
    SETTINGS_FILE,
    SUFFIXES,
    SUMS_FILE,
    Address,
    SourceError,
)

MOST_BYTES = 8 << 30
MOST_FILES = 10_000
_CHUNK = 1 << 20
_RECORD = ".origin.json"
# What tells one state of a file from another, where a file system says it.
_STATE = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "size")


class Copy:
    """`folder` holds the files as they are at the address, and a record of which state of them that was."""

    def __init__(self, address: Address, folder: Path) -> None:
        self.address = address
        self.folder = folder

    def bring_up_to_date(self) -> bool:
        """Copies what is new or has changed, and removes what is gone; whether anything did.

        A file that cannot be had, or is not what its digest says, leaves the copy of it as it was. Raises SourceError,
        after all else was done.
        """
        system, root = _open(self.address)
        there = _listed(self.address, system, root)
        record = self._record()
        sums = self._sums(system, there)
        faults: list[str] = []
        changed = False
        for name, (path, state) in there.items():
            wanted = sums.get(name, self.address.digest)
            known = {"state": state, "digest": wanted}
            if record.get(name) == known and (self.folder / name).is_file():
                continue
            try:
                self._fetch(system, path, name, wanted)
            except SourceError as error:
                faults.append(str(error))
                continue
            except Exception as error:
                faults.append(f"{self.address}: {name}: {error or type(error).__name__}")
                continue
            record[name] = known
            changed = True
            self._save(record)
        for name in set(record) - set(there):
            (self.folder / name).unlink(missing_ok=True)
            del record[name]
            changed = True
            self._save(record)
        if faults:
            raise SourceError("; ".join(faults))
        return changed

    @property
    def has_files(self) -> bool:
        return any(name.endswith(SUFFIXES) for name in self._record())

    def _fetch(self, system: Any, path: str, name: str, wanted: str | None) -> None:
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        digest = hashlib.sha256()
        size = 0
        try:
            with system.open(path, "rb") as source, scratch.open("wb") as copy:
                for chunk in _chunks(source):
                    size += len(chunk)
                    if size > MOST_BYTES:
                        raise SourceError(
                            f"{self.address}: {name} has more than {MOST_BYTES} bytes"
                        )
                    digest.update(chunk)
                    copy.write(chunk)
                copy.flush()
                os.fsync(copy.fileno())
            if wanted is not None and digest.hexdigest() != wanted:
                raise SourceError(
                    f"{self.address}: {name} has the SHA-256 {digest.hexdigest()}, not {wanted}: it is not used"
                )
            os.replace(scratch, target)
        finally:
            scratch.unlink(missing_ok=True)

    def _sums(self, system: Any, there: dict[str, tuple[str, Any]]) -> dict[str, str]:
        """The digests that the folder itself states, as sha256sum writes them."""
        if SUMS_FILE not in there:
            return {}
        path, _ = there.pop(SUMS_FILE)
        sums = {}
        for line in system.cat_file(path).decode("utf-8", "replace").splitlines():
            digest, _, name = line.strip().partition(" ")
            if len(digest) == 64 and name:
                sums[name.lstrip(" *").removeprefix("./")] = digest.lower()
        missing = [name for name in there if name.endswith(SUFFIXES) and name not in sums]
        if missing:
            raise SourceError(f"{self.address}: {SUMS_FILE} does not have {', '.join(missing)}")
        return sums

    def _record(self) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / _RECORD).read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _save(self, record: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        scratch = self.folder / f"{_RECORD}.{uuid.uuid4().hex}"
        scratch.write_text(json.dumps(record, indent=1))
        os.replace(scratch, self.folder / _RECORD)


def _open(address: Address) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError:
        raise SourceError(
            f"{address}: models from elsewhere need fsspec: pip install 'spikeserve[remote]'"
        ) from None
    try:
        # What a store said before is not what it has now.
        system, root = fsspec.core.url_to_fs(
            address.url, use_listings_cache=False, skip_instance_cache=True
        )
        return system, str(root)
    except (ImportError, ValueError) as error:
        raise SourceError(f"{address}: {error}") from error


def _listed(address: Address, system: Any, root: str) -> dict[str, tuple[str, Any]]:
    """By name in the folder: path, and what tells its state."""
    try:
        if address.is_file:
            return {address.name: (root, _state(system.info(root)))}
        found = system.find(root, maxdepth=2, detail=True)
    except FileNotFoundError:
        raise SourceError(f"{address}: there is nothing") from None
    except Exception as error:
        raise SourceError(f"{address}: {error or type(error).__name__}") from error
    base = urlsplit(root).path if "://" in root else root
    names: dict[str, tuple[str, Any]] = {}
    for path, info in found.items():
        name = str(path)[len(base) :].strip("/")
        if _is_wanted(name):
            names[name] = (str(path), _state(info))
    if len(names) > MOST_FILES:
        raise SourceError(f"{address}: more than {MOST_FILES} files: name a folder of models")
    if not any(name.endswith(SUFFIXES) for name in names):
        raise SourceError(f"{address}: no models there ({', '.join(SUFFIXES)})")
    return names


def _is_wanted(name: str) -> bool:
    parts = PurePosixPath(name).parts
    if not parts or len(parts) > 2 or any(part.startswith(".") for part in parts):
        return False
    if len(parts) == 1:
        return name == SUMS_FILE or name.endswith(SUFFIXES)
    return parts[1] == SETTINGS_FILE or parts[1].endswith(SUFFIXES)


def _state(info: dict[str, Any]) -> dict[str, str]:
    return {key: str(info[key]) for key in _STATE if info.get(key) is not None}


def _chunks(source: Any) -> Iterator[bytes]:
    with contextlib.closing(source):
        while chunk := source.read(_CHUNK):
            yield chunk
