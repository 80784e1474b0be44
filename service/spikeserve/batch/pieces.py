"""What there is to do: the input cut into pieces, the same ones each time, each of which is done whole or not at all."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
RECORDINGS = (".aedat", ".aedat4", ".raw", ".dat", ".es", ".bin", ".bs2", ".npz", ".csv", ".db3")
PARQUET = (".parquet",)
TAR = (".tar",)

Kind = Literal["image", "events"]
Item = tuple[str, bytes]
"""The key that its row will have, and the content of its file."""


class BatchError(ValueError):
    """What was asked for cannot be done. The message says what is wrong, and where."""


@dataclass(frozen=True)
class Piece:
    """Some files, one row group of a Parquet file, or one tar file. `identity` changes with any of their contents."""

    number: int
    source: Literal["files", "parquet", "tar"]
    paths: tuple[str, ...]
    root: str
    identity: str
    row_group: int = 0
    column: str = ""
    key_column: str = ""
    suffixes: tuple[str, ...] = ()

    @property
    def file_name(self) -> str:
        """Of the answers: numbered as the pieces are, so that a reader gets them in the order of the input."""
        return f"part-{self.number:06d}-{self.identity[:16]}.parquet"

    def items(self) -> Iterator[Item]:
        """In the order of the input. Raises OSError, and BatchError for a tar or Parquet file that is damaged."""
        if self.source == "files":
            for name in self.paths:
                yield name, Path(self.root, name).read_bytes()
        elif self.source == "tar":
            yield from self._members()
        else:
            yield from self._rows()

    def _members(self) -> Iterator[Item]:
        """A sample of a WebDataset is the files of one name before the first dot; only one of them is the input."""
        (name,) = self.paths
        try:
            with tarfile.open(Path(self.root, name)) as archive:
                for member in archive:
                    if member.isfile() and member.name.lower().endswith(self.suffixes):
                        content = archive.extractfile(member)
                        yield f"{name}/{member.name}", b"" if content is None else content.read()
        except tarfile.TarError as error:
            raise BatchError(f"{name}: {error}") from error

    def _rows(self) -> Iterator[Item]:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        (name,) = self.paths
        columns = [each for each in (self.column, self.key_column) if each]
        try:
            with ParquetFile(Path(self.root, name)) as file:
                first = sum(file.metadata.row_group(i).num_rows for i in range(self.row_group))
                table = file.read_row_group(self.row_group, columns=columns)
        except ArrowException as error:
            raise BatchError(f"{name}: row group {self.row_group}: {error}") from error
        keys = table.column(self.key_column).to_pylist() if self.key_column else None
        for i, value in enumerate(table.column(self.column).to_pylist()):
            # Pictures of the Hugging Face hub are structures of bytes and path.
            content = value.get("bytes") if isinstance(value, dict) else value
            key = f"{name}#{first + i}" if keys is None else str(keys[i])
            yield key, content or b""


def find_pieces(
    path: Path,
    kind: Kind,
    *,
    size: int = 256,
    column: str | None = None,
    key_column: str | None = None,
) -> list[Piece]:
    """All pieces of a file or a folder and its sub-folders, sorted by path; `size` files make a piece.

    `column` holds the pictures or recordings of Parquet files; unless given, the only one with bytes. `key_column`
    names the rows; unless given, FILE#ROW does. Hidden files are left out. Raises BatchError, OSError.
    """
    if size < 1:
        raise BatchError(f"a piece of {size} files: give 1 or more")
    suffixes = PICTURES if kind == "image" else RECORDINGS
    root, names = _listed(path, (*suffixes, *PARQUET, *TAR))
    plain = [name for name in names if name.lower().endswith(suffixes)]
    pieces: list[Piece] = []
    for begin in range(0, len(plain), size):
        part = tuple(plain[begin : begin + size])
        pieces.append(Piece(len(pieces), "files", part, str(root), _identity(root, part)))
    for name in names:
        if name.lower().endswith(TAR):
            identity = _identity(root, (name,))
            pieces.append(
                Piece(len(pieces), "tar", (name,), str(root), identity, suffixes=suffixes)
            )
        elif name.lower().endswith(PARQUET):
            groups, content, key = _columns(root / name, column, key_column)
            for group in range(groups):
                identity = _identity(root, (name,), str(group), content, key)
                pieces.append(
                    Piece(len(pieces), "parquet", (name,), str(root), identity, group, content, key)
                )
    if not pieces:
        raise BatchError(
            f"{path} has nothing to classify: looked for {', '.join((*suffixes, *PARQUET, *TAR))}"
        )
    return pieces


def _listed(path: Path, suffixes: tuple[str, ...]) -> tuple[Path, list[str]]:
    if path.is_file():
        if not path.name.lower().endswith(suffixes):
            raise BatchError(f"{path}: expected a folder, or a file with {', '.join(suffixes)}")
        return path.parent.resolve(), [path.name]
    if not path.is_dir():
        raise BatchError(f"there is no file or folder {path}")
    root = path.resolve()
    names = [
        str(each.relative_to(root))
        for each in root.rglob("*")
        if each.name.lower().endswith(suffixes)
        and not any(part.startswith(".") for part in each.relative_to(root).parts)
        and each.is_file()
    ]
    return root, sorted(names)


def _identity(root: Path, names: tuple[str, ...], *more: str) -> str:
    """By name, size and time of change: reading everything twice would cost as much as the work itself."""
    digest = hashlib.sha256("\0".join(more).encode())
    for name in names:
        status = Path(root, name).stat()
        digest.update(f"\0{name}\0{status.st_size}\0{status.st_mtime_ns}".encode())
    return digest.hexdigest()


def _columns(path: Path, column: str | None, key_column: str | None) -> tuple[int, str, str]:
    """How many row groups a Parquet file has, and the names of the columns that are read."""
    try:
        from pyarrow import ArrowException, types
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise BatchError("Parquet files need pyarrow: pip install 'spikeserve[batch]'") from None
    try:
        with ParquetFile(path) as file:
            schema: Any = file.schema_arrow
            groups = file.metadata.num_row_groups
    except (ArrowException, OSError) as error:
        raise BatchError(f"{path}: {error}") from error

    def holds_bytes(kind: Any) -> bool:
        if types.is_struct(kind):
            index = kind.get_field_index("bytes")
            return index >= 0 and holds_bytes(kind.field(index).type)
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    fitting = [field.name for field in schema if holds_bytes(field.type)]
    if column is None:
        if len(fitting) != 1:
            said = f"has {', '.join(fitting)}" if fitting else "none has"
            raise BatchError(f"{path}: which column? One with bytes is needed, {said}: --column")
        column = fitting[0]
    elif column not in fitting:
        raise BatchError(f"{path}: no column {column!r} with bytes; there are {schema.names}")
    if key_column is not None and key_column not in schema.names:
        raise BatchError(f"{path}: no column {key_column!r}; there are {schema.names}")
    return groups, column, key_column or ""
