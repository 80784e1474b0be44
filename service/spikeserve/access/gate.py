"""The one place where a request is let in: who asks, whether they may, and whether it is too much.

What a route or a method asks for is said by the protocols (`scopes.py`); an open one asks for nothing.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import threading
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Protocol

from spikeserve.access.caller import Caller, current_caller
from spikeserve.access.keyring import Keyring
from spikeserve.access.keys import KeyEntry, KeyLimits, Scope
from spikeserve.access.rates import Bucket, default_burst
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.settings import Settings

_ANONYMOUS = Caller()
_RETRY_SECONDS = 1.0


class Metered(Protocol):
    """A stream: how many events it has answered, and has dropped: late, outside, windows skipped, filtered, ..."""

    events: int

    @property
    def drops(self) -> tuple[int, ...]: ...


@dataclass
class _Use:
    """What the holder of one key, or nobody in particular, has under way."""

    limits: KeyLimits
    requests: Bucket | None = None
    events: Bucket | None = None
    open: Counter[str] = field(default_factory=Counter)


class Gate:
    """Pictures and the rest come on two event loops, so what is counted is under a lock.

    Raises KeysError where the settings' file of keys cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._keyring = None if settings.keys is None else Keyring(settings.keys)
        self._uses: dict[str, _Use] = {}
        self._requests = 0
        self._lock = threading.Lock()
        self._closed = False
        rate = settings.events_per_second
        self._events = None if rate is None else Bucket(rate, rate)

    @contextlib.contextmanager
    def admit(
        self, scopes: tuple[Scope, ...], credentials: str | None, *, admin_port: bool = False
    ) -> Generator[Caller]:
        """Lets one request in, for as long as the context lasts; any one of `scopes` is enough, and none means open.

        `current_caller` is set from then on. Raises ServiceError: UNAUTHENTICATED, FORBIDDEN; OVER_QUOTA beyond the
        limits of the key; UNAVAILABLE beyond those of the server.
        """
        if not scopes:
            yield _ANONYMOUS
            return
        if self._closed:
            raise ServiceError(
                ErrorKind.UNAVAILABLE, "the server is shutting down: try another one", 1.0
            )
        caller = self._authorised(scopes, credentials, admin_port)
        current_caller.set(caller)
        kind = "streams" if scopes == ("stream",) else "requests"
        with self._lock:
            use = self._use(caller)
            self._check(caller, use, kind)
            use.open[kind] += 1
            self._requests += kind == "requests"
        try:
            yield caller
        finally:
            with self._lock:
                use.open[kind] -= 1
                self._requests -= kind == "requests"

    def close(self) -> None:
        """Nobody is let in any more; who is in may finish."""
        self._closed = True

    @property
    def busy(self) -> bool:
        """Whether somebody is in."""
        with self._lock:
            return any(use.open.total() for use in self._uses.values())

    @contextlib.contextmanager
    def metered(self, stream: Metered) -> Generator[None]:
        """Around what feeds events to a stream of the caller. Raises ServiceError OVER_QUOTA beyond the events per second.

        Events count when their window is answered, or when they are dropped.
        """
        before = _seen(stream)
        yield
        if events := _seen(stream) - before:
            self._count(events)

    def _count(self, events: int) -> None:
        caller = current_caller.get()
        with self._lock:
            self._take(caller, self._use(caller), events)

    def _take(self, caller: Caller, use: _Use, events: int) -> None:
        if use.events is not None and (wait := use.events.take(events)):
            raise _over(caller, f"{use.events.rate:g} events a second", "events_per_second", wait)
        if self._events is not None and (wait := self._events.take(events)):
            raise ServiceError(
                ErrorKind.OVER_QUOTA,
                f"the server takes {self._events.rate:g} events a second (SPIKESERVE_EVENTS_PER_SECOND)",
                wait,
            )

    def _authorised(
        self, scopes: tuple[Scope, ...], credentials: str | None, admin_port: bool
    ) -> Caller:
        admin = scopes == ("admin",)
        if admin and self._settings.admin_port is not None and not admin_port:
            raise _forbidden("this is served on the admin port only (SPIKESERVE_ADMIN_PORT)")
        if self._keyring is None:
            if admin and not admin_port and self._settings.admin != "open":
                raise _forbidden(
                    "models cannot be managed over the network while there are no API keys: set SPIKESERVE_KEYS, "
                    "SPIKESERVE_ADMIN_PORT or, where everybody may, SPIKESERVE_ADMIN=open"
                )
            return _ANONYMOUS
        entry = self._entry(credentials)
        if not set(scopes) & set(entry.scopes):
            raise _forbidden(
                f"the key {entry.name} has the scopes {', '.join(entry.scopes)}; this needs {' or '.join(scopes)}"
            )
        return Caller(entry.name, entry.limits)

    def _entry(self, credentials: str | None) -> KeyEntry:
        if self._keyring is None:
            raise TypeError("there are no keys")
        if not credentials:
            raise ServiceError(
                ErrorKind.UNAUTHENTICATED,
                "an API key is needed: send it as Authorization: Bearer KEY or X-Api-Key: KEY",
            )
        entry = self._keyring.find(credentials)
        if entry is None:
            raise ServiceError(
                ErrorKind.UNAUTHENTICATED, "the API key is not known here, or has expired"
            )
        return entry

    def _use(self, caller: Caller) -> _Use:
        name = caller.key or ""
        use = self._uses.get(name)
        if use is None or use.limits != caller.limits:  # new, or the file of keys was changed
            limits = caller.limits
            rate, events = limits.requests_per_second, limits.events_per_second
            fresh = _Use(
                limits,
                None if rate is None else Bucket(rate, limits.burst or default_burst(rate)),
                None if events is None else Bucket(events, events),
            )
            if use is not None:
                fresh.open = use.open
            else:
                self._forget_revoked()
            self._uses[name] = use = fresh
        return use

    def _forget_revoked(self) -> None:
        """Keys that are replaced again and again leave nothing behind."""
        if self._keyring is None:
            return
        for name, use in list(self._uses.items()):
            if name and not use.open.total() and not self._keyring.knows(name):
                del self._uses[name]

    def _check(self, caller: Caller, use: _Use, kind: str) -> None:
        most = use.limits.max_streams if kind == "streams" else use.limits.max_requests
        if most is not None and use.open[kind] >= most:
            raise _over(caller, f"{most} {kind} at once", f"max_{kind}", _RETRY_SECONDS)
        if kind == "requests" and self._requests >= self._settings.max_requests:
            raise ServiceError(
                ErrorKind.UNAVAILABLE,
                f"{self._settings.max_requests} requests are under way, the limit (SPIKESERVE_MAX_REQUESTS)",
                _RETRY_SECONDS,
            )
        if use.requests is not None and (wait := use.requests.take()):
            raise _over(
                caller, f"{use.requests.rate:g} requests a second", "requests_per_second", wait
            )


def credentials_from(authorization: str | None, api_key: str | None) -> str | None:
    """The key in these two headers, or metadata: Bearer KEY, or the password of Basic, which browsers ask for."""
    if api_key:
        return api_key
    scheme, _, rest = (authorization or "").partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    if scheme.lower() == "basic":
        with contextlib.suppress(binascii.Error, UnicodeDecodeError):
            return base64.b64decode(rest, validate=True).decode().partition(":")[2]
    return None


def _seen(stream: Metered) -> int:
    late, outside, _, filtered, *_ = stream.drops
    return stream.events + late + outside + filtered


def _forbidden(message: str) -> ServiceError:
    return ServiceError(ErrorKind.FORBIDDEN, message)


def _over(caller: Caller, what: str, limit: str, wait: float) -> ServiceError:
    return ServiceError(
        ErrorKind.OVER_QUOTA, f"the key {caller.key} may have {what} ({limit})", wait
    )
