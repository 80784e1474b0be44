"""The state of one sample as bytes: to move it out of a slot, or to continue elsewhere.

    16 bytes "spikeserve-state", 1 byte version, 32 bytes sha256 of the name of the weights,
    32 bytes sha256 of all that follows, then the tensors in the safetensors format.

Reading never runs code from the bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from spikeserve.engine.executor import StateError

VERSION = 1
_MAGIC = b"spikeserve-state"
_WEIGHTS = len(_MAGIC) + 1
_SEAL = _WEIGHTS + 32
_DATA = _SEAL + 32


def pack_state(tensors: Mapping[str, Tensor], weights: str) -> bytes:
    """`weights` names the weights that the state belongs to, such as a checkpoint's digest."""
    data = safetensors.torch.save({name: each.contiguous() for name, each in tensors.items()})
    return b"".join((_MAGIC, bytes([VERSION]), _sha256(weights.encode()), _sha256(data), data))


def unpack_state(state: bytes, weights: str) -> dict[str, Tensor]:
    """Raises StateError for bytes that are damaged, of another version, or of other weights."""
    if state[: len(_MAGIC)] != _MAGIC or len(state) < _DATA:
        raise StateError("state: these bytes are not a saved state, or only the start of one")
    if state[len(_MAGIC)] != VERSION:
        raise StateError(f"state: version {state[len(_MAGIC)]}, this release reads {VERSION}")
    if _sha256(state[_DATA:]) != state[_SEAL:_DATA]:
        raise StateError("state: changed or damaged after it was saved")
    if _sha256(weights.encode()) != state[_WEIGHTS:_SEAL]:
        raise StateError("state: saved by a model with other weights")
    try:
        return safetensors.torch.load(state[_DATA:])
    except (SafetensorError, ValueError) as error:
        raise StateError(f"state: {error}") from error


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
