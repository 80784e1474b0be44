"""Where the bytes of a recording come from: a file, a folder, memory, or a pipe."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, TypeAlias, cast

AnySource: TypeAlias = Path | str | bytes | BinaryIO

HEAD = 1 << 16
"""Bytes by which a format is told."""

BLOCK = 1 << 18
"""Bytes read and decoded at once: a decoder's working set then stays in the processor's cache."""


class Source:
    """Read front to back, except that `head` shows the beginning without consuming it.

    `stream` is what the caller asked for in a recording of several cameras. A folder has no bytes of its own.
    `resources` are closed with it.
    Raises OSError if it cannot be opened.
    """

    def __init__(self, what: AnySource, stream: str | None = None) -> None:
        self.stream = stream
        self.resources = ExitStack()
        self.path = Path(what) if isinstance(what, Path | str) else None
        self.folder = self.path is not None and self.path.is_dir()
        self._file: BinaryIO
        if self.folder:
            self._file = io.BytesIO()
        elif self.path is not None:
            self._file = self.resources.enter_context(self.path.open("rb"))
        elif isinstance(what, bytes | bytearray | memoryview):
            self._file = io.BytesIO(what)
        else:
            self._file = cast(BinaryIO, what)
        self.head = self._read(HEAD)
        self._unread = self.head

    @property
    def suffix(self) -> str:
        return self.path.suffix.lower() if self.path is not None else ""

    @property
    def size(self) -> int | None:
        """All bytes, or None where that cannot be known beforehand."""
        if len(self.head) < HEAD:
            return len(self.head)
        if not self._file.seekable():
            return None
        here = self._file.tell()
        size = self._file.seek(0, io.SEEK_END)
        self._file.seek(here)
        return size

    def read(self, n: int) -> bytes:
        """The next n bytes, fewer only at the end."""
        data, self._unread = self._unread[:n], self._unread[n:]
        return data if len(data) == n else data + self._read(n - len(data))

    def blocks(self, n: int = BLOCK) -> Iterator[bytes]:
        """All that is left, n bytes at once, or from a pipe what has come."""
        while data := self._some(n):
            yield data

    def _some(self, n: int) -> bytes:
        """1 to n bytes, none only at the end."""
        read1 = getattr(self._file, "read1", None)
        if self._unread or read1 is None or self._file.seekable():
            return self.read(n)
        data: bytes = read1(n)
        return data

    def skip(self, n: int) -> int:
        """Passes over n bytes. Returns how many there were."""
        left = n
        while left and (data := self.read(min(left, BLOCK))):
            left -= len(data)
        return n - left

    def take_head(self, n: int) -> None:
        """Passes over the first n bytes of `head`, which a header parser has read there."""
        self._unread = self.head[n:]

    def seekable(self) -> BinaryIO | None:
        """The whole as a file with random access, from its beginning; None for a pipe."""
        if not self._file.seekable():
            return None
        self._file.seek(0)
        return self._file

    def close(self) -> None:
        """Closes what was opened here. A file object that was handed in stays open."""
        self.resources.close()

    def _read(self, n: int) -> bytes:
        parts: list[bytes] = []
        while n and (data := self._file.read(n)):
            parts.append(data)
            n -= len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)
