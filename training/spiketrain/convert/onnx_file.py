"""What an ONNX file of ours says about itself: read from its bytes, without a library for ONNX.

The metadata of the file (`metadata_props` of its ModelProto) has `manifest`, `form`, `states`, and `seal`: the sha256 of
the whole file with the seal's own 64 digits replaced by zeros. A tool that rewrites the file must leave the seal out.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from spiketrain.checkpoint import CheckpointError, parse_manifest
from spiketrain.manifest import Manifest

SEAL = "seal"
UNSEALED = "0" * 64
MAX_BYTES = 2 << 30  # protobuf's own limit

# Fields of ModelProto and of StringStringEntryProto in onnx.proto.
_GRAPH, _METADATA = 7, 14
_KEY, _VALUE = 1, 2
_VARINT, _EIGHT_BYTES, _COUNTED, _FOUR_BYTES = 0, 1, 2, 5
_MOST_METADATA_BYTES = 64 << 20


class ONNXFileError(ValueError):
    """The file is no ONNX file of ours, or a damaged one. The message names the file and the field."""


class StateTensor(BaseModel):
    """One state: an input of the step, whose new value is the output NAME/out. `shape` is that of one sample."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[^/]+/[^/]+$")
    shape: tuple[Annotated[int, Field(ge=0)], ...]
    type: str
    initial: float | list[object] = Field(description="a number, or what broadcasts to the shape")

    @property
    def layer(self) -> str:
        return self.name.partition("/")[0]


class StepFile(NamedTuple):
    manifest: Manifest
    states: tuple[StateTensor, ...]


_STATES: TypeAdapter[tuple[StateTensor, ...]] = TypeAdapter(tuple[StateTensor, ...])


def parse_step_file(data: bytes, source: str) -> StepFile:
    """The description of a file of form "step". Raises ONNXFileError; `source` is what messages call the file."""
    entries = _entries(io.BytesIO(data), len(data), source)
    metadata = {key: value for key, (value, _) in entries.items()}
    if "manifest" not in metadata:
        raise ONNXFileError(
            f"{source}: metadata.manifest: missing; only files that spiketrain export wrote can be served"
        )
    if SEAL in entries:
        found, at = entries[SEAL]
        zeroed = data[:at] + UNSEALED.encode() + data[at + len(UNSEALED) :]
        if found != hashlib.sha256(zeroed).hexdigest():
            raise ONNXFileError(
                f"{source}: metadata.{SEAL}: the file was changed or damaged after it was written; export it again"
            )
    if (form := metadata.get("form")) != "step":
        raise ONNXFileError(f"{source}: metadata.form is {form!r}: 'step' can be served")
    try:
        states = _STATES.validate_json(metadata.get("states", ""))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(("states", *map(str, first["loc"])))
        raise ONNXFileError(f"{source}: metadata.{field}: {first['msg']}") from error
    try:
        manifest = parse_manifest(metadata["manifest"], f"{source}: metadata")
    except CheckpointError as error:
        raise ONNXFileError(str(error)) from error
    return StepFile(manifest, states)


def manifest_text(path: Path) -> str | None:
    """The manifest's JSON, unchecked, None where there is none. Reads no weights. Raises OSError and ONNXFileError."""
    with path.open("rb") as file:
        entries = _entries(file, os.fstat(file.fileno()).st_size, str(path))
    return entries["manifest"][0] if "manifest" in entries else None


def sealed(data: bytes, source: str) -> bytes:
    """The file with its seal, which must be zeros so far, filled in."""
    _, at = _entries(io.BytesIO(data), len(data), source)[SEAL]
    seal = hashlib.sha256(data).hexdigest().encode()
    return data[:at] + seal + data[at + len(seal) :]


def _entries(file: BinaryIO, size: int, source: str) -> dict[str, tuple[str, int]]:
    """The metadata: by key the value, and where in the file it begins."""
    found: dict[str, tuple[str, int]] = {}
    has_graph = False
    for number, start, length in _fields(file, 0, size, f"{source}: model"):
        has_graph = has_graph or number == _GRAPH
        if number != _METADATA:
            continue
        if length > _MOST_METADATA_BYTES:
            raise ONNXFileError(f"{source}: metadata: an entry of {length} bytes")
        where = f"{source}: metadata"
        parts = {
            each: (at, count) for each, at, count in _fields(file, start, start + length, where)
        }
        key, value = (_text(file, *parts.get(part, (start, 0)), where) for part in (_KEY, _VALUE))
        found[key] = (value, parts.get(_VALUE, (start, 0))[0])
    if not has_graph:
        raise ONNXFileError(f"{source}: graph: missing; not an ONNX file, or a truncated one")
    return found


def _fields(file: BinaryIO, start: int, end: int, where: str) -> Iterator[tuple[int, int, int]]:
    """Number, place and length of each counted field of the protobuf message from `start` to `end`."""
    at = start
    while at < end:
        tag, at = _varint(file, at, end, where)
        number, kind = tag >> 3, tag & 7
        length = {_VARINT: 0, _EIGHT_BYTES: 8, _FOUR_BYTES: 4}.get(kind)
        if kind == _VARINT:
            _, at = _varint(file, at, end, where)
        elif kind == _COUNTED:
            length, at = _varint(file, at, end, where)
        if length is None or number == 0:
            raise ONNXFileError(f"{where}: byte {at} begins no field; not an ONNX file")
        if length > end - at:
            raise ONNXFileError(
                f"{where}: field {number} has {length} bytes and {end - at} are left; the file is truncated"
            )
        if kind == _COUNTED:
            yield number, at, length
        at += length


def _varint(file: BinaryIO, at: int, end: int, where: str) -> tuple[int, int]:
    file.seek(at)
    value = 0
    for shift, byte in enumerate(file.read(min(10, end - at))):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, at + shift + 1
    raise ONNXFileError(
        f"{where}: byte {at} begins no number; not an ONNX file, or a truncated one"
    )


def _text(file: BinaryIO, at: int, length: int, where: str) -> str:
    file.seek(at)
    try:
        return file.read(length).decode()
    except UnicodeDecodeError as error:
        raise ONNXFileError(f"{where}: {error}") from error
