"""Event streams, over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TypeAlias

import grpc

from spikeserve.client.answers import Decision, Drops, Ended, Opened, Prediction, Window
from spikeserve.client.errors import from_rpc
from spikeserve.client.packets import Advance, Packet
from spikeserve.grpc import rules
from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spikeserve.grpc.v1.spikeserve_pb2_grpc import SpikeServeStub
from spiketrain.events import wire
from spiketrain.manifest import CountWindow, DurationWindow
from spiketrain.stream_rules import DecisionRule, FilterRule

WindowRule: TypeAlias = DurationWindow | CountWindow

DEFAULT_TARGET = "127.0.0.1:8001"


class StreamClient:
    """A server's gRPC interface at `target`, HOST:PORT."""

    def __init__(self, target: str = DEFAULT_TARGET) -> None:
        self._target = target
        self._channel = grpc.insecure_channel(target)
        self._stub = SpikeServeStub(self._channel)

    def stream(
        self,
        packets: Iterable[Packet],
        *,
        model: str | None = None,
        version: str | None = None,
        sensor: tuple[int, int] | None = None,
        start_us: int | None = None,
        lateness_us: int = 0,
        rates: bool = True,
        filters: Iterable[FilterRule] = (),
        window: WindowRule | None = None,
        force: bool = False,
        decision: DecisionRule | None = None,
    ) -> EventStream:
        """Sends the packets, from a thread of its own, and gives the answers: one Window for each window.

        `sensor` is width and height, checked against the model's; `start_us` the stream time at which the first
        window begins, unless given that of the first event. `filters` lead from the sensor to the model's; another
        `window` rule than the model's needs `force`; with `decision` the answers have one.

        Raises ClientError when the answers are read.
        """
        opening = _open_message(
            model, version, sensor, start_us, lateness_us, rates, filters, window, force, decision
        )
        sender = _Sender(opening)
        return EventStream(self._stub.StreamEvents(sender.send(packets)), sender, self._target)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class EventStream(Iterator[Window]):
    """The answers of one stream. `opened` is known from the first answer on, `ended` after the last."""

    def __init__(self, call: Any, sender: _Sender, target: str) -> None:
        self._call = call
        self._sender = sender
        self._target = target
        self.opened: Opened | None = None
        self.ended: Ended | None = None

    def __next__(self) -> Window:
        try:
            for answer in self._call:
                if (window := _take(self, answer)) is not None:
                    return window
        except grpc.RpcError as error:
            raise self._sender.failure or from_rpc(error, self._target) from error
        raise StopIteration

    def cancel(self) -> None:
        """Ends the stream without waiting for further answers."""
        self._call.cancel()


class AsyncStreamClient:
    """`StreamClient` for asyncio; packets may come from an asynchronous iterator."""

    def __init__(self, target: str = DEFAULT_TARGET) -> None:
        self._target = target
        self._channel = grpc.aio.insecure_channel(target)
        self._stub = SpikeServeStub(self._channel)

    def stream(
        self,
        packets: Iterable[Packet] | AsyncIterable[Packet],
        *,
        model: str | None = None,
        version: str | None = None,
        sensor: tuple[int, int] | None = None,
        start_us: int | None = None,
        lateness_us: int = 0,
        rates: bool = True,
        filters: Iterable[FilterRule] = (),
        window: WindowRule | None = None,
        force: bool = False,
        decision: DecisionRule | None = None,
    ) -> AsyncEventStream:
        """As `StreamClient.stream`."""
        opening = _open_message(
            model, version, sensor, start_us, lateness_us, rates, filters, window, force, decision
        )
        sender = _Sender(opening)
        messages = sender.send_async(_each(packets) if isinstance(packets, Iterable) else packets)
        return AsyncEventStream(self._stub.StreamEvents(messages), sender, self._target)

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


class AsyncEventStream(AsyncIterator[Window]):
    """`EventStream` for asyncio."""

    def __init__(self, call: Any, sender: _Sender, target: str) -> None:
        self._call = call
        self._sender = sender
        self._answers = aiter(call)
        self._target = target
        self.opened: Opened | None = None
        self.ended: Ended | None = None

    async def __anext__(self) -> Window:
        try:
            async for answer in self._answers:
                window = _take(self, answer)
                self._sender.answered.set()
                if window is not None:
                    return window
        except grpc.RpcError as error:
            self._sender.stop()
            raise self._sender.failure or from_rpc(error, self._target) from error
        except asyncio.CancelledError:
            self._sender.stop()
            # The transport cancels its own call when the packets fail.
            if self._sender.failure is not None:
                raise self._sender.failure from None
            raise
        self._sender.stop()
        raise StopAsyncIteration

    def cancel(self) -> None:
        """Ends the stream without waiting for further answers."""
        self._sender.stop()
        self._call.cancel()


async def _each(packets: Iterable[Packet]) -> AsyncIterator[Packet]:
    for packet in packets:
        yield packet


def _open_message(
    model: str | None,
    version: str | None,
    sensor: tuple[int, int] | None,
    start_us: int | None,
    lateness_us: int,
    rates: bool,
    filters: Iterable[FilterRule],
    window: WindowRule | None,
    force: bool,
    decision: DecisionRule | None,
) -> pb.EventMessage:
    width, height = sensor or (0, 0)
    opening = pb.OpenStream(
        model=model or "",
        version=version or "",
        sensor_width=width,
        sensor_height=height,
        encoding=pb.ENCODING_COLUMNS_V1,
        lateness_us=lateness_us,
        rates=rates,
        filters=rules.filter_messages(filters),
        force=force,
    )
    if isinstance(window, DurationWindow):
        opening.window_us = window.microseconds
    elif isinstance(window, CountWindow):
        opening.window_us, opening.window_events = window.max_microseconds, window.events
    if decision is not None:
        opening.decision.CopyFrom(rules.decision_message(decision))
    if start_us is not None:
        opening.start_us = start_us
    return pb.EventMessage(open=opening)


_END = pb.EventMessage(end=pb.EndOfStream())


class _Sender:
    """The messages of one stream. What the packets themselves raise is kept: the transport would swallow it."""

    def __init__(self, opening: pb.EventMessage) -> None:
        self._opening = opening
        self._sequence = 0
        self.failure: Exception | None = None
        self.answered = asyncio.Event()  # the server has said something
        self._stopped = False

    def stop(self) -> None:
        """Send nothing more: the call is over."""
        self._stopped = True
        self.answered.set()

    def send(self, packets: Iterable[Packet]) -> Iterator[pb.EventMessage]:
        yield self._opening
        try:
            for packet in packets:
                yield self._message(packet)
        except Exception as error:
            self.failure = error
            raise
        yield _END

    async def send_async(self, packets: AsyncIterable[Packet]) -> AsyncIterator[pb.EventMessage]:
        yield self._opening
        # A message to a call that the server has refused fails in the transport, whose own error then hides the refusal.
        await self.answered.wait()
        try:
            async for packet in packets:
                if self._stopped:
                    return
                yield self._message(packet)
        except Exception as error:
            self.failure = error
            raise
        yield _END

    def _message(self, packet: Packet) -> pb.EventMessage:
        if isinstance(packet, Advance):
            return pb.EventMessage(advance=pb.Advance(time_us=packet.time_us))
        self._sequence += 1
        payload, base_us = wire.encode(wire.Encoding.COLUMNS_V1, packet)
        return pb.EventMessage(
            events=pb.EventPacket(sequence=self._sequence, base_us=base_us, payload=payload)
        )


def _take(stream: EventStream | AsyncEventStream, answer: pb.EventAnswer) -> Window | None:
    """Keeps what the first and the last answer say; gives the others."""
    kind = answer.WhichOneof("kind")
    if kind == "opened":
        stream.opened = _opened(answer.opened)
    elif kind == "ended":
        stream.ended = Ended(answer.ended.windows, answer.ended.events, _drops(answer.ended.drops))
    elif kind == "window":
        return _window(answer.window)
    return None


def _opened(message: pb.StreamOpened) -> Opened:
    return Opened(
        model=message.model,
        version=message.version,
        classes=tuple(message.classes),
        sensor=(message.sensor_width, message.sensor_height),
        window_us=message.window_us,
        window_events=message.window_events,
    )


def _window(message: pb.WindowAnswer) -> Window:
    return Window(
        index=message.index,
        start_us=message.start_us,
        end_us=message.end_us,
        events=message.events,
        predictions=_predictions(message.predictions),
        raw=_predictions(message.raw),
        firing_rates={each.layer: each.rate for each in message.firing_rates},
        synaptic_operations=message.synaptic_operations,
        energy_joules=message.energy_joules,
        drops=_drops(message.drops),
        latency_seconds=message.latency_seconds,
        sequence=message.sequence,
        decision=_decision(message.decision) if message.HasField("decision") else None,
    )


def _decision(message: pb.Decision) -> Decision:
    decided = message.HasField("index")
    return Decision(
        message.index if decided else None,
        message.label if decided else None,
        message.evidence,
        message.lead,
        message.since_us,
        message.changed,
    )


def _predictions(messages: Iterable[pb.Prediction]) -> tuple[Prediction, ...]:
    return tuple(Prediction(each.label, each.index, each.probability) for each in messages)


def _drops(message: pb.Drops) -> Drops:
    return Drops(
        late_events=message.late_events,
        outside_events=message.outside_events,
        skipped_windows=message.skipped_windows,
        lost_packets=message.lost_packets,
        repeated_packets=message.repeated_packets,
        filtered_events=message.filtered_events,
    )
