"""Snapshots in Redis, for servers on several machines. Needs the extra `redis`.

A snapshot is the value of spikeserve:stream:NAME, which Redis lets expire by itself; spikeserve:streams is the set of
their names, sorted by the time at which they expire, by which their number is bounded.
"""

from __future__ import annotations

import time
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from spikeserve.snapshots.store import StoreSettingError

_PREFIX = "spikeserve:stream:"
_NAMES = "spikeserve:streams"
# Of a Redis that does not answer nobody shall have to wait for long.
_TIMEOUT_SECONDS = 1.0


class RedisStore:
    """A `Store`. Whether Redis answers is found out when it is used: a server can start without it."""

    def __init__(self, url: str, seconds: float, most: int) -> None:
        if find_spec("redis") is None:
            raise StoreSettingError(
                "snapshots: Redis needs the package redis: pip install 'spikeserve[redis]'"
            )
        import redis

        self._failures = (redis.RedisError, OSError)
        self._seconds = seconds
        self._most = most
        self._where = urlsplit(url).hostname or urlsplit(url).path
        try:
            self._redis: Any = redis.Redis.from_url(
                url,
                socket_timeout=_TIMEOUT_SECONDS,
                socket_connect_timeout=_TIMEOUT_SECONDS,
                retry=None,
            )
        except ValueError as error:
            raise StoreSettingError(f"snapshots: {error}") from error

    def put(self, name: str, snapshot: bytes) -> None:
        now = time.time()
        try:
            with self._redis.pipeline() as pipe:
                pipe.set(_PREFIX + name, snapshot, px=max(1, round(self._seconds * 1000)))
                pipe.zadd(_NAMES, {name: now + self._seconds})
                pipe.expire(_NAMES, round(self._seconds) + 1)
                pipe.zremrangebyscore(_NAMES, "-inf", now)
                pipe.zcard(_NAMES)
                too_many = pipe.execute()[-1] - self._most
            if too_many > 0:
                oldest = [found for found, _ in self._redis.zpopmin(_NAMES, too_many)]
                self._redis.delete(*(_PREFIX + found.decode() for found in oldest))
        except self._failures as error:
            raise self._failed(error) from error

    def get(self, name: str) -> bytes | None:
        try:
            value = self._redis.get(_PREFIX + name)
        except self._failures as error:
            raise self._failed(error) from error
        return None if value is None else bytes(value)

    def remove(self, name: str) -> bool:
        try:
            with self._redis.pipeline() as pipe:
                pipe.delete(_PREFIX + name)
                pipe.zrem(_NAMES, name)
                return bool(pipe.execute()[0])
        except self._failures as error:
            raise self._failed(error) from error

    def sweep(self) -> None:
        """Redis does it."""

    def close(self) -> None:
        self._redis.close()

    def _failed(self, error: Exception) -> OSError:
        # Without the address, which may have a password.
        return OSError(f"Redis at {self._where}: {type(error).__name__}: {error}")
