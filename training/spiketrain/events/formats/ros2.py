"""ROS 2 bags in SQLite: a .db3 file, or the folder with metadata.yaml around one or more of them.

The first topic of event_camera_msgs/EventPacket is read unless `stream` names another.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from spiketrain.events.formats.base import Contents, EventFormatError, Format, Sensor
from spiketrain.events.formats.event_packet import MESSAGE_TYPES, EventPacket, PacketDecoder, parse
from spiketrain.events.formats.source import Source
from spiketrain.events.types import Events

MAGIC = b"SQLite format 3\0"
MAX_MESSAGE = 1 << 26
"""Bytes."""
BATCH = 1 << 17
MAX_BYTES_IN_MEMORY = 1 << 31
_WAL = 2
_DAMAGE = (sqlite3.Error, UnicodeDecodeError)
"""What sqlite3 raises for a damaged file; the second where a damaged byte is part of its message."""


def _open(source: Source) -> Contents:
    first = _open_file(source, _files(source)[0])
    try:
        topic = _topic(first, source.stream)
        sensor = _sensor(first, topic)
    except _DAMAGE as error:
        raise EventFormatError(f"the bag is damaged: {error}") from None
    return Contents(_pieces(source, first, topic), sensor)


def _pieces(source: Source, first: sqlite3.Connection, topic: str) -> Iterator[Events]:
    decoder = PacketDecoder()
    for index, file in enumerate(_files(source)):
        bag = _open_file(source, file) if index else first
        try:
            for packets in _batches(_packets(bag, topic)):
                yield decoder.feed(packets)
        except _DAMAGE as error:
            raise EventFormatError(f"the bag is damaged or truncated: {error}") from None


def _batches(packets: Iterator[EventPacket]) -> Iterator[list[EventPacket]]:
    """Messages of one kind, as many as are decoded well at once. Those before a faulty one come out first."""
    batch: list[EventPacket] = []
    try:
        for packet in packets:
            if batch and (
                (packet.encoding, packet.big_endian) != (batch[0].encoding, batch[0].big_endian)
                or sum(len(each.events) for each in batch) > BATCH
            ):
                yield batch
                batch = []
            batch.append(packet)
    except (EventFormatError, *_DAMAGE):
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def _packets(bag: sqlite3.Connection, topic: str) -> Iterator[EventPacket]:
    """In the order of time, as ROS plays them."""
    rows = bag.execute(
        "SELECT messages.id, length(data), CASE WHEN length(data) <= ? THEN data END FROM messages "
        "JOIN topics ON topics.id = messages.topic_id WHERE topics.name = ? ORDER BY timestamp, messages.id",
        (MAX_MESSAGE, topic),
    )
    for number, length, data in rows:
        if not isinstance(data, bytes):
            raise EventFormatError(
                f"message {number} is no message of up to {MAX_MESSAGE} bytes (it has {length})"
            )
        try:
            yield parse(data)
        except EventFormatError as error:
            raise EventFormatError(f"message {number}: {error}") from None


def _topic(bag: sqlite3.Connection, wanted: str | None) -> str:
    tables = {row[0] for row in bag.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not {"topics", "messages"} <= tables:
        raise EventFormatError(
            "this SQLite file is no ROS 2 bag: it has no tables topics and messages"
        )
    topics = [
        str(name)
        for name, kind in bag.execute("SELECT name, type FROM topics ORDER BY id")
        if kind in MESSAGE_TYPES
    ]
    if not topics:
        raise EventFormatError(f"the bag has no topic of {MESSAGE_TYPES[0]}")
    if wanted is None:
        return topics[0]
    if wanted not in topics:
        raise EventFormatError(
            f"the bag has no topic {wanted!r} of events; it has {', '.join(topics)}"
        )
    return wanted


def _sensor(bag: sqlite3.Connection, topic: str) -> Sensor | None:
    try:
        return next((packet.sensor for packet in _packets(bag, topic)), None)
    except EventFormatError:
        # What is wrong with the first message is reported when it is read.
        return None


def _files(source: Source) -> list[Path | None]:
    """The bag's files in order; None where it is not a file but bytes."""
    if not source.folder or source.path is None:
        return [source.path]
    metadata = source.path / "metadata.yaml"
    try:
        text = metadata.read_bytes()[: 1 << 20].decode("utf-8", "replace")
    except FileNotFoundError:
        raise EventFormatError("the folder is no ROS 2 bag: it has no metadata.yaml") from None
    if "storage_identifier: mcap" in text:
        raise EventFormatError("the bag is in MCAP; convert it to sqlite3 with `ros2 bag convert`")
    if re.search(r"compression_mode: *\"?(file|message)", text, re.IGNORECASE):
        raise EventFormatError("the bag is compressed; convert it with `ros2 bag convert`")
    listed = re.search(r"relative_file_paths:\s*((?:\n? *- *[^\n]+)+)", text)
    # Only the names count: a bag has no files outside its folder.
    names = [
        Path(name).name for name in re.findall(r"- *[\"']?([^\n\"']+)", listed[1] if listed else "")
    ]
    if not names:
        raise EventFormatError("metadata.yaml names no files (relative_file_paths)")
    return [source.path / name.strip() for name in names]


def _open_file(source: Source, path: Path | None) -> sqlite3.Connection:
    try:
        bag = _connect(source, path)
        bag.execute("PRAGMA trusted_schema = OFF")
    except _DAMAGE as error:
        raise EventFormatError(f"the bag cannot be opened: {error}") from None
    return bag


def _connect(source: Source, path: Path | None) -> sqlite3.Connection:
    if path is not None:
        if not path.is_file():
            raise EventFormatError(f"metadata.yaml names {path.name}, which is not there")
        # A recording is never written to, and may lie where nothing can be written.
        address = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
        bag = sqlite3.connect(address, uri=True, check_same_thread=False)
        return source.resources.enter_context(closing(bag))
    content = bytearray(source.read(MAX_BYTES_IN_MEMORY + 1))
    if len(content) > MAX_BYTES_IN_MEMORY:
        raise EventFormatError(
            f"bags of up to {MAX_BYTES_IN_MEMORY} bytes are read from memory: give the file's path"
        )
    if content[18:20] == bytes([_WAL, _WAL]):
        # Its log is not here; without that the file is complete as it stands.
        content[18:20] = b"\1\1"
    bag = source.resources.enter_context(
        closing(sqlite3.connect(":memory:", check_same_thread=False))
    )
    bag.deserialize(bytes(content))
    return bag


def _recognises(source: Source) -> bool:
    return source.folder or source.head.startswith(MAGIC)


ROS2 = Format("ros2", "ROS 2 bag", (".db3",), _recognises, _open)
