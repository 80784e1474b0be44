"""Streams whose connection breaks: what the server keeps, for whom, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc
import numpy as np
import pytest

from spikeserve.app import Server
from spikeserve.client import (
    AsyncStreamClient,
    ServerError,
    StreamClient,
    UnreachableError,
    Window,
    Words,
    cut,
)
from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spikeserve.grpc.v1.spikeserve_pb2_grpc import SpikeServeStub
from spiketrain.events import wire
from spiketrain.events.types import Events
from spiketrain.manifest import DurationWindow
from spiketrain.stream_rules import BackgroundActivity, DecisionRule, Refractory

Packet = Callable[..., pb.EventMessage]
END = pb.EventMessage(end=pb.EndOfStream())
LONG = 30


class Proxy:
    """Passes bytes on to a server, until it is told to break all connections."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        self.cut()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._to)
        self._writers |= {writer, to_writer}
        await asyncio.gather(self._pipe(reader, to_writer), self._pipe(to_reader, writer))

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.transport.abort()


@pytest.fixture
async def proxy(server: Server) -> AsyncIterator[Proxy]:
    async with Proxy(server.grpc_port) as proxy:
        yield proxy


def facts(windows: list[Window]) -> list[tuple[object, ...]]:
    """What must not depend on whether the connection broke."""
    return [
        (w.index, w.start_us, w.end_us, w.events, w.predictions, w.raw, w.firing_rates, w.decision)
        for w in windows
    ]


def opening(**fields: object) -> pb.EventMessage:
    return pb.EventMessage(open=pb.OpenStream(**{"start_us": 0, "resumable": True} | fields))


async def refusal(stub: SpikeServeStub, *messages: pb.EventMessage) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stub.StreamEvents(iter(messages)):
            pass
    return caught.value


async def until(condition: Callable[[], object]) -> None:
    for _ in range(LONG * 100):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it never happened")


TERMS = {
    "filters": [Refractory(period_us=300), BackgroundActivity(support_us=8000)],
    "decision": DecisionRule(margin=0.05),
    "window": DurationWindow(microseconds=2000),
    "force": True,
    "lateness_us": 500,
}


@pytest.mark.parametrize("terms", [{}, TERMS], ids=["plain", "filtered"])
async def test_a_broken_connection_changes_no_answer(
    server: Server, proxy: Proxy, events: Events, terms
) -> None:
    async with AsyncStreamClient(f"127.0.0.1:{server.grpc_port}") as client:
        whole = [w async for w in client.stream(cut(events, 2000), start_us=0, **terms)]
    windows = []
    async with AsyncStreamClient(f"127.0.0.1:{proxy.port}") as client:
        stream = client.stream(cut(events, 2000), start_us=0, **terms)
        async for window in stream:
            windows.append(window)
            if window.index in (0, 3, 4):
                proxy.cut()
    assert facts(windows) == facts(whole)
    assert 1 <= stream.reconnects <= 3
    assert stream.lost_windows == 0
    assert stream.ended is not None
    assert stream.ended.events == sum(w.events for w in whole)
    assert not stream.ended.drops.lost_packets


async def test_the_plain_client_comes_back_too(
    server: Server, proxy: Proxy, events: Events
) -> None:
    loop = asyncio.get_running_loop()

    def follow(port: int, breaks: tuple[int, ...]) -> tuple[list[Window], int]:
        with StreamClient(f"127.0.0.1:{port}") as client:
            stream = client.stream(cut(events, 2000), start_us=0)
            windows = []
            for window in stream:
                windows.append(window)
                if window.index in breaks:
                    loop.call_soon_threadsafe(proxy.cut)
            return windows, stream.reconnects

    whole, none = await asyncio.to_thread(follow, server.grpc_port, ())
    windows, some = await asyncio.to_thread(follow, proxy.port, (1, 5))
    assert facts(windows) == facts(whole)
    assert (none, 1 <= some <= 2) == (0, True)


async def test_words_cut_anywhere_survive_it(server: Server, proxy: Proxy, events: Events) -> None:
    words = np.empty((len(events), 2), "<u4")
    words[:, 0] = (events.x.astype(np.uint32) << 17) | (events.y.astype(np.uint32) << 2)
    words[:, 0] |= (events.p.astype(np.uint32) << 1) | 1
    words[:, 1] = events.t
    data = words.tobytes()
    packets = [
        Words(wire.Encoding.AEDAT3_WORDS, data[i : i + 1003]) for i in range(0, len(data), 1003)
    ]
    async with AsyncStreamClient(f"127.0.0.1:{server.grpc_port}") as client:
        columns = [w async for w in client.stream(cut(events), start_us=0)]
    windows = []
    async with AsyncStreamClient(f"127.0.0.1:{proxy.port}") as client:
        stream = client.stream(packets, start_us=0)
        async for window in stream:
            windows.append(window)
            if window.index == 4:
                proxy.cut()
    assert facts(windows) == facts(columns)


async def test_a_server_that_stays_away_is_given_up(proxy: Proxy, events: Events) -> None:
    async with AsyncStreamClient(f"127.0.0.1:{proxy.port}", reconnect_seconds=0.3) as client:
        stream = client.stream(cut(events, 2000), start_us=0)
        await anext(stream)
        await proxy.__aexit__()
        with pytest.raises(UnreachableError, match=str(proxy.port)):
            async for _ in stream:
                pass


async def test_without_reconnecting_nothing_is_kept(
    server: Server, proxy: Proxy, events: Events, all_free
) -> None:
    async with AsyncStreamClient(f"127.0.0.1:{proxy.port}", reconnect_seconds=0) as client:
        stream = client.stream(cut(events, 2000), start_us=0)
        await anext(stream)
        proxy.cut()
        with pytest.raises(UnreachableError):
            async for _ in stream:
                pass
    await all_free()


async def test_what_was_not_acknowledged_comes_again_and_repeats_are_ignored(
    server: Server, stub: SpikeServeStub, events: Events, packet: Packet
) -> None:
    first = packet(events[events.t < 45_000], 1)
    call = stub.StreamEvents(iter([opening(), first]))
    answers = aiter(call)
    opened = (await anext(answers)).opened
    assert opened.resume_seconds == 30
    seen = [(await anext(answers)).window for _ in range(4)]
    call.cancel()
    again = stub.StreamEvents(
        iter(
            [
                pb.EventMessage(
                    open=pb.OpenStream(resume_token=opened.resume_token, next_window=2)
                ),
                first,
                packet(events[events.t >= 45_000], 2),
                END,
            ]
        )
    )
    resumed, *rest = [answer async for answer in again]
    assert (resumed.opened.resumed, resumed.opened.last_sequence) == (True, 1)
    assert resumed.opened.next_window == 2
    windows = [answer.window for answer in rest[:-1]]
    assert windows[:2] == seen[2:]
    assert [w.index for w in windows] == list(range(2, 10))
    assert rest[-1].ended.drops.repeated_packets == 1
    assert rest[-1].ended.events == len(events)


async def test_an_end_that_did_not_arrive_is_told_again(
    server: Server, stub: SpikeServeStub, events: Events, packet: Packet
) -> None:
    whole = [a async for a in stub.StreamEvents(iter([opening(), packet(events, 1), END]))]
    token = whole[0].opened.resume_token
    resume = pb.EventMessage(open=pb.OpenStream(resume_token=token, next_window=7))
    again = [a async for a in stub.StreamEvents(iter([resume]))]
    assert again[1:] == whole[8:]
    assert again[-1].ended.windows == 10


async def test_acknowledged_answers_are_let_go(
    server: Server, stub: SpikeServeStub, events: Events, packet: Packet
) -> None:
    call = stub.StreamEvents()
    await call.write(opening())
    await call.write(packet(events[events.t < 50_000], 1))
    answers = aiter(call)
    token = (await anext(answers)).opened.resume_token
    for _ in range(4):
        await anext(answers)
    advance = pb.EventMessage(advance=pb.Advance(time_us=50_000), next_window=4)
    await call.write(advance)
    await anext(answers)
    session = server.streams.parking.find(token)
    assert session.answers_from(0)[1][0].index == 4
    call.cancel()


async def test_too_many_unseen_answers_are_not_kept(
    running, events: Events, packet: Packet
) -> None:
    async with (
        running(max_kept_answers=2) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        stub = SpikeServeStub(channel)
        parts = [packet(events[(events.t >= a) & (events.t < a + 10_000)], 1 + a // 10_000)
                 for a in range(0, 100_000, 10_000)]  # fmt: skip
        whole = [a async for a in stub.StreamEvents(iter([opening(), *parts, END]))]
        token = whole[0].opened.resume_token
        resume = pb.EventMessage(open=pb.OpenStream(resume_token=token))
        again = [a async for a in stub.StreamEvents(iter([resume]))]
    assert again[0].opened.next_window == 7
    assert [a.window.index for a in again[1:-1]] == [7, 8, 9]


async def test_a_live_connection_is_taken_over(
    server: Server, stub: SpikeServeStub, events: Events, packet: Packet
) -> None:
    old = stub.StreamEvents()
    await old.write(opening())
    token = (await anext(aiter(old))).opened.resume_token
    resume = pb.EventMessage(open=pb.OpenStream(resume_token=token))
    new = [a async for a in stub.StreamEvents(iter([resume, packet(events, 1), END]))]
    assert new[-1].ended.events == len(events)
    with pytest.raises(grpc.aio.AioRpcError, match="resumed by another connection") as caught:
        await old.read()
    assert caught.value.code() is grpc.StatusCode.CANCELLED


@pytest.mark.parametrize(
    ("fields", "slug"),
    [
        ({"resume_token": "never given out"}, "unknown-stream"),
        ({"resume_token": "é" * 10_000}, "unknown-stream"),
        ({"resume_token": "TOKEN", "model": "pictures"}, "impossible-request"),
        ({"resume_token": "TOKEN", "model": "moves", "lateness_us": 7}, "impossible-request"),
        ({"give_up": True}, "unknown-stream"),
    ],
)
async def test_tokens_that_lead_nowhere(
    server: Server, stub: SpikeServeStub, events: Events, packet: Packet, fields, slug
) -> None:
    call = stub.StreamEvents()
    await call.write(opening(model="moves"))
    token = (await anext(aiter(call))).opened.resume_token
    fields = {name: token if value == "TOKEN" else value for name, value in fields.items()}
    error = await refusal(stub, opening(**fields))
    assert dict(error.trailing_metadata())["error-type"] == slug
    # The stream itself does not notice.
    await call.write(packet(events, 1))
    await call.write(END)
    assert [a async for a in call][-1].ended.events == len(events)


async def test_a_stream_waits_for_a_bounded_time(running, events: Events, packet: Packet) -> None:
    async with (
        running(resume_seconds=0.1) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        stub = SpikeServeStub(channel)
        call = stub.StreamEvents(iter([opening(), packet(events, 1)]))
        token = (await anext(aiter(call))).opened.resume_token
        call.cancel()
        await until(lambda: not server.streams.parking._known)
        assert not server.streams._open
        error = await refusal(stub, pb.EventMessage(open=pb.OpenStream(resume_token=token)))
        assert "0.1 s" in error.details()


async def test_a_bounded_number_waits_and_gives_way_to_those_that_are_here(
    running, events: Events, packet: Packet
) -> None:
    async with (
        running(max_parked_streams=2, max_streams=3) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        stub = SpikeServeStub(channel)
        tokens = []
        for k in range(3):
            call = stub.StreamEvents()
            await call.write(opening())
            tokens.append((await anext(aiter(call))).opened.resume_token)
            call.cancel()
            await until(lambda k=k: len(server.streams.parking) == min(k + 1, 2))
        waiting = server.streams.parking
        await until(lambda: list(waiting._waiting) == tokens[1:])
        calls = []
        for _ in range(3):
            calls.append(stub.StreamEvents())
            await calls[-1].write(opening())
            assert (await anext(aiter(calls[-1]))).opened.model == "moves"
        assert len(waiting) == 0
        assert len(server.streams._open) == 3
        assert (await refusal(stub, opening())).code() is grpc.StatusCode.UNAVAILABLE
        for call in calls:
            call.cancel()


async def test_a_client_that_gives_up_frees_everything(
    server: Server, events: Events, all_free
) -> None:
    async with AsyncStreamClient(f"127.0.0.1:{server.grpc_port}") as client:
        stream = client.stream(cut(events, 2000), start_us=0)
        await anext(stream)
        stream.cancel()
    await all_free()
    assert not server.streams.parking._known


async def test_a_bad_packet_ends_a_resumable_stream_for_good(
    server: Server, stub: SpikeServeStub
) -> None:
    bad = pb.EventMessage(events=pb.EventPacket(sequence=1, payload=b"123"))
    call = stub.StreamEvents(iter([opening(), bad]))
    answers = aiter(call)
    token = (await anext(answers)).opened.resume_token
    with pytest.raises(grpc.aio.AioRpcError, match="bytes"):
        await anext(answers)
    error = await refusal(stub, pb.EventMessage(open=pb.OpenStream(resume_token=token)))
    assert dict(error.trailing_metadata())["error-type"] == "unknown-stream"


async def test_the_server_s_own_refusal_is_not_tried_again(server: Server, events: Events) -> None:
    async with AsyncStreamClient(f"127.0.0.1:{server.grpc_port}") as client:
        with pytest.raises(ServerError, match="takes pictures"):
            async for _ in client.stream(cut(events), model="pictures"):
                pass
