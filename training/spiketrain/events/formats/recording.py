"""A recording that is open: what it is, and its events in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

from spiketrain.events.formats.base import Contents, EventFormatError, Sensor
from spiketrain.events.formats.source import Source
from spiketrain.events.types import Events

CHUNK_EVENTS = 1 << 18
MAX_EVENTS = 100_000_000


class Recording:
    """Iterates once over its events, as chunks of 1 to `chunk_events` events in the order they are stored.

    The rule for what is truncated or damaged: all that could be read comes first, then EventFormatError is raised;
    its `events_read` says how much that was. `format` is a name in FORMATS; `sensor` is (width, height) where the
    recording states it. Events may lie outside it all the same.
    """

    def __init__(
        self, source: Source, format: str, contents: Contents, chunk_events: int = CHUNK_EVENTS
    ) -> None:
        self.format = format
        self.sensor: Sensor | None = contents.sensor
        self.events_read = 0
        self._source = source
        self._chunks = self._cut(contents.pieces, chunk_events)

    def __iter__(self) -> Iterator[Events]:
        return self._chunks

    def read(self, max_events: int = MAX_EVENTS) -> Events:
        """All events that are left.

        Raises EventFormatError if there are more than `max_events`, or as above; its `events` then has what was read.
        """
        parts: list[Events] = []
        read = 0
        try:
            for chunk in self._chunks:
                parts.append(chunk[: max_events - read])
                read += len(chunk)
                if read > max_events:
                    raise EventFormatError(
                        located(
                            self._source, f"there are more than the allowed {max_events} events"
                        ),
                        max_events,
                    )
        except EventFormatError as error:
            error.events = Events.concatenate(parts)
            raise
        return Events.concatenate(parts)

    def close(self) -> None:
        self._source.close()

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _cut(self, pieces: Iterator[Events], size: int) -> Iterator[Events]:
        fault: EventFormatError | None = None
        while fault is None:
            try:
                piece = next(pieces, None)
                if piece is None:
                    return
            except EventFormatError as error:
                fault, piece = error, error.events or Events.empty()
            for begin in range(0, len(piece), size):
                chunk = piece[begin : begin + size]
                self.events_read += len(chunk)
                yield chunk
        raise EventFormatError(self._located(str(fault)), self.events_read)

    def _located(self, message: str) -> str:
        return located(self._source, f"{message} ({self.events_read} events were read)")


def located(source: Source, message: str) -> str:
    return message if source.path is None else f"{source.path}: {message}"
