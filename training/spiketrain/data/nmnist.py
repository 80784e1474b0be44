"""N-MNIST (Orchard et al., 2015): MNIST digits on a screen, seen by a DVS that makes three saccades.

34x34 pixels, some 4,100 events in 300 ms. Read from the archive of 1,000 + 100 digits that came with SLAYER's
examples, from that archive extracted, or from the original folders Train/0..9/*.bin and Test/0..9/*.bin.
"""

from __future__ import annotations

import hashlib
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from spiketrain.events.formats import nmnist
from spiketrain.events.formats.base import EventFormatError
from spiketrain.events.types import Events

ARCHIVE = "NMNISTsmall.tar.xz"
SENSOR = (34, 34)
SUFFIXES = (".bin", ".bs2", ".txt")
LABELS = frozenset("0123456789")
MAX_EVENTS = 1_000_000

Samples: TypeAlias = list[tuple[Events, int]]


def load_nmnist_small(root: Path | str) -> tuple[Samples, Samples]:
    """Training and test samples, each the events of a digit and its label 0-9.

    `root` is the archive, a folder that holds it (or `n-mnist-small/` with it), the extracted archive, or the folder
    with Train and Test. Raises FileNotFoundError if it is none of these, EventFormatError for a damaged recording.
    """
    source = _locate(Path(root))
    if source.is_file():
        return _from_archive(source)
    if (source / "train1K.txt").is_file():
        files = {path.name: path.read_bytes for path in source.iterdir() if path.is_file()}
        return _listed(files, "train1K.txt"), _listed(files, "test100.txt")
    return _from_folders(source / "Train"), _from_folders(source / "Test")


def digest(root: Path | str) -> dict[str, str]:
    """The archive's name and sha256; of a folder, the sha256 of its recordings' names and sha256s, in order."""
    source = _locate(Path(root))
    if source.is_file():
        with source.open("rb") as file:
            return {source.name: hashlib.file_digest(file, "sha256").hexdigest()}
    total = hashlib.sha256()
    for path in sorted(each for each in source.rglob("*") if each.suffix in SUFFIXES):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(source).as_posix()} {content}\n".encode())
    return {f"{source.name}/": total.hexdigest()}


def _locate(root: Path) -> Path:
    folders = [
        root,
        root / "n-mnist-small",
        root / "NMNISTsmall",
        root / "n-mnist-small" / "NMNISTsmall",
    ]
    if root.is_file():
        return root
    for folder in folders:
        if (folder / ARCHIVE).is_file():
            return folder / ARCHIVE
        if (folder / "train1K.txt").is_file() or (folder / "Train").is_dir():
            return folder
    raise FileNotFoundError(
        f"no N-MNIST at {root}: it has neither {ARCHIVE}, nor train1K.txt, nor a folder Train (also looked in "
        f"{', '.join(folder.name for folder in folders[1:3])})"
    )


def _from_archive(path: Path) -> tuple[Samples, Samples]:
    # Members are read in memory, in one pass, as the archive can only be unpacked front to back.
    files: dict[str, Callable[[], bytes]] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if member.isfile() and name.endswith(SUFFIXES) and member.size <= 5 * MAX_EVENTS:
                    file = archive.extractfile(member)
                    files[name] = _constant(file.read() if file else b"")
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise EventFormatError(f"{path}: damaged or truncated: {error}") from None
    return _listed(files, "train1K.txt"), _listed(files, "test100.txt")


def _constant(content: bytes) -> Callable[[], bytes]:
    return lambda: content


def _listed(files: dict[str, Callable[[], bytes]], listing: str) -> Samples:
    """The samples that a list of `id label` lines names."""
    if listing not in files:
        raise FileNotFoundError(
            f"the N-MNIST archive has no {listing}, which names the samples and their labels"
        )
    samples = []
    for line in files[listing]().decode("ascii", "replace").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        sample, _, label = line.strip().partition("\t" if "\t" in line else " ")
        if label.strip() not in LABELS:
            raise EventFormatError(f"{listing}: line {line!r} is no sample and label 0-9")
        if f"{sample}.bs2" not in files:
            raise FileNotFoundError(
                f"{listing} names sample {sample}, but there is no {sample}.bs2"
            )
        samples.append((_read(files[f"{sample}.bs2"](), f"{sample}.bs2"), int(label)))
    return samples


def _read(content: bytes, name: str) -> Events:
    try:
        return nmnist.read(content)
    except EventFormatError as error:
        raise EventFormatError(f"{name}: {error}") from None


def _from_folders(split: Path) -> Samples:
    samples = [
        (_read(path.read_bytes(), str(path)), label)
        for label in range(10)
        for path in sorted((split / str(label)).glob("*.bin"))
    ]
    if not samples:
        raise FileNotFoundError(
            f"no recordings in {split}: expected {split}/0/*.bin to {split}/9/*.bin"
        )
    return samples
