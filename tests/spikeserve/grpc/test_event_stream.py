"""StreamEvents: one answer for each window, and no stream that outlives its client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from itertools import pairwise

import grpc
import numpy as np
import pytest

from spikeserve.app import Server
from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spikeserve.grpc.v1.spikeserve_pb2_grpc import SpikeServeStub
from spiketrain.events.types import Events

Packet = Callable[..., pb.EventMessage]
Free = Callable[[], Awaitable[None]]

OPEN = pb.EventMessage(open=pb.OpenStream(start_us=0))
END = pb.EventMessage(end=pb.EndOfStream())


async def converse(
    stub: SpikeServeStub, messages: Iterable[pb.EventMessage]
) -> list[pb.EventAnswer]:
    return [answer async for answer in stub.StreamEvents(iter(list(messages)))]


async def refusal(stub: SpikeServeStub, *messages: pb.EventMessage) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await converse(stub, messages)
    return caught.value


async def rest(call: grpc.aio.StreamStreamCall) -> list[pb.EventAnswer]:
    answers = []
    while (answer := await call.read()) is not grpc.aio.EOF:
        answers.append(answer)
    return answers


@asynccontextmanager
async def connected(server: Server, **options: int) -> AsyncIterator[SpikeServeStub]:
    given = [(f"grpc.{name}", value) for name, value in options.items()]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}", options=given) as channel:
        yield SpikeServeStub(channel)


def windows(answers: list[pb.EventAnswer]) -> list[pb.WindowAnswer]:
    return [answer.window for answer in answers if answer.WhichOneof("kind") == "window"]


async def test_a_stream_is_opened_answered_once_a_window_and_ended(
    stub: SpikeServeStub, events: Events, packet: Packet, all_free: Free
) -> None:
    answers = await converse(stub, [OPEN, packet(events), END])
    opened, *middle, ended = answers
    assert opened.opened.model == "moves"
    assert opened.opened.window_us == 10_000
    assert (opened.opened.sensor_width, opened.opened.sensor_height) == (34, 34)
    assert list(opened.opened.encodings) == [
        pb.ENCODING_COLUMNS_V1,
        pb.ENCODING_EVT2,
        pb.ENCODING_EVT3,
        pb.ENCODING_AEDAT3_WORDS,
    ]
    assert not opened.opened.HasField("decision")
    assert len(middle) == 10
    for index, answer in enumerate(windows(middle)):
        inside = (events.t >= index * 10_000) & (events.t < (index + 1) * 10_000)
        assert (answer.index, answer.start_us, answer.end_us) == (
            index,
            index * 10_000,
            (index + 1) * 10_000,
        )
        assert answer.events == inside.sum()
        assert len(answer.predictions) == len(answer.raw) == 5
        assert [each.layer for each in answer.firing_rates] == [
            "stages.0.neuron",
            "stages.1.neuron",
        ]
        assert answer.latency_seconds > 0
    assert (ended.ended.windows, ended.ended.events) == (10, len(events))
    await all_free()


async def test_state_is_kept_from_window_to_window(
    stub: SpikeServeStub, events: Events, packet: Packet
) -> None:
    # The same window twice: a network that forgot would say the same twice.
    first = events[events.t < 10_000]
    again = Events(first.t + 10_000, first.x, first.y, first.p)
    one, two = windows(await converse(stub, [OPEN, packet(first), packet(again), END]))
    assert [each.probability for each in one.raw] != [each.probability for each in two.raw]


async def test_how_a_recording_is_cut_into_packets_does_not_change_the_answers(
    stub: SpikeServeStub, events: Events, packet: Packet
) -> None:
    random = np.random.default_rng(1)
    cuts = [0, *sorted(random.integers(0, len(events), 20)), len(events)]
    parts = [packet(events[a:b], n + 1) for n, (a, b) in enumerate(pairwise(cuts))]
    whole = windows(await converse(stub, [OPEN, packet(events), END]))
    pieces = windows(await converse(stub, [OPEN, *parts, END]))
    assert len(whole) == len(pieces) == 10
    for one, other in zip(whole, pieces, strict=True):
        assert one.events == other.events
        assert one.predictions == other.predictions
        assert one.firing_rates == other.firing_rates


async def test_closing_the_sending_side_is_an_end_too(
    stub: SpikeServeStub, events: Events, packet: Packet
) -> None:
    answers = await converse(stub, [OPEN, packet(events)])
    assert answers[-1].ended.windows == 10


async def test_time_can_pass_without_events(
    stub: SpikeServeStub, packet: Packet, events: Events
) -> None:
    advance = pb.EventMessage(advance=pb.Advance(time_us=50_000))
    first = events[events.t < 10_000]
    answers = windows(await converse(stub, [OPEN, packet(first), advance, END]))
    assert [answer.events for answer in answers] == [len(first), 0, 0, 0, 0]
    assert answers[-1].firing_rates


async def test_events_outside_of_the_sensor_are_counted_and_dropped(
    stub: SpikeServeStub, events: Events, packet: Packet, all_free: Free
) -> None:
    x = events.x.copy()
    x[::5] = 34
    x[1::5] = 65_535
    outside = Events(events.t, x, events.y, events.p)
    answers = await converse(stub, [OPEN, packet(outside), END])
    assert sum(answer.events for answer in windows(answers)) == 3000
    assert windows(answers)[-1].drops.outside_events == 2000
    assert answers[-1].ended.drops.outside_events == 2000
    await all_free()


async def test_a_stream_with_nothing_inside_says_so_at_its_end(
    stub: SpikeServeStub, events: Events, packet: Packet
) -> None:
    elsewhere = Events(events.t, events.x + np.uint16(34), events.y, events.p)
    answers = await converse(stub, [OPEN, packet(elsewhere), END])
    assert [answer.WhichOneof("kind") for answer in answers] == ["opened", "ended"]
    assert answers[-1].ended.drops.outside_events == len(events)


async def test_late_events_are_counted_and_dropped(
    stub: SpikeServeStub, events: Events, packet: Packet
) -> None:
    late = events[events.t < 10_000]
    answers = await converse(stub, [OPEN, packet(events[events.t >= 20_000]), packet(late), END])
    assert answers[-1].ended.drops.late_events == len(late)


async def test_lost_and_repeated_packets_are_counted(
    stub: SpikeServeStub, events: Events, packet: Packet
) -> None:
    parts = [events[(events.t >= a) & (events.t < a + 10_000)] for a in range(0, 100_000, 10_000)]
    numbers = [1, 2, 2, 5, 4, 6]
    sent = [packet(part, number) for part, number in zip(parts, numbers, strict=False)]
    answers = await converse(stub, [OPEN, *sent, END])
    drops = answers[-1].ended.drops
    assert (drops.lost_packets, drops.repeated_packets) == (2, 2)
    assert windows(answers)[-1].sequence == 6
    assert answers[-1].ended.events == sum(len(parts[n]) for n in (0, 1, 3, 5))


async def test_rates_are_left_out_where_they_are_not_wanted(
    stub: SpikeServeStub, events: Events, packet: Packet
) -> None:
    opening = pb.EventMessage(open=pb.OpenStream(rates=False))
    assert not any(
        w.firing_rates for w in windows(await converse(stub, [opening, packet(events), END]))
    )


@pytest.mark.parametrize(
    ("messages", "code", "said"),
    [
        ([], "INVALID_ARGUMENT", "send `open` first"),
        ([END], "INVALID_ARGUMENT", "send `open` first"),
        ([pb.EventMessage()], "INVALID_ARGUMENT", "send `open` first"),
        ([OPEN, OPEN], "INVALID_ARGUMENT", "`open`"),
        ([OPEN, pb.EventMessage()], "INVALID_ARGUMENT", "empty"),
        ([pb.EventMessage(open=pb.OpenStream(model="nope"))], "NOT_FOUND", "'nope'"),
        (
            [pb.EventMessage(open=pb.OpenStream(model="pictures"))],
            "INVALID_ARGUMENT",
            "takes pictures",
        ),
        (
            [pb.EventMessage(open=pb.OpenStream(sensor_width=346, sensor_height=260))],
            "INVALID_ARGUMENT",
            "346 x 260",
        ),
        ([pb.EventMessage(open=pb.OpenStream(sensor_width=34))], "INVALID_ARGUMENT", "34 x 0"),
        (
            [pb.EventMessage(open=pb.OpenStream(lateness_us=2**64 - 1))],
            "INVALID_ARGUMENT",
            "lateness_us",
        ),
        ([pb.EventMessage(open=pb.OpenStream(start_us=-(2**63)))], "INVALID_ARGUMENT", "time"),
        (
            [pb.EventMessage(open=pb.OpenStream(encoding=77))],
            "INVALID_ARGUMENT",
            "ENCODING_COLUMNS_V1",
        ),
        (
            [OPEN, pb.EventMessage(events=pb.EventPacket(encoding=77))],
            "INVALID_ARGUMENT",
            "ENCODING_COLUMNS_V1",
        ),
        (
            [OPEN, pb.EventMessage(events=pb.EventPacket(payload=b"1234567"))],
            "INVALID_ARGUMENT",
            "8 bytes an event",
        ),
        (
            [OPEN, pb.EventMessage(events=pb.EventPacket(payload=bytes(8), base_us=2**63 - 1))],
            "INVALID_ARGUMENT",
            "time",
        ),
        (
            [OPEN, pb.EventMessage(events=pb.EventPacket(payload=bytes(8), base_us=2**62 + 1))],
            "INVALID_ARGUMENT",
            "",
        ),
        ([OPEN, pb.EventMessage(advance=pb.Advance(time_us=2**63 - 1))], "INVALID_ARGUMENT", ""),
    ],
)
async def test_a_bad_message_ends_its_stream_and_no_other(
    stub: SpikeServeStub,
    events: Events,
    packet: Packet,
    all_free: Free,
    messages: list[pb.EventMessage],
    code: str,
    said: str,
) -> None:
    other = stub.StreamEvents()
    await other.write(OPEN)
    assert (await other.read()).opened.model == "moves"
    error = await refusal(stub, *messages)
    assert error.code().name == code, error.details()
    assert said in error.details()
    await other.write(packet(events))
    await other.done_writing()
    assert len(await rest(other)) == 11
    await all_free()


async def test_a_message_that_is_not_protobuf_ends_its_stream(
    channel: grpc.aio.Channel, all_free: Free
) -> None:
    method = channel.stream_stream("/spikeserve.v1.SpikeServe/StreamEvents")
    for messages in ([b"\xff\xff"], [OPEN.SerializeToString(), b"\xff\xff"]):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [answer async for answer in method(iter(messages))]
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    await all_free()


async def test_a_packet_beyond_the_limit_is_refused(
    running, events: Events, packet: Packet
) -> None:
    async with running(max_message_bytes=8 * 1000) as server, connected(server) as stub:
        error = await refusal(stub, OPEN, packet(events[:1001]))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "8000" in error.details()
        assert (await converse(stub, [OPEN, packet(events[:1000])]))[-1].ended.events == 1000


async def test_a_cancelled_stream_gives_back_its_place(
    stub: SpikeServeStub, events: Events, packet: Packet, all_free: Free
) -> None:
    call = stub.StreamEvents()
    await call.write(OPEN)
    await call.write(packet(events))
    assert (await call.read()).opened.model == "moves"
    call.cancel()
    await all_free()


async def test_a_client_that_disconnects_gives_back_its_place(
    server: Server, events: Events, packet: Packet, all_free: Free
) -> None:
    async with connected(server) as stub:
        call = stub.StreamEvents()
        await call.write(OPEN)
        await call.write(packet(events))
        assert (await call.read()).opened.model == "moves"
    await all_free()


async def test_more_streams_than_slots_are_served_together(
    stub: SpikeServeStub, events: Events, packet: Packet, all_free: Free
) -> None:
    conversations = [converse(stub, [OPEN, packet(events), END]) for _ in range(9)]
    answers = await asyncio.gather(*conversations)
    first = windows(answers[0])
    for each in answers:
        assert [w.predictions for w in windows(each)] == [w.predictions for w in first]
    await all_free()


async def test_a_client_that_does_not_read_is_not_read_from(
    server: Server, stub: SpikeServeStub, events: Events, packet: Packet, all_free: Free
) -> None:
    ten_windows = Events(
        *(np.tile(column, 4) for column in (events.t, events.x, events.y, events.p))
    )

    def message(number: int) -> pb.EventMessage:
        later = Events(
            ten_windows.t + number * 100_000, ten_windows.x, ten_windows.y, ten_windows.p
        )
        return packet(later, number + 1)

    async def send_for_ever(call: grpc.aio.StreamStreamCall, sent: list[int]) -> None:
        await call.write(OPEN)
        for number in range(1000):
            await call.write(message(number))
            sent.append(number)

    # A fixed flow-control window: what the transport itself holds is then small.
    async with connected(server, **{"http2.bdp_probe": 0}) as slow_stub:
        call, sent = slow_stub.StreamEvents(), []
        sending = asyncio.create_task(send_for_ever(call, sent))
        await until_it_stops(sent)
        assert 0 < len(sent) < 900
        # Another one is not held up by it.
        assert (await converse(stub, [OPEN, packet(events), END]))[-1].ended.windows == 10
        # Once it reads, it goes on where it was.
        held_back = len(sent) * 10
        await call.read()
        indices = [(await call.read()).window.index for _ in range(held_back)]
        assert indices == list(range(held_back))
        sending.cancel()
    await all_free()


async def until_it_stops(sent: list[int]) -> None:
    before = -1
    while len(sent) > before or not sent:
        before = len(sent)
        await asyncio.sleep(2)


async def test_a_silent_client_is_given_up(running, events: Events, packet: Packet) -> None:
    async with running(stream_idle_seconds=0.3) as server, connected(server) as stub:
        for messages in ([], [OPEN], [OPEN, packet(events)]):
            call = stub.StreamEvents()
            for message in messages:
                await call.write(message)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async with asyncio.timeout(30):
                    _ = [answer async for answer in call]
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert "0.3 s" in caught.value.details()


async def test_streams_that_are_open_at_the_end_are_told(
    running, events: Events, packet: Packet
) -> None:
    async with running(drain_seconds=0.2) as server, connected(server) as stub:
        call = stub.StreamEvents()
        await call.write(OPEN)
        assert (await call.read()).opened.model == "moves"
        await server.stop()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "shutting down" in caught.value.details()
