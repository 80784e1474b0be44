"""A snapshot: all that a stream remembers, as bytes.

    16 bytes "spikeserve-strea", 1 byte version, 32 bytes sha256 of the stream's token, 32 bytes sha256 of all that
    follows, then safetensors: `content`, which is JSON, and the arrays that it names.

In the JSON {"$array": "3"} stands for the array of that name, and {"$bytes": "3"} for the bytes in it. Reading never
runs code from the bytes. The checksum tells damage, and not malice: whoever may write to the store is trusted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

VERSION = 1
_MAGIC = b"spikeserve-strea"
_TOKEN = len(_MAGIC) + 1
_SEAL = _TOKEN + 32
_DATA = _SEAL + 32
_CONTENT = "content"

Arrays = dict[str, NDArray[Any]]


class SnapshotError(ValueError):
    """Bytes that are no snapshot, or not any more."""


class ForeignError(SnapshotError):
    """A snapshot that is whole, but of another release or another stream."""


def pack(token: str, content: Mapping[str, Any]) -> bytes:
    """`content` is of None, bool, int, float, str, bytes, arrays, and lists and dictionaries of them.

    Raises TypeError for anything else.
    """
    arrays: Arrays = {}
    text = json.dumps(_plain(content, arrays), separators=(",", ":")).encode()
    arrays[_CONTENT] = np.frombuffer(text, np.uint8)
    data = safetensors.numpy.save(arrays)
    return b"".join((_MAGIC, bytes([VERSION]), _sha256(token.encode()), _sha256(data), data))


def unpack(token: str, snapshot: bytes) -> dict[str, Any]:
    """Raises SnapshotError, which is a ForeignError where the bytes are not damaged."""
    if snapshot[: len(_MAGIC)] != _MAGIC or len(snapshot) < _DATA:
        raise SnapshotError("these bytes are no snapshot of a stream, or only the start of one")
    if _sha256(snapshot[_DATA:]) != snapshot[_SEAL:_DATA]:
        raise SnapshotError("it was changed or damaged after it was written")
    if snapshot[len(_MAGIC)] != VERSION:
        raise ForeignError(f"version {snapshot[len(_MAGIC)]}, this release reads {VERSION}")
    if snapshot[_TOKEN:_SEAL] != _sha256(token.encode()):
        raise ForeignError("it is of another stream")
    try:
        arrays = safetensors.numpy.load(snapshot[_DATA:])
        content = _rich(json.loads(arrays.pop(_CONTENT).tobytes()), arrays)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SnapshotError(f"its content cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise SnapshotError("it has no fields")
    return content


def _plain(value: Any, arrays: Arrays) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each, arrays) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, arrays) for each in value]
    if isinstance(value, bytes):
        return {"$bytes": _added(np.frombuffer(value, np.uint8), arrays)}
    if isinstance(value, np.ndarray):
        return {"$array": _added(np.ascontiguousarray(value), arrays)}
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a snapshot cannot hold {type(value).__name__}")


def _added(array: NDArray[Any], arrays: Arrays) -> str:
    name = str(len(arrays))
    arrays[name] = array
    return name


def _rich(value: Any, arrays: Arrays) -> Any:
    if isinstance(value, list):
        return [_rich(each, arrays) for each in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"$array"}:
        # A copy: arrays that were read cannot be written to.
        return np.array(arrays[value["$array"]])
    if set(value) == {"$bytes"}:
        return arrays[value["$bytes"]].tobytes()
    return {key: _rich(each, arrays) for key, each in value.items()}


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
