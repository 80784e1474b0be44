"""How a client reaches a server for streams, and how long it tries when the connection breaks."""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Sequence
from typing import Any

import grpc

from spikeserve.client.errors import from_rpc, refused_for_now

DEFAULT_TARGET = "127.0.0.1:8001"
DEFAULT_RECONNECT_SECONDS = 30.0
GIVE_UP_SECONDS = 5.0
KEEP_BYTES = 64 << 20
"""Of packets that the server is not known to have, to be sent again after a broken connection, at most."""

CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    # A peer that vanished without a word is noticed, so that reconnecting can begin.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Reconnecting has its own pauses; the channel's shall not come on top.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", 16 << 20),
]

STREAM_ID_HEADER = "x-stream-id"


def stream_id() -> tuple[str, str]:
    """Metadata that is the same for all connections of one stream: a gateway that hashes it sends them all to the server
    that has the stream's state."""
    return STREAM_ID_HEADER, uuid.uuid4().hex


_BROKEN = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.CANCELLED,
)
_TOKEN_KEY = "resume-token"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0


def broke(error: grpc.RpcError) -> bool:
    """Whether it was the connection that failed: what the server itself refuses has a name."""
    metadata: Any = error.trailing_metadata() or ()
    return error.code() in _BROKEN and "error-type" not in dict(metadata)


def moved(error: grpc.RpcError) -> bool:
    """Whether the server has ended the call, and another one can go on with the stream."""
    metadata: Any = error.trailing_metadata() or ()
    # Not by the status: a gateway that removes the call at once makes another one of it.
    return _TOKEN_KEY in dict(metadata)


class Outage:
    """One broken connection: `pause` says how long to wait before each attempt, or raises ClientError."""

    def __init__(self, error: grpc.RpcError, target: str, began: float, patience: float) -> None:
        self._error = error
        self._target = target
        self._deadline = began + patience
        self._pause = _FIRST_PAUSE

    def pause(self, now: float) -> float:
        """Seconds, not the same for all clients of a server that has just come back."""
        pause = self._pause * random.uniform(0.5, 1.5)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        if now + pause > self._deadline:
            raise from_rpc(self._error, self._target) from self._error
        return pause

    def again(self, error: grpc.RpcError) -> None:
        """An attempt has failed. Raises ClientError where another one cannot help."""
        if not broke(error) and not refused_for_now(error):
            raise from_rpc(error, self._target) from error
        self._error = error


def with_key(metadata: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """The metadata, with the key of the environment where it has none."""
    named = any(name.lower() in ("x-api-key", "authorization") for name, _ in metadata)
    return (*metadata, *(() if named else api_key()))


def api_key(key: str | None = None) -> tuple[tuple[str, str], ...]:
    """Header or metadata with this key, or with that of the environment, where there is one."""
    key = key or os.environ.get("SPIKESERVE_API_KEY")
    return (("x-api-key", key),) if key else ()
