"""Decoders that are fed bytes in pieces cut anywhere, as files are read and packets arrive."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from spiketrain.events.formats.base import EventFormatError
from spiketrain.events.formats.source import BLOCK, Source
from spiketrain.events.memory import Memory, Remembers
from spiketrain.events.types import Events


class Decoder(ABC):
    """One stream's bytes to events, with the state that the encoding has between them."""

    block = BLOCK
    """Bytes that it decodes fastest at once."""

    @abstractmethod
    def feed(self, data: bytes) -> Events:
        """The events that these bytes complete. Raises EventFormatError, with those before the fault in `events`."""

    @abstractmethod
    def finish(self) -> None:
        """The end of the stream. Raises EventFormatError if that is in the middle of something."""


class RecordDecoder(Decoder, Remembers):
    """Words or records of one fixed size."""

    title = "records"
    dtype: np.dtype[Any]
    MEMORY: ClassVar[dict[str, Any]] = {"_rest": bytes, "_fed": int}

    def __init__(self) -> None:
        self._rest = b""
        self._fed = 0

    def remember(self, memory: Memory) -> None:
        super().remember(memory)
        if len(self._rest) >= self.dtype.itemsize:
            raise ValueError(f"memory: {len(self._rest)} bytes are no part of a record")

    def feed(self, data: bytes) -> Events:
        self._fed += len(data)
        if self._rest:
            data = self._rest + data
        records = len(data) // self.dtype.itemsize
        self._rest = data[records * self.dtype.itemsize :]
        return self.decode(np.frombuffer(data, self.dtype, records))

    def finish(self) -> None:
        if self._rest:
            size = self.dtype.itemsize
            raise EventFormatError(
                f"{self._fed} bytes are {self._fed // size} {self.title} of {size} bytes and "
                f"{len(self._rest)} bytes more: the recording is truncated, or of another format"
            )

    @abstractmethod
    def decode(self, records: NDArray[Any]) -> Events:
        """The events of whole records, which follow those of the last call."""


def decoded(source: Source, decoder: Decoder) -> Iterator[Events]:
    """The rest of a source, block by block."""
    for block in source.blocks(decoder.block):
        yield decoder.feed(block)
    decoder.finish()
