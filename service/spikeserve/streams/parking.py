"""Streams whose connection may break: kept for a while, so that their clients can come back to them.

A session is known by its token from its opening on. While it has a connection it costs nothing more; without one it
waits for a bounded time, and of those that wait there is a bounded number. Its state stays in memory, where an idle
stream's slot is free for others; a snapshot of it may lie elsewhere too, and stays there when this server gives it up.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.streams.session import Session


class Parking:
    """Waits for clients up to `seconds`, with at most `most` streams at once. To be used on one event loop.

    `keep` is told of each session that begins to wait, and may begin to save it; `discard` of each that came to its end.
    """

    def __init__(
        self,
        seconds: float,
        most: int,
        keep: Callable[[Session], None] = lambda session: None,
        discard: Callable[[Session], None] = lambda session: None,
    ) -> None:
        self.seconds = seconds
        self._most = most
        self._keep = keep
        self._discard = discard
        self._known: dict[str, Session] = {}
        # Those without a connection, the one that has waited longest first.
        self._waiting: dict[str, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        """How many wait for their clients."""
        return len(self._waiting)

    @property
    def sessions(self) -> list[Session]:
        """All that have a token, with and without a connection."""
        return list(self._known.values())

    def register(self, session: Session, token: str | None = None) -> str:
        """The token by which a client comes back to this session, too long to be guessed unless it has one already."""
        token = token or secrets.token_urlsafe(18)
        session.token = token
        self._known[token] = session
        return token

    def known(self, token: str) -> Session | None:
        return self._known.get(token)

    def find(self, token: str) -> Session:
        """Raises ServiceError UNKNOWN_STREAM."""
        session = self._known.get(token)
        if session is None:
            raise self.unknown()
        return session

    def unknown(self) -> ServiceError:
        return ServiceError(
            ErrorKind.UNKNOWN_STREAM,
            f"no stream waits under this token: it was never given out here, or more than {self.seconds:g} s have "
            "passed since the connection broke (SPIKESERVE_RESUME_SECONDS), or others needed its place; open a "
            "new stream",
        )

    def hold(self, session: Session) -> None:
        """Somebody asks for it: it is not given up before `claim` or `leave`."""
        self._stop_waiting(session)

    async def claim(self, session: Session) -> None:
        """The session goes to the connection that asks; one that still has it is told to let go.

        Returns when what was under way is done. Raises ServiceError where the stream has been closed meanwhile.
        """
        self._stop_waiting(session)
        try:
            await session.take_over()
        except BaseException:
            if session.free:
                self.leave(session)
            raise
        if session.stream.closed and not session.finished:
            self.forget(session)
            raise session.stream.reason or ServiceError(
                ErrorKind.UNKNOWN_STREAM, "the stream was closed meanwhile: open a new one"
            )

    def leave(self, session: Session) -> None:
        """The connection is gone."""
        session.release()
        token = session.token
        if token is None or token not in self._known:
            session.end(None)
            return
        if session.claimed:
            return
        if session.finished:
            session.stream.end(None)
        under_way = session.saving is not None and not session.saving.done()
        if not session.saved or (session.stored is None and not under_way):
            self._keep(session)
        if self._most == 0:
            self._let_go(session)
            return
        while len(self._waiting) >= self._most:
            self.evict()
        loop = asyncio.get_running_loop()
        self._waiting[token] = loop.call_later(self.seconds, self._let_go, session)

    def forget(self, session: Session) -> None:
        """Free all that the session holds. May be called again."""
        self._stop_waiting(session)
        if session.token is not None:
            self._known.pop(session.token, None)
        session.end(None)
        if session.finished:
            self._discard(session)
        if not session.taken_over.done():
            session.taken_over.set_result(None)

    def evict(self) -> bool:
        """Give up the stream that has waited longest; False where none waits."""
        token = next(iter(self._waiting), None)
        if token is None:
            return False
        self._let_go(self._known[token])
        return True

    def close(self) -> None:
        """Give up all that wait."""
        while self.evict():
            pass

    def _let_go(self, session: Session) -> None:
        """Forget it, once its snapshot is there."""
        self._stop_waiting(session)
        if session.saving is None or session.saving.done():
            self.forget(session)
            return

        def saved(_: asyncio.Task[bool]) -> None:
            if session.free and not session.claimed:
                self.forget(session)

        session.saving.add_done_callback(saved)

    def _stop_waiting(self, session: Session) -> None:
        timer = self._waiting.pop(session.token or "", None)
        if timer is not None:
            timer.cancel()
