"""The last requests that were refused or failed, and why: what an operator looks at first."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from spikeserve.errors import ErrorKind, ServiceError

MOST = 50
_MOST_TEXT = 300

# A client that leaves was refused nothing, and paths that nobody has are asked for by scanners all the time.
_OF_NO_INTEREST = (ErrorKind.CANCELLED, ErrorKind.UNIMPLEMENTED, ErrorKind.METHOD_NOT_ALLOWED)


@dataclass(frozen=True)
class Refusal:
    """`when` is in seconds since 1970; `route` a template of ours; `reason` what the client was told, cut short."""

    when: float
    route: str
    kind: ErrorKind
    reason: str
    request_id: str


class Refusals:
    """A ring of `MOST`. May be used on several event loops: a deque takes and copies at one stroke."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._ring: deque[Refusal] = deque(maxlen=MOST)

    def add(self, route: str, error: ServiceError, request_id: str) -> None:
        if error.kind in _OF_NO_INTEREST:
            return
        reason = error.message
        if len(reason) > _MOST_TEXT:
            reason = reason[:_MOST_TEXT] + " ..."
        self._ring.append(Refusal(self._clock(), route, error.kind, reason, request_id))

    def latest(self) -> list[Refusal]:
        """The latest first."""
        return list(reversed(self._ring.copy()))
