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
    _check(state, _sha256(weights.encode()))
    try:
        return safetensors.torch.load(state[_DATA:])
    except (SafetensorError, ValueError) as error:
        raise StateError(f"state: {error}") from error


class StateForm:
    """What the states of one executor look like, learnt from one of them. May be asked from any thread."""

    def __init__(self, example: bytes) -> None:
        # An executor may have a format of its own; then it alone can judge, when it loads a state.
        self._ours = example.startswith(_MAGIC)
        self._weights, self._tensors = example[_WEIGHTS:_SEAL], _tensors(example)

    def check(self, state: bytes) -> None:
        """Raises StateError as `unpack_state` does, and for tensors of other names, types or shapes."""
        if not self._ours:
            return
        _check(state, self._weights)
        if _tensors(state) != self._tensors:
            raise StateError(
                "state: saved by an executor that keeps it otherwise; run the same one on both sides"
            )


def _check(state: bytes, weights: bytes) -> None:
    if state[: len(_MAGIC)] != _MAGIC or len(state) < _DATA:
        raise StateError("state: these bytes are not a saved state, or only the start of one")
    if state[len(_MAGIC)] != VERSION:
        raise StateError(f"state: version {state[len(_MAGIC)]}, this release reads {VERSION}")
    if _sha256(state[_DATA:]) != state[_SEAL:_DATA]:
        raise StateError("state: changed or damaged after it was saved")
    if weights != state[_WEIGHTS:_SEAL]:
        raise StateError("state: saved by a model with other weights")


def _tensors(state: bytes) -> bytes:
    """The part that has names, types and shapes; safetensors writes the same for the same ones."""
    length = int.from_bytes(state[_DATA : _DATA + 8], "little")
    return state[_DATA : _DATA + 8 + length]


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
