"""One connection of an event stream: messages in, answers out, one at a time.

Nothing is read before the answers to what was read have been written, so a client that does not read its answers
stops its own stream and holds nothing but its place, until the stream has been idle for too long.
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
from spikeserve.streams import Packet, Session, Streams, WindowAnswer
from spikeserve.streams.terms import shutting_down
from spiketrain.events import wire


class _TakenOverError(ServiceError):
    """Another connection has the stream now."""

    def __init__(self) -> None:
        super().__init__(
            ErrorKind.CANCELLED, "the stream was resumed by another connection, and goes on there"
        )


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
    conversation = _Conversation(session, gate, context)
    try:
        await conversation.run(opening, resumed, streams.resume_seconds)
    except _TakenOverError:
        raise
    except _LeavingError:
        raise await _handed_over(streams, session) from None
    except ServiceError:
        streams.parking.forget(session)
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
    kept = await streams.safekeeping.save(session)
    if not kept or session.token is None:
        return shutting_down()
    streams.parking.forget(session)
    current_call.get().told = (
        ("resume-token", session.token),
        ("last-sequence", str(session.last_sequence)),
        ("next-window", str(session.next_window)),
    )
    return ServiceError(
        ErrorKind.UNAVAILABLE,
        f"the server is shutting down; the stream is kept for {streams.resume_seconds:g} s: go on with its token "
        "at another one",
        1.0,
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

    def __init__(self, session: Session, gate: Gate, context: Context) -> None:
        self._gate = gate
        self._session = session
        self._context = context
        self._taken_over = session.taken_over
        self._leaving = session.leaving
        self._closed = asyncio.create_task(session.stream.wait_closed())

    async def run(self, opening: pb.OpenStream, resumed: bool, seconds: float) -> None:
        """Raises the reason for which the server closed the stream meanwhile, or that it gave it away."""
        with self._until_closed():
            await self._converse(opening, resumed, seconds)

    async def _converse(self, opening: pb.OpenStream, resumed: bool, seconds: float) -> None:
        session = self._session
        first, again = session.answers_from(opening.next_window) if resumed else (0, [])
        opened = convert.stream_opened(session, resumed, seconds)
        opened.next_window = first
        await self._write(pb.EventAnswer(opened=opened))
        await self._answer(again)
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
            await self._answer(await self._take(checked))
        await self._answer(await session.finish())
        await self._write(pb.EventAnswer(ended=convert.stream_ended(session)))

    def close(self) -> None:
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

    async def _answer(self, answers: list[WindowAnswer]) -> None:
        classes = self._session.stream.model.manifest.classes
        for answer in answers:
            window = convert.window_answer(answer, classes)
            await self._write(pb.EventAnswer(window=window))

    async def _write(self, answer: pb.EventAnswer) -> None:
        await self._context.write(answer)

    @contextmanager
    def _until_closed(self) -> Iterator[None]:
        """Interrupts what it is around. Waiting for each step beside the two futures would cost more than the step."""
        task = asyncio.current_task()
        reasons: list[ServiceError | _LeavingError] = []

        def interrupt(ended: asyncio.Future[Any]) -> None:
            reason: ServiceError | _LeavingError | None
            if ended is self._leaving:
                reason = _LeavingError()
            elif ended is self._taken_over:
                reason = _TakenOverError()
            else:
                closed: ServiceError | None = ended.result()
                reason = None if closed is None else closed.again()
            if reason is not None and not reasons and task is not None:
                reasons.append(reason)
                task.cancel()

        ends: tuple[asyncio.Future[Any], ...] = (self._taken_over, self._leaving, self._closed)
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
