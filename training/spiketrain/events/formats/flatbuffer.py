"""As much of FlatBuffers as AEDAT 4 needs: tables, with every offset checked against the buffer."""

from __future__ import annotations

import struct

from spiketrain.events.formats.base import EventFormatError


class Table:
    """The root table of a buffer that begins with its own size (4 bytes). Raises EventFormatError for a bad offset."""

    def __init__(self, data: bytes, identifier: bytes) -> None:
        self._data = data
        if data[8:12] != identifier:
            raise EventFormatError(
                f"there is a table {data[8:12]!r} where {identifier!r} should be"
            )
        self._at = 4 + self._number("<I", 4)
        self._fields = self._at - self._number("<i", self._at)
        self._fields_end = self._fields + self._number("<H", self._fields)

    def integer(self, slot: int, code: str, default: int) -> int:
        at = self._field(slot)
        return default if at is None else self._number(f"<{code}", at)

    def vector(self, slot: int, item_bytes: int) -> tuple[int, int]:
        """Where a vector's items begin, and how many there are: those of `item_bytes` each that are really there."""
        at = self._field(slot)
        if at is None:
            return 0, 0
        at += self._number("<I", at)
        count = self._number("<I", at)
        if count * item_bytes > len(self._data) - at - 4:
            raise EventFormatError(f"a vector says that it has {count} items, more than there are")
        return at + 4, count

    def text(self, slot: int) -> str:
        at, length = self.vector(slot, 1)
        return self._data[at : at + length].decode("utf-8", "replace")

    def _field(self, slot: int) -> int | None:
        entry = self._fields + 4 + 2 * slot
        if entry + 2 > self._fields_end:
            return None
        offset = self._number("<H", entry)
        return self._at + offset if offset else None

    def _number(self, code: str, at: int) -> int:
        if at < 0 or at + struct.calcsize(code) > len(self._data):
            raise EventFormatError(
                "an offset points beyond the end: the recording is damaged there"
            )
        return int(struct.unpack_from(code, self._data, at)[0])
