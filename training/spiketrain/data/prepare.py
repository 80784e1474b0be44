"""Fetch the files of a data set, or take them from a folder; verify them; unpack what has to be unpacked."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from spiketrain.checkpoint import write_atomically
from spiketrain.data.base import DataMissingError
from spiketrain.data.catalogue import CATALOGUE, Entry, Remote

RECORD = ".spiketrain-files.json"
_PART = ".part"
_TIMEOUT = httpx.Timeout(30.0)

Report = Callable[[str, int, int | None], None]
"""Hears a file's name, the bytes that are there, and how many there will be, if that is known."""


class DownloadError(OSError):
    """A file could not be fetched or is not what it should be. The message says what to do."""


@dataclass(frozen=True)
class Checked:
    """`state`: "right" (its known digest), "recorded" (none known; as when it was first seen), "wrong" or "missing"."""

    name: str
    state: str
    digest: str = ""


def entry_of(name: str) -> Entry:
    if name not in CATALOGUE:
        raise ValueError(f"unknown data set {name!r}: known are {', '.join(CATALOGUE)}")
    return CATALOGUE[name]


def prepare(
    name: str,
    folder: Path,
    source: Path | None = None,
    report: Report = lambda name, done, of: None,
    client: httpx.Client | None = None,
) -> list[Checked]:
    """Put a data set's files into `folder`: from `source`, or downloaded; what is there and right stays.

    A download that was interrupted goes on where it stopped. Raises DataMissingError, with what to do, where a file has
    to be fetched by hand, DownloadError where fetching fails or the digest is wrong.
    """
    entry = entry_of(name)
    if not entry.files:
        if source is not None:
            return _linked(name, folder, source)
        raise DataMissingError(_by_hand(name, entry, folder))
    if source is not None and not source.is_dir():
        raise DataMissingError(f"{name}: no folder {source}")
    folder.mkdir(parents=True, exist_ok=True)
    known = _recorded(folder)
    own = None
    if client is None and source is None:
        own = client = httpx.Client(follow_redirects=True, timeout=_TIMEOUT)
    checked = []
    try:
        for file in entry.files:
            result = check_file(file, folder, known)
            if result.state in ("missing", "wrong") and not _unpacked(file, folder):
                _get(name, entry, file, folder, source, client, report)
                result = _verified(file, folder, known)
            checked.append(result)
            _record(folder, known, result)
    finally:
        if own is not None:
            own.close()
    for archive in entry.unpack:
        if (folder / archive).is_file():
            _unpack(folder / archive)
    return checked


def check(name: str, folder: Path) -> list[Checked]:
    """The state of each of a data set's distributed files in `folder`; one that is unpacked may be missing."""
    known = _recorded(folder)
    return [check_file(file, folder, known) for file in entry_of(name).files]


def check_file(file: Remote, folder: Path, known: dict[str, str]) -> Checked:
    path = folder / file.name
    if not path.is_file():
        return Checked(file.name, "missing")
    if file.md5:
        digest = _digest(path, "md5")
        return Checked(file.name, "right" if digest == file.md5 else "wrong", f"md5:{digest}")
    digest = _digest(path, "sha256")
    state = "recorded" if known.get(file.name, digest) == digest else "wrong"
    return Checked(file.name, state, f"sha256:{digest}")


def _get(
    name: str,
    entry: Entry,
    file: Remote,
    folder: Path,
    source: Path | None,
    client: httpx.Client | None,
    report: Report,
) -> None:
    if source is not None:
        found = source / file.name
        if not found.is_file():
            raise DataMissingError(f"{name}: no {file.name} in {source}. {_where(entry)}")
        _copy(found, folder / file.name, report)
    elif file.url and client is not None:
        _download(file, folder / file.name, client, report)
    else:
        raise DataMissingError(_by_hand(name, entry, folder))


def _download(file: Remote, path: Path, client: httpx.Client, report: Report) -> None:
    part = path.with_name(path.name + _PART)
    have = part.stat().st_size if part.is_file() else 0
    # What is packed on the way cannot be gone on with in its middle.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with client.stream("GET", file.url, headers=headers) as reply:
            if reply.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                have = 0  # all of it is there, or more: the digest says
                os.replace(part, path)
                return
            reply.raise_for_status()
            if reply.status_code != httpx.codes.PARTIAL_CONTENT:
                have = 0
            length = reply.headers.get("Content-Length")
            whole = int(length) + have if length and length.isdecimal() else None
            with part.open("ab" if have else "wb") as out:
                for block in reply.iter_raw():
                    out.write(block)
                    have += len(block)
                    report(file.name, have, whole)
    except httpx.HTTPError as error:
        raise DownloadError(
            f"{file.url}: {error or type(error).__name__}. {have} bytes are kept; run this again to go on, or fetch "
            f"the file by other means and run it with --from FOLDER"
        ) from error
    if whole is not None and have != whole:
        raise DownloadError(f"{file.url}: {have} of {whole} bytes came; run this again to go on")
    os.replace(part, path)


def _verified(file: Remote, folder: Path, known: dict[str, str]) -> Checked:
    result = check_file(file, folder, known)
    if result.state == "wrong":
        wanted = f"md5:{file.md5}" if file.md5 else f"sha256:{known[file.name]}"
        os.replace(folder / file.name, folder / f"{file.name}.wrong")
        raise DownloadError(
            f"{folder / file.name}: {result.digest}, not {wanted}: it is damaged or another file; it is kept as "
            f"{file.name}.wrong. Run this again to fetch it anew"
        )
    return result


def _copy(found: Path, path: Path, report: Report) -> None:
    if found.resolve() == path.resolve():
        return
    part = path.with_name(path.name + _PART)
    part.unlink(missing_ok=True)
    try:
        os.link(found, part)
    except OSError:  # another file system, or one without links
        shutil.copyfile(found, part)
    os.replace(part, path)
    size = path.stat().st_size
    report(path.name, size, size)


def _linked(name: str, folder: Path, source: Path) -> list[Checked]:
    """Folders too large to copy: the data set's own folder becomes a link to them."""
    if not source.is_dir():
        raise DataMissingError(f"{name}: no folder {source}")
    if folder.is_symlink() or not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            folder.unlink()
        folder.symlink_to(source.resolve(), target_is_directory=True)
    elif folder.resolve() != source.resolve():
        raise DownloadError(f"{folder} is there already: move it away, or use it as it is")
    return [Checked(str(source), "recorded")]


def _unpack(archive: Path) -> None:
    """Beside the archive. Only plain files and folders below it are taken (PEP 706)."""
    done = archive.with_name(f".{archive.name}.unpacked")
    stamp = f"{archive.stat().st_size} {archive.stat().st_mtime_ns}"
    if done.is_file() and done.read_text() == stamp:
        return
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(archive.parent, filter="data")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DownloadError(f"{archive}: {error}; get the archive anew") from error
    write_atomically(done, stamp.encode())


def _unpacked(file: Remote, folder: Path) -> bool:
    """Whether what is in the archive is there already, so that the archive itself is not needed."""
    top = folder / (file.folder or file.name.split(".")[0])
    return not (folder / file.name).exists() and top.is_dir()


def _by_hand(name: str, entry: Entry, folder: Path) -> str:
    names = ", ".join(file.name for file in entry.files) or "the folders"
    return (
        f"{name}: cannot be downloaded from here. {_where(entry)} Put {names} into {folder}, or run "
        f"`spiketrain data prepare {name} --from FOLDER`."
    )


def _where(entry: Entry) -> str:
    return entry.instructions or f"Get it from {entry.page}."


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _recorded(folder: Path) -> dict[str, str]:
    try:
        content = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return {}
    return {str(k): str(v) for k, v in content.items()} if isinstance(content, dict) else {}


def _record(folder: Path, known: dict[str, str], result: Checked) -> None:
    algorithm, _, digest = result.digest.partition(":")
    if algorithm == "sha256" and result.state == "recorded" and result.name not in known:
        known[result.name] = digest
        write_atomically(folder / RECORD, json.dumps(known, indent=1).encode())
