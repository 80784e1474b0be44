"""Clients that do not read, or say nothing, beside one that does: each meets its policy, and nobody else notices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from spikeserve.app import Server
from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spikeserve.grpc.v1.spikeserve_pb2_grpc import SpikeServeStub
from spiketrain.events.types import Events

Packet = Callable[..., pb.EventMessage]
END = pb.EventMessage(end=pb.EndOfStream())
MOVES = {"model": "moves", "version": "1"}
BOUND = 8
# Whose answers are more than the flow-control windows of a connection hold, with some 200 bytes each.
WINDOWS = 1500
WINDOW_US = 10_000


@asynccontextmanager
async def stub_of(server: Server) -> AsyncIterator[SpikeServeStub]:
    # A fixed flow-control window: what the transport itself holds is then small.
    options = [("http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}", options) as channel:
        yield SpikeServeStub(channel)


def opening(**fields: Any) -> pb.EventMessage:
    return pb.EventMessage(open=pb.OpenStream(**{"start_us": 0, "rates": True} | fields))


async def converse(stub: SpikeServeStub, *messages: pb.EventMessage) -> list[pb.EventAnswer]:
    return [answer async for answer in stub.StreamEvents(iter(messages))]


def many_windows(packet: Packet, **fields: Any) -> pb.EventMessage:
    """Closes all but the last."""
    zero = np.zeros(WINDOWS, np.uint16)
    return packet(
        Events(np.arange(WINDOWS) * WINDOW_US, zero, zero, zero.astype(np.uint8)), 1, **fields
    )


def advance(windows: int) -> pb.EventMessage:
    return pb.EventMessage(advance=pb.Advance(time_us=windows * WINDOW_US))


def value(server: Server, name: str, **labels: str) -> float:
    return server.metrics.registry.get_sample_value(f"spikeserve_{name}", labels) or 0.0


async def until(condition: Callable[[], object]) -> None:
    for _ in range(6000):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it never happened")


@pytest.fixture
async def strict(running: Any) -> AsyncIterator[Server]:
    async with running(max_waiting_answers=BOUND, slow_seconds=0) as server:
        yield server


async def test_a_client_that_never_reads_beside_one_that_does(
    strict: Server, events: Events, packet: Packet
) -> None:
    async with stub_of(strict) as slow, stub_of(strict) as good:
        whole = await converse(good, opening(), packet(events), END)
        call = slow.StreamEvents()
        await call.write(opening(slow=pb.SLOW_CLIENT_DROP_OLDEST))
        await call.write(many_windows(packet))
        for number in range(20):
            await call.write(advance(WINDOWS + number))
        await until(lambda: value(strict, "windows_total", **MOVES) >= 10 + WINDOWS + 19)
        assert value(strict, "stream_answers_dropped_total") > WINDOWS / 2
        again = await converse(good, opening(), packet(events), END)
        assert [a.window.predictions for a in again] == [a.window.predictions for a in whole]
        await call.write(END)
        answers = [answer async for answer in call]
    indices = [a.window.index for a in answers if a.WhichOneof("kind") == "window"]
    ended = answers[-1].ended
    # In order, each once; those that are missing are those that are counted.
    assert indices == sorted(set(indices))
    assert indices[-BOUND:] == list(range(WINDOWS + 19 - BOUND, WINDOWS + 19))
    assert WINDOWS + 19 - len(indices) == ended.drops.dropped_answers
    assert ended.windows == WINDOWS + 19


async def test_what_it_sends_is_refused_until_it_reads(strict: Server, packet: Packet) -> None:
    async with stub_of(strict) as stub:
        call = stub.StreamEvents()
        await call.write(opening(slow=pb.SLOW_CLIENT_REFUSE))
        await call.write(many_windows(packet))
        for number in range(5):
            await call.write(advance(WINDOWS + number))
        await until(lambda: value(strict, "stream_messages_refused_total") == 5)
        answers = [await call.read() for _ in range(1 + WINDOWS)]
        assert [a.window.index for a in answers[1:-1]] == list(range(WINDOWS - 1))
        refused = answers[-1].refused
        assert (refused.messages, refused.error_type) == (5, "over-quota")
        await call.write(END)
        last, ended, _ = [await call.read() for _ in range(3)]
        assert last.window.drops.refused_messages == ended.ended.drops.refused_messages == 5
        assert ended.ended.windows == WINDOWS


@pytest.mark.parametrize("store", [False, True])
async def test_its_connection_is_ended_and_its_stream_goes_on(
    running: Any, tmp_path: Path, packet: Packet, store: bool
) -> None:
    """At the same server, or at another one that has the same store."""
    settings = {"max_waiting_answers": BOUND, "slow_seconds": 0, "slow_clients": "close"}
    settings |= {"snapshots": str(tmp_path)} if store else {}
    async with running(**settings) as one, running(**settings) as two, stub_of(one) as stub:
        call = stub.StreamEvents()
        await call.write(opening(resumable=True))
        await call.write(many_windows(packet))
        await call.write(advance(WINDOWS))
        await until(lambda: value(one, "streams_ended_total", reason="slow") == 1)
        with pytest.raises(grpc.aio.AioRpcError, match="does not read") as caught:
            _ = [answer async for answer in call]
        told = dict(caught.value.trailing_metadata())
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert told["error-type"] == "over-quota"
        assert (told["last-sequence"], told["next-window"]) == ("1", str(WINDOWS - 1))
        await until(lambda: not one.streams.safekeeping._tasks)
        token = pb.OpenStream(resume_token=told["resume-token"], next_window=WINDOWS - 10)
        async with stub_of(two if store else one) as other:
            answers = await converse(other, pb.EventMessage(open=token), END)
    assert answers[0].opened.resumed
    assert [a.window.index for a in answers[1:-1]] == list(range(WINDOWS - 10, WINDOWS))
    assert answers[-1].ended.windows == WINDOWS


async def test_a_policy_that_the_server_does_not_allow(running: Any) -> None:
    async with running(slow_clients_allowed="") as server, stub_of(server) as stub:
        with pytest.raises(grpc.aio.AioRpcError, match="allows wait") as caught:
            await converse(stub, opening(slow=pb.SLOW_CLIENT_REFUSE))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError, match="slow: 77"):
            await converse(stub, opening(slow=77))


async def test_a_silent_client_s_stream_is_kept(
    running: Any, tmp_path: Path, events: Events, packet: Packet
) -> None:
    settings = {"snapshots": str(tmp_path), "max_parked_streams": 0}
    async with running(stream_idle_seconds=0.3, **settings) as one, running(**settings) as two:
        async with stub_of(one) as stub:
            call = stub.StreamEvents()
            await call.write(opening(resumable=True))
            await call.write(packet(events[events.t < 45_000], 1))
            with pytest.raises(grpc.aio.AioRpcError, match=r"nothing came for 0\.3 s") as caught:
                _ = [answer async for answer in call]
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert value(one, "streams_ended_total", reason="idle") == 1
        await until(lambda: not one.streams._open)
        token = dict(caught.value.trailing_metadata())["resume-token"]
        resume = pb.EventMessage(open=pb.OpenStream(resume_token=token, next_window=4))
        async with stub_of(two) as stub:
            rest = packet(events[events.t >= 45_000], 2)
            answers = await converse(stub, resume, rest, END)
    assert answers[0].opened.last_sequence == 1
    assert answers[-1].ended.events == len(events)
