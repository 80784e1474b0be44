"""Tensors of the Open Inference Protocol: a name, a datatype, and values as JSON or as little-endian bytes."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spikeserve.errors import ErrorKind, ServiceError

DATATYPES: dict[str, np.dtype[Any]] = {
    "UINT8": np.dtype("u1"),
    "INT32": np.dtype("<i4"),
    "FP32": np.dtype("<f4"),
    "BYTES": np.dtype(object),
}
"""Those that a model here takes or gives."""

_MAX_DIMENSIONS = 8


@dataclass(frozen=True)
class NamedTensor:
    """`values` has the shape; its elements are bytes where the datatype is BYTES."""

    name: str
    datatype: str
    values: NDArray[Any]


def checked_shape(name: str, shape: Sequence[Any]) -> tuple[int, ...]:
    """Raises ServiceError MALFORMED for what is no shape."""
    fits = all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 31 for n in shape)
    if not fits or not 1 <= len(shape) <= _MAX_DIMENSIONS:
        raise malformed(
            f"input {name!r}: shape {list(shape)[:9]} must be 1 to {_MAX_DIMENSIONS} sizes of 0 or more"
        )
    return tuple(shape)


def from_values(name: str, datatype: str, shape: tuple[int, ...], data: Any) -> NamedTensor:
    """From JSON, flat or nested. Raises ServiceError MALFORMED where data, datatype and shape do not fit together."""
    kind = _kind(name, datatype)
    values = np.array(data, dtype=object).ravel() if isinstance(data, list) else None
    if values is None or values.size != math.prod(shape):
        got = "no list" if values is None else f"{values.size} values"
        raise malformed(
            f"input {name!r}: shape {list(shape)} has {math.prod(shape)} values, but data has {got}"
        )
    if kind.kind == "O":
        if not all(isinstance(value, str) for value in values):
            raise malformed(f"input {name!r}: BYTES in JSON are strings")
        flat = np.empty(values.size, object)
        flat[:] = [value.encode() for value in values]
        return NamedTensor(name, datatype, flat.reshape(shape))
    number: tuple[type, ...] = (int, float) if kind.kind == "f" else (int,)
    if not all(isinstance(value, number) and not isinstance(value, bool) for value in values):
        raise malformed(f"input {name!r}: data has values that are not of datatype {datatype}")
    if kind.kind != "f":
        info = np.iinfo(kind)
        if any(not info.min <= value <= info.max for value in values):
            raise malformed(f"input {name!r}: {datatype} goes from {info.min} to {info.max}")
    try:
        return NamedTensor(name, datatype, values.astype(kind).reshape(shape))
    except (OverflowError, ValueError) as error:
        raise malformed(f"input {name!r}: {error}") from None


def from_bytes(name: str, datatype: str, shape: tuple[int, ...], raw: bytes) -> NamedTensor:
    """From the binary form. Raises ServiceError MALFORMED for a wrong length."""
    kind = _kind(name, datatype)
    if kind.kind == "O":
        elements = _split(name, raw)
        if len(elements) != math.prod(shape):
            raise malformed(
                f"input {name!r}: shape {list(shape)} has {math.prod(shape)} elements, but data has {len(elements)}"
            )
        flat = np.empty(len(elements), object)
        flat[:] = elements
        return NamedTensor(name, datatype, flat.reshape(shape))
    expected = math.prod(shape) * kind.itemsize
    if len(raw) != expected:
        raise malformed(
            f"input {name!r}: shape {list(shape)} of {datatype} has {expected} bytes, but {len(raw)} came"
        )
    return NamedTensor(name, datatype, np.frombuffer(raw, kind).reshape(shape))


def to_bytes(tensor: NamedTensor) -> bytes:
    if tensor.datatype == "BYTES":
        return b"".join(struct.pack("<I", len(each)) + each for each in tensor.values.ravel())
    return np.ascontiguousarray(tensor.values, DATATYPES[tensor.datatype]).tobytes()


def to_values(tensor: NamedTensor) -> list[Any]:
    """Flat, for JSON."""
    if tensor.datatype == "BYTES":
        return [each.decode() for each in tensor.values.ravel()]
    flat: list[Any] = tensor.values.ravel().tolist()
    return flat


def malformed(message: str) -> ServiceError:
    return ServiceError(ErrorKind.MALFORMED, message)


def _kind(name: str, datatype: str) -> np.dtype[Any]:
    if datatype not in DATATYPES:
        raise malformed(
            f"input {name!r}: datatype {datatype!r:.40} is none of {', '.join(DATATYPES)}"
        )
    return DATATYPES[datatype]


def _split(name: str, raw: bytes) -> list[bytes]:
    elements, at = [], 0
    while at < len(raw):
        if len(raw) - at < 4:
            raise malformed(f"input {name!r}: the length of a BYTES element is cut off")
        (length,) = struct.unpack_from("<I", raw, at)
        at += 4
        if length > len(raw) - at:
            raise malformed(f"input {name!r}: a BYTES element of {length} bytes is cut off")
        elements.append(raw[at : at + length])
        at += length
    return elements
