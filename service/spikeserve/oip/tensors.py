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
    "INT64": np.dtype("<i8"),
    "FP32": np.dtype("<f4"),
    "BYTES": np.dtype(object),
}
"""Those that a model here takes or gives."""

_MAX_DIMENSIONS = 8
_MOST_ELEMENTS = 1 << 40


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
            f"input {name!r:.60}: shape {list(shape)[:9]} must be 1 to {_MAX_DIMENSIONS} sizes of 0 or more"
        )
    if math.prod(max(n, 1) for n in shape) > _MOST_ELEMENTS:
        raise malformed(f"input {name!r:.60}: shape {list(shape)} is too large")
    return tuple(shape)


def from_values(name: str, datatype: str, shape: tuple[int, ...], data: Any) -> NamedTensor:
    """From JSON, flat or nested. Raises ServiceError MALFORMED where data, datatype and shape do not fit together."""
    kind = checked_datatype(name, datatype)
    if not isinstance(data, list):
        raise malformed(f"input {name!r:.60}: data is missing, or not a list")
    values = np.array(data, dtype=object).ravel()
    if kind.kind == "O":
        if not all(isinstance(value, str) for value in values):
            raise malformed(f"input {name!r:.60}: BYTES in JSON are strings")
        return from_strings(name, shape, [_encoded(name, value) for value in values])
    number: tuple[type, ...] = (int, float) if kind.kind == "f" else (int,)
    if not all(isinstance(value, number) and not isinstance(value, bool) for value in values):
        raise malformed(f"input {name!r:.60}: data has values that are not of datatype {datatype}")
    return from_numbers(name, datatype, shape, values)


def from_strings(name: str, shape: tuple[int, ...], elements: Sequence[bytes]) -> NamedTensor:
    """Raises ServiceError MALFORMED where there are more or fewer than the shape says."""
    _check_count(name, shape, len(elements))
    flat = np.empty(len(elements), object)
    flat[:] = elements
    return NamedTensor(name, "BYTES", flat.reshape(shape))


def from_numbers(
    name: str, datatype: str, shape: tuple[int, ...], values: NDArray[Any]
) -> NamedTensor:
    """Of numbers in any form. Raises ServiceError MALFORMED where they do not fit the shape or the datatype."""
    kind = checked_datatype(name, datatype)
    _check_count(name, shape, values.size)
    if kind.kind != "f" and values.size:
        info = np.iinfo(kind)
        if not (info.min <= values.min() and values.max() <= info.max):
            raise malformed(f"input {name!r:.60}: {datatype} goes from {info.min} to {info.max}")
    try:
        with np.errstate(over="ignore"):
            return NamedTensor(name, datatype, values.astype(kind).reshape(shape))
    except (OverflowError, ValueError) as error:
        raise malformed(f"input {name!r:.60}: {error}") from None


def from_bytes(name: str, datatype: str, shape: tuple[int, ...], raw: bytes) -> NamedTensor:
    """From the binary form. Raises ServiceError MALFORMED for a wrong length."""
    kind = checked_datatype(name, datatype)
    if kind.kind == "O":
        return from_strings(name, shape, _split(name, raw, math.prod(shape)))
    expected = math.prod(shape) * kind.itemsize
    if len(raw) != expected:
        raise malformed(
            f"input {name!r:.60}: shape {list(shape)} of {datatype} has {expected} bytes, but {len(raw)} came"
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


def checked_datatype(name: str, datatype: str) -> np.dtype[Any]:
    """Raises ServiceError MALFORMED for one that no model here takes."""
    if datatype not in DATATYPES:
        raise malformed(
            f"input {name!r:.60}: datatype {datatype!r:.40} is none of {', '.join(DATATYPES)}"
        )
    return DATATYPES[datatype]


def _check_count(name: str, shape: tuple[int, ...], count: int) -> None:
    if count != math.prod(shape):
        raise malformed(
            f"input {name!r:.60}: shape {list(shape)} has {math.prod(shape)} values, but data has {count}"
        )


def _encoded(name: str, value: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise malformed(f"input {name!r:.60}: a string has half a surrogate pair") from None


def _split(name: str, raw: bytes, most: int) -> list[bytes]:
    """`most` is how many are wanted: one more is enough to see that there are too many."""
    elements: list[bytes] = []
    at = 0
    while at < len(raw) and len(elements) <= most:
        if len(raw) - at < 4:
            raise malformed(f"input {name!r:.60}: the length of a BYTES element is cut off")
        (length,) = struct.unpack_from("<I", raw, at)
        at += 4
        if length > len(raw) - at:
            raise malformed(f"input {name!r:.60}: a BYTES element of {length} bytes is cut off")
        elements.append(raw[at : at + length])
        at += length
    return elements
