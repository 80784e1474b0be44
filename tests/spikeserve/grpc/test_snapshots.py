"""Streams that go on at another server, from the store that both have."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from spikeserve.app import Server
from spikeserve.client import AsyncStreamClient, Window, Words, cut
from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spikeserve.grpc.v1.spikeserve_pb2_grpc import SpikeServeStub
from spiketrain.checkpoint import load_checkpoint, save_checkpoint
from spiketrain.events import wire
from spiketrain.events.types import Events
from spiketrain.manifest import DurationWindow
from spiketrain.stream_rules import (
    BackgroundActivity,
    DecisionRule,
    HotPixels,
    RateLimit,
    Refractory,
    VoteEvidence,
)

Packet = Callable[..., pb.EventMessage]
END = pb.EventMessage(end=pb.EndOfStream())
LONG = 30
TERMS = {
    "filters": [
        HotPixels(rate_hz=3000, period_us=5000, decay_us=20_000),
        Refractory(period_us=300),
        BackgroundActivity(support_us=8000),
        RateLimit(events_per_second=40_000),
    ],
    "decision": DecisionRule(margin=0.05, evidence=VoteEvidence(windows=5)),
    "window": DurationWindow(microseconds=2000),
    "force": True,
    "lateness_us": 500,
}


def facts(windows: list[Window]) -> list[tuple[object, ...]]:
    return [
        (w.index, w.start_us, w.end_us, w.events, w.predictions, w.raw, w.firing_rates, w.decision)
        for w in windows
    ]


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def opening(**fields: object) -> pb.EventMessage:
    return pb.EventMessage(open=pb.OpenStream(**{"start_us": 0, "resumable": True} | fields))


def stub_of(server: Server) -> tuple[grpc.aio.Channel, SpikeServeStub]:
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}")
    return channel, SpikeServeStub(channel)


async def until(condition: Callable[[], object]) -> None:
    for _ in range(LONG * 100):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it never happened")


def count(server: Server, outcome: str) -> float | None:
    return server.metrics.registry.get_sample_value(
        "spikeserve_snapshots_total", {"outcome": outcome}
    )


async def refusal(stub: SpikeServeStub, *messages: pb.EventMessage) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stub.StreamEvents(iter(messages)):
            pass
    return caught.value


async def begun(server: Server, first: pb.EventMessage, windows: int, **terms: Any) -> str:
    """A stream whose connection is broken after so many answers; its token."""
    channel, stub = stub_of(server)
    async with channel:
        call = stub.StreamEvents()
        await call.write(opening(**terms))
        await call.write(first)
        answers = aiter(call)
        token = (await anext(answers)).opened.resume_token
        for _ in range(windows):
            await anext(answers)
        call.cancel()
    return token


def resume(token: str, **fields: object) -> pb.EventMessage:
    return pb.EventMessage(open=pb.OpenStream(resume_token=token, **fields))


def evt2(events: Events) -> bytes:
    """EVT 2.0 words: a TIME_HIGH before each event."""
    words = np.empty((len(events), 2), "<u4")
    words[:, 0] = (8 << 28) | (events.t >> 6)
    words[:, 1] = (events.p.astype(np.uint32) << 28) | ((events.t & 63).astype(np.uint32) << 22)
    words[:, 1] |= (events.x.astype(np.uint32) << 11) | events.y
    return words.tobytes()


def evt3(events: Events) -> bytes:
    words = np.empty((len(events), 4), "<u2")
    words[:, 0] = (8 << 12) | (events.t >> 12)
    words[:, 1] = (6 << 12) | (events.t & 0xFFF)
    words[:, 2] = events.y
    words[:, 3] = (2 << 12) | (events.p.astype(np.uint16) << 11) | events.x
    return words.tobytes()


def packets_of(encoding: str, events: Events) -> list[Any]:
    if encoding == "columns":
        return list(cut(events, 2000))
    make, named = {"evt2": (evt2, wire.Encoding.EVT2), "evt3": (evt3, wire.Encoding.EVT3)}[encoding]
    data = make(events)
    return [Words(named, data[i : i + 1003]) for i in range(0, len(data), 1003)]


@pytest.mark.parametrize(
    ("terms", "encoding"),
    [({}, "columns"), (TERMS, "columns"), (TERMS, "evt2"), ({}, "evt3")],
    ids=["plain", "filtered", "evt2", "evt3"],
)
async def test_a_server_that_stops_hands_its_streams_over(
    running, tmp_path: Path, events: Events, terms, encoding
) -> None:
    """The client follows a name that leads to the next server; no answer is lost, changed or given twice."""
    packets = packets_of(encoding, events)
    async with running(
        snapshots=str(tmp_path), snapshot_interval_seconds=0, drain_seconds=20
    ) as one:
        async with AsyncStreamClient(f"127.0.0.1:{one.grpc_port}") as client:
            whole = [w async for w in client.stream(packets, start_us=0, **terms)]
        port = one.grpc_port
        half, stopped = len(whole) // 2, asyncio.Event()

        async def given() -> AsyncIterator[Any]:
            for i, packet in enumerate(packets):
                if i == len(packets) * 3 // 4:
                    await stopped.wait()
                yield packet

        windows = []
        async with AsyncStreamClient(f"127.0.0.1:{port}") as client:
            stream = client.stream(given(), start_us=0, **terms)
            async for window in stream:
                windows.append(window)
                if window.index == half:
                    break
            await one.stop()
            assert count(one, "saved") == 1
            async with running(
                snapshots=str(tmp_path), snapshot_interval_seconds=0, grpc_port=port
            ) as two:
                stopped.set()
                async with asyncio.timeout(LONG):
                    windows += [w async for w in stream]
                assert count(two, "resumed") == 1
    assert facts(windows) == facts(whole)
    assert stream.reconnects == 1
    assert stream.lost_windows == 0
    assert stream.ended is not None
    assert stream.ended.events == sum(w.events for w in whole)
    assert not names(tmp_path)


async def test_the_client_is_told_where_the_stream_is(
    running, tmp_path: Path, events: Events, packet: Packet
) -> None:
    async with running(
        snapshots=str(tmp_path), snapshot_interval_seconds=0, drain_seconds=20
    ) as server:
        channel, stub = stub_of(server)
        async with channel:
            call = stub.StreamEvents()
            await call.write(opening())
            await call.write(packet(events[events.t < 45_000], 7))
            answers = aiter(call)
            opened = (await anext(answers)).opened
            assert opened.resume_seconds == 600
            for _ in range(4):
                await anext(answers)
            stopping = asyncio.create_task(server.stop())
            with pytest.raises(grpc.aio.AioRpcError, match="another one") as caught:
                await anext(answers)
            await stopping
    told = dict(caught.value.trailing_metadata())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert told["resume-token"] == opened.resume_token
    assert (told["last-sequence"], told["next-window"]) == ("7", "4")
    # Its name does not give the token away.
    assert all(opened.resume_token not in name for name in names(tmp_path))


async def test_a_stream_whose_connection_broke_is_found_by_another_server_and_by_one_only(
    running, tmp_path: Path, events: Events, packet: Packet
) -> None:
    first, rest = packet(events[events.t < 45_000], 1), packet(events[events.t >= 45_000], 2)
    async with (
        running(snapshots=str(tmp_path), snapshot_interval_seconds=0) as one,
        running(snapshots=str(tmp_path), snapshot_interval_seconds=0) as two,
    ):
        (one_channel, one_stub), (two_channel, two_stub) = stub_of(one), stub_of(two)
        async with one_channel, two_channel:
            whole = [a async for a in one_stub.StreamEvents(iter([opening(), first, rest, END]))]
            token = await begun(one, first, 4)
            await until(lambda: count(one, "saved") == 1)
            # Another stream's terms, then the right ones; what was not confirmed comes again.
            error = await refusal(two_stub, resume(token, model="moves", lateness_us=7))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            call = two_stub.StreamEvents()
            for message in (resume(token, next_window=2), first, rest):
                await call.write(message)
            answers = aiter(call)
            opened = (await anext(answers)).opened
            assert (opened.resumed, opened.last_sequence) == (True, 1)
            windows = [(await anext(answers)).window for _ in range(7)]
            assert [w.index for w in windows] == list(range(2, 9))
            for mine, theirs in zip(windows, whole[3:10], strict=True):
                assert mine.predictions == theirs.window.predictions
            # The first server still has it in memory, but it is not its own any more.
            call.cancel()
            await until(lambda: count(two, "saved") == 1)
            back = [
                a async for a in one_stub.StreamEvents(iter([resume(token, next_window=9), END]))
            ]
            assert back[0].opened.last_sequence == 2
            assert back[-1].ended.windows == 10
            assert back[-1].ended.drops.repeated_packets == 1


async def test_giving_up_removes_the_snapshot(
    running, tmp_path: Path, events: Events, packet: Packet
) -> None:
    async with (
        running(snapshots=str(tmp_path), snapshot_interval_seconds=0) as one,
        running(snapshots=str(tmp_path), snapshot_interval_seconds=0) as two,
    ):
        token = await begun(one, packet(events, 1), 4)
        await until(lambda: count(one, "saved") == 1)
        channel, stub = stub_of(two)
        async with channel:
            assert [a async for a in stub.StreamEvents(iter([resume(token, give_up=True)]))] == []
            assert not names(tmp_path)
            error = await refusal(stub, resume(token))
        assert dict(error.trailing_metadata())["error-type"] == "unknown-stream"


async def test_memory_may_forget_what_the_store_has(
    running, tmp_path: Path, events: Events, packet: Packet
) -> None:
    async with running(
        snapshots=str(tmp_path), snapshot_interval_seconds=0, max_parked_streams=0
    ) as server:
        token = await begun(server, packet(events, 1), 4)
        await until(lambda: not server.streams._open)
        channel, stub = stub_of(server)
        async with channel:
            answers = [a async for a in stub.StreamEvents(iter([resume(token), END]))]
        assert answers[-1].ended.events == len(events)


def retrained(folder: Path, to: Path) -> Path:
    """The model for events with other weights, under the same name."""
    loaded = load_checkpoint(folder / "moves.safetensors")
    tensors = {name: tensor * 1.5 for name, tensor in loaded.tensors.items()}
    save_checkpoint(to / "moves.safetensors", loaded.manifest, tensors)
    return to / "moves.safetensors"


@pytest.mark.parametrize("change", ["byte", "cut", "model"])
async def test_what_cannot_be_used_is_refused(
    running, model_folder: Path, tmp_path: Path, events: Events, packet: Packet, change: str
) -> None:
    async with running(
        snapshots=str(tmp_path / "s"), snapshot_interval_seconds=0, max_parked_streams=0
    ) as one:
        token = await begun(one, packet(events, 1), 4)
        await until(lambda: not one.streams._open)
    (path,) = (tmp_path / "s").iterdir()
    data = bytearray(path.read_bytes())
    settings: dict[str, Any] = {}
    if change == "byte":
        data[len(data) // 2] ^= 4
    elif change == "cut":
        del data[100:]
    else:
        settings["models"] = retrained(model_folder, tmp_path)
    path.write_bytes(data)
    async with running(
        snapshots=str(tmp_path / "s"), snapshot_interval_seconds=0, **settings
    ) as two:
        channel, stub = stub_of(two)
        async with channel:
            error = await refusal(stub, resume(token))
        assert dict(error.trailing_metadata())["error-type"] == "unknown-stream"
        assert "cannot go on here" in str(error.details())
        assert not two.streams._open
        assert path.exists() is (change == "model")


async def test_a_store_that_fails_is_counted_and_the_stream_goes_on(
    running, tmp_path: Path, events: Events, packet: Packet
) -> None:
    async with running(snapshots=str(tmp_path / "s"), snapshot_interval_seconds=0) as server:
        (tmp_path / "s").rmdir()
        (tmp_path / "s").write_text("no folder any more")
        first, rest = packet(events[events.t < 45_000], 1), packet(events[events.t >= 45_000], 2)
        token = await begun(server, first, 4)
        await until(lambda: count(server, "failed"))
        channel, stub = stub_of(server)
        async with channel:
            again = [a async for a in stub.StreamEvents(iter([resume(token), rest, END]))]
            assert again[-1].ended.events == len(events)
            error = await refusal(stub, resume("never given out"))
        assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_stream_survives_a_server_that_is_killed(
    running, tmp_path: Path, events: Events
) -> None:
    """What a server writes while it has the stream is all that is left of it: the other one has a copy of the folder at a moment."""
    one_folder, two_folder = tmp_path / "one", tmp_path / "two"
    packets = list(cut(events, 2000))
    settings = {"snapshot_interval_seconds": 0.001}
    async with running(snapshots=str(one_folder), **settings) as one:
        async with AsyncStreamClient(f"127.0.0.1:{one.grpc_port}") as client:
            whole = [w async for w in client.stream(packets, start_us=0)]
        await until(lambda: not names(one_folder))
        go_on = asyncio.Event()

        async def given() -> AsyncIterator[Events]:
            for i, packet in enumerate(packets):
                if i == len(packets) * 3 // 4:
                    await go_on.wait()
                yield packet

        port, windows = one.grpc_port, []
        async with AsyncStreamClient(f"127.0.0.1:{port}") as client:
            stream = client.stream(given(), start_us=0)
            async for window in stream:
                windows.append(window)
                if window.index == 5:
                    # At least as new as what the client was told of, which sends again only what came since.
                    shutil.copytree(one_folder, two_folder)
                    break
            assert len(names(two_folder)) == 1
            # It is cut off without a word, and what it knows is nobody's.
            await one._rpc.stop(None)
            async with running(snapshots=str(two_folder), grpc_port=port, **settings) as two:
                go_on.set()
                async with asyncio.timeout(LONG):
                    windows += [w async for w in stream]
                assert count(two, "resumed") == 1
    assert facts(windows) == facts(whole)
    assert stream.lost_windows == 0
    assert stream.ended is not None
    assert stream.ended.events == len(events)
    assert not stream.ended.drops.lost_packets


async def test_a_stream_that_ended_leaves_nothing_in_the_store(
    running, tmp_path: Path, events: Events, packet: Packet
) -> None:
    async with running(snapshots=str(tmp_path), resume_seconds=0.05) as server:
        channel, stub = stub_of(server)
        async with channel:
            answers = [
                a async for a in stub.StreamEvents(iter([opening(), packet(events, 1), END]))
            ]
            assert answers[0].opened.saves
            assert answers[-1].ended.events == len(events)
            bad = pb.EventMessage(events=pb.EventPacket(sequence=1, payload=b"123"))
            assert (await refusal(stub, opening(), bad)).code() is grpc.StatusCode.INVALID_ARGUMENT
        await until(lambda: not names(tmp_path))
        assert count(server, "saved") == 2
