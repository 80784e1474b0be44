"""One connection of an event stream: messages in, answers out.

A message is read when the one before it has been taken in, and its answers are on their way out (streams.outlet), where
a client that does not read them meets the server's policy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from spikeserve.access import Gate
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.grpc import convert
from spikeserve.grpc.boundary import Context, Unreadable, current_call, unreadable
from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spikeserve.settings import Settings
from spikeserve.streams import Packet, Refusal, Session, SlowClientError, Streams, WindowAnswer
from spikeserve.streams.terms import shutting_down
from spiketrain.events import wire


class _TakenOverError(ServiceError):
    """Another connection has the stream now."""

    def __init__(self) -> None:
        super().__init__(
            ErrorKind.CANCELLED, "the stream was resumed by another connection, and goes on there"
        )


class _KeptError(ServiceError):
    """Only the connection ends: the stream is kept for a client that comes back."""


class _SilentError(Exception):
    """Nothing has come for too long from a client that may come back."""


class _LeavingError(Exception):
    """The server is told to stop, and another one can go on with the stream."""


async def serve_events(streams: Streams, settings: Settings, gate: Gate, context: Context) -> None:
    """The conversation of one StreamEvents call. Raises ServiceError; the stream is closed, unless it is resumable and
    it was only the connection that ended."""
    try:
        async with asyncio.timeout(settings.stream_idle_seconds):
            opening = _opening(await context.read())
    except TimeoutError:
        raise ServiceError(
            ErrorKind.DEADLINE,
            f"nothing came for {settings.stream_idle_seconds:g} s after the call: send `open` first",
        ) from None
    if opening.give_up:
        await streams.give_up(opening.resume_token)
        return
    session, resumed = await _session(streams, settings, opening)
    model = session.stream.model
    current_call.get().answered_by(model.name, model.version)
    conversation = _Conversation(streams, session, gate, context)
    try:
        await conversation.run(opening, resumed, streams.resume_seconds)
    except _TakenOverError:
        raise
    except _LeavingError:
        raise await _handed_over(streams, session) from None
    except _SilentError:
        raise _kept(streams, session, streams.silent()) from None
    except SlowClientError as error:
        raise _kept(streams, session, error) from None
    except ServiceError:
        streams.parking.forget(session)
        streams.safekeeping.discard(session)
        raise
    finally:
        conversation.close()
        streams.parking.leave(session)


async def _session(
    streams: Streams, settings: Settings, opening: pb.OpenStream
) -> tuple[Session, bool]:
    """The session that the client opens or comes back to, and whether it comes back. Raises ServiceError."""
    options = convert.stream_options(opening)
    terms = (options, convert.encoding(opening.encoding, wire.Encoding.COLUMNS_V1))
    if opening.resume_token:
        return await streams.resume(opening.resume_token, terms), True
    stream = await streams.open(options)
    session = Session(stream, settings, streams.workers, terms, opening.resumable)
    if opening.resumable:
        streams.parking.register(session)
    return session, False


async def _handed_over(streams: Streams, session: Session) -> ServiceError:
    """What the client is told: with the token in the trailing metadata where it can go on elsewhere."""
    kept = await streams.safekeeping.save(session, session.saving)
    if not kept or session.token is None:
        return shutting_down()
    streams.parking.forget(session)
    _tell(session, session.token)
    return ServiceError(
        ErrorKind.UNAVAILABLE,
        f"the server is shutting down; the stream is kept for {streams.resume_seconds:g} s: go on with its token "
        "at another one",
        1.0,
    )


def _kept(streams: Streams, session: Session, error: ServiceError) -> ServiceError:
    """The same error, with the token in the trailing metadata where the client may come back."""
    if session.token is None:
        return error
    _tell(session, session.token)
    return _KeptError(
        error.kind,
        f"{error.message}; it is kept for {streams.resume_seconds:g} s: go on with its token",
        error.retry_after,
    )


def _tell(session: Session, token: str) -> None:
    current_call.get().told = (
        ("resume-token", token),
        ("last-sequence", str(session.last_sequence)),
        ("next-window", str(session.next_window)),
    )


def _opening(message: object) -> pb.OpenStream:
    if message is grpc.aio.EOF:
        raise ServiceError(
            ErrorKind.MALFORMED, "the stream ended before it began: send `open` first"
        )
    checked = _checked(message)
    if checked.WhichOneof("kind") != "open":
        raise ServiceError(
            ErrorKind.MALFORMED, f"the first message is {_name(checked)}: send `open` first"
        )
    return checked.open


def _checked(message: object) -> pb.EventMessage:
    if isinstance(message, Unreadable):
        raise unreadable()
    if not isinstance(message, pb.EventMessage):
        raise TypeError(f"read {type(message).__name__} from an event stream")
    return message


def _name(message: pb.EventMessage) -> str:
    kind = message.WhichOneof("kind")
    return f"`{kind}`" if kind else "empty, or of a kind that this server does not know"


class _Conversation:
    """One connection's part of a session."""

    def __init__(self, streams: Streams, session: Session, gate: Gate, context: Context) -> None:
        self._gate = gate
        self._session = session
        self._context = context
        self._classes = session.stream.model.manifest.classes
        self._keeping = streams.safekeeping
        self._outlet = streams.outlet(session, self._send)
        self._taken_over = session.taken_over
        self._leaving = session.leaving
        self._silent = session.silent
        self._closed = asyncio.create_task(session.stream.wait_closed())

    async def run(self, opening: pb.OpenStream, resumed: bool, seconds: float) -> None:
        """Raises the reason for which the server closed the stream meanwhile, or that it gave it away."""
        with self._until_closed():
            await self._converse(opening, resumed, seconds)

    async def _converse(self, opening: pb.OpenStream, resumed: bool, seconds: float) -> None:
        session = self._session
        first, again = session.answers_from(opening.next_window) if resumed else (0, [])
        await self._keeping.keep_up(session, wait=True)
        opened = convert.stream_opened(session, resumed, seconds)
        opened.next_window = first
        opened.saves = session.token is not None and self._keeping.keeps_going
        await self._write(pb.EventAnswer(opened=opened))
        for answer in again:
            await self._send(answer)
        while not session.finished:
            message = await self._context.read()
            if message is grpc.aio.EOF:
                if session.resumable:
                    # The client has gone without a word, and may come back.
                    return
                break
            checked = _checked(message)
            session.acknowledge(checked.next_window)
            if checked.WhichOneof("kind") == "end":
                break
            if await self._outlet.admits(checked.events.sequence):
                await self._outlet.send(await self._take(checked))
                await self._keeping.keep_up(session)
        await self._outlet.send(await session.finish())
        await self._outlet.flush()
        await self._write(pb.EventAnswer(ended=convert.stream_ended(session)))

    def close(self) -> None:
        self._outlet.close()
        self._closed.cancel()

    async def _take(self, message: pb.EventMessage) -> list[WindowAnswer]:
        kind = message.WhichOneof("kind")
        if kind == "events":
            packet = message.events
            layout = convert.encoding(packet.encoding, self._session.terms[1])
            with self._gate.metered(self._session):
                return await self._session.feed(
                    Packet(packet.sequence, layout, packet.payload, packet.base_us)
                )
        if kind == "advance":
            return await self._session.advance(message.advance.time_us)
        raise ServiceError(
            ErrorKind.MALFORMED,
            f"a message is {_name(message)}: after `open` come `events`, `advance` and `end`",
        )

    async def _send(self, answer: WindowAnswer | Refusal) -> None:
        if isinstance(answer, Refusal):
            await self._write(pb.EventAnswer(refused=convert.refused(answer)))
            return
        window = convert.window_answer(answer, self._classes)
        window.drops.dropped_answers = self._session.dropped_answers
        window.drops.refused_messages = self._session.refused_messages
        await self._write(pb.EventAnswer(window=window))

    async def _write(self, answer: pb.EventAnswer) -> None:
        answer.saved_sequence = self._session.saved_sequence
        await self._context.write(answer)

    @contextmanager
    def _until_closed(self) -> Iterator[None]:
        """Interrupts what it is around. Waiting for each step beside the two futures would cost more than the step."""
        task = asyncio.current_task()
        reasons: list[BaseException] = []

        def reason(ended: asyncio.Future[Any]) -> BaseException | None:
            if ended is self._leaving:
                return _LeavingError()
            if ended is self._silent:
                return _SilentError()
            if ended is self._taken_over:
                return _TakenOverError()
            if ended is self._outlet.failed:
                return self._outlet.failed.result()
            closed: ServiceError | None = ended.result()
            return None if closed is None else closed.again()

        def interrupt(ended: asyncio.Future[Any]) -> None:
            why = reason(ended)
            if why is not None and not reasons and task is not None:
                reasons.append(why)
                task.cancel()

        ends: tuple[asyncio.Future[Any], ...] = (
            self._taken_over,
            self._leaving,
            self._silent,
            self._outlet.failed,
            self._closed,
        )
        for end in ends:
            end.add_done_callback(interrupt)
        try:
            yield
        except asyncio.CancelledError:
            # Somebody else may have cancelled too: then that goes before.
            if not reasons or task is None or task.uncancel():
                raise
            raise reasons[0] from None
        finally:
            for end in ends:
                end.remove_done_callback(interrupt)
