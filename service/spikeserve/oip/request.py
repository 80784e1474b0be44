"""What a client asks for and what it gets, and the parameters that every request may have."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spikeserve.oip.tensors import NamedTensor, malformed

_MOST_MICROSECONDS = 1 << 50


@dataclass(frozen=True)
class WantedOutput:
    """With `classes` above 0, the so many likeliest as "probability:index:label" instead of the values."""

    name: str
    classes: int = 0


@dataclass(frozen=True)
class InferRequest:
    """`deadline` is one of time.monotonic(), that of the call itself."""

    model: str
    version: str | None
    inputs: Sequence[NamedTensor]
    outputs: Sequence[WantedOutput] = ()  # all where there are none
    parameters: Mapping[str, Any] = field(default_factory=dict)
    deadline: float | None = None


@dataclass(frozen=True)
class InferAnswer:
    model: str
    version: str
    outputs: list[NamedTensor]


def whole(parameters: Mapping[str, Any], name: str) -> int | None:
    """Raises ServiceError MALFORMED for what is no whole number; None where it is not given."""
    value = parameters.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise malformed(f"parameter {name} must be a whole number")
    return value


def flag(parameters: Mapping[str, Any], name: str) -> bool:
    """False where it is not given. Raises ServiceError MALFORMED."""
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise malformed(f"parameter {name} must be true or false")
    return value


def text(parameters: Mapping[str, Any], name: str) -> str | None:
    """Raises ServiceError MALFORMED; None where it is not given."""
    value = parameters.get(name)
    if value is not None and not isinstance(value, str):
        raise malformed(f"parameter {name} must be a string")
    return value


def deadline(request: InferRequest) -> float | None:
    """The earlier one of the call's and that of the parameter `timeout`, in microseconds from now; 0 is none."""
    timeout = whole(request.parameters, "timeout")
    if not timeout:
        return request.deadline
    if timeout < 0:
        raise malformed("parameter timeout must be microseconds, 0 or more")
    own = time.monotonic() + min(timeout, _MOST_MICROSECONDS) / 1e6
    return own if request.deadline is None else min(own, request.deadline)
