"""Who asks, and the limits that hold for them: the server's, or narrower ones of their key."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

from spikeserve.access.keys import KeyLimits

LimitName = Literal["max_body_bytes", "max_pixels", "max_batch", "queue_seconds"]


@dataclass(frozen=True)
class Caller:
    """`key` is the name of the key, None where there is none."""

    key: str | None = None
    limits: KeyLimits = field(default_factory=KeyLimits)

    def narrowed(self, limit: LimitName, server: float) -> tuple[float, str]:
        """The limit that holds, and what it is called in a message to the client."""
        own = getattr(self.limits, limit)
        if own is not None and own < server:
            return own, f"{limit} of the key {self.key}"
        return server, f"SPIKESERVE_{limit.upper()}"

    def whole(self, limit: LimitName, server: int) -> tuple[int, str]:
        """The same, for limits that are whole numbers."""
        value, name = self.narrowed(limit, server)
        return int(value), name


current_caller: ContextVar[Caller] = ContextVar("current_caller", default=Caller())  # noqa: B039 - it is frozen
"""Of the request that is being answered."""
