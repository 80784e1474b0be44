"""Events from UDP: received, bounded, and streamed by the command line to a real server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from spikeserve.app import Server
from spikeserve.client import Advance
from spikeserve.client import udp as udp_module
from spikeserve.client.udp import UdpSource
from spiketrain.events import read_recording
from spiketrain.events.types import Events

LONG = 60


def words(events: Events, timed: bool = True) -> bytes:
    first = (events.x.astype(np.uint32) << 16) | (events.p.astype(np.uint32) << 15) | events.y
    if not timed:
        return (first | 0x80000000).astype("<u4").tobytes()
    return np.stack([first, events.t.astype(np.uint32)], axis=1).astype("<u4").tobytes()


def some_events(count: int = 60, start: int = 0) -> Events:
    random = np.random.default_rng(start)
    x, y = random.integers(0, 34, (2, count)).astype(np.uint16)
    t = start + np.sort(random.integers(0, 10_000, count))
    return Events(t, x, y, random.integers(0, 2, count).astype(np.uint8))


def send(port: int, *datagrams: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for each in datagrams:
            sender.sendto(each, ("127.0.0.1", port))


async def test_events_come_as_packets_and_garbage_is_counted() -> None:
    source = UdpSource(port=0)
    packets = aiter(source)
    parts = [some_events(start=10_000 * k) for k in range(5)]
    pending = asyncio.ensure_future(anext(packets))
    await asyncio.sleep(0)
    send(source.port, b"garbage", *map(words, parts), os.urandom(333))
    got = [await pending]
    async with asyncio.timeout(LONG):
        while sum(map(len, got)) < 300:
            got.append(await anext(packets))
    assert Events.concatenate(got).equals(Events.concatenate(parts))
    assert source.counts.datagrams >= 6
    assert source.counts.rejected >= 1
    await packets.aclose()


async def test_time_goes_on_in_silence_where_events_have_none_of_their_own() -> None:
    source = UdpSource(port=0)
    packets = aiter(source)
    pending = asyncio.ensure_future(anext(packets))
    await asyncio.sleep(0)
    send(source.port, words(some_events(), timed=False))
    async with asyncio.timeout(LONG):
        events = await pending
        advance = await anext(packets)
    assert isinstance(advance, Advance)
    assert advance.time_us > int(events.t.max())
    await packets.aclose()


async def test_what_nobody_takes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp_module, "MAX_WAITING_BYTES", 1500)
    counts = udp_module.UdpCounts()
    inbox = udp_module._Inbox(counts)
    for _ in range(10):
        inbox.datagram_received(words(some_events()), ("127.0.0.1", 1))
    assert (counts.datagrams, counts.dropped) == (10, 7)
    assert len(inbox.take()) == 3
    assert inbox.take() == []


def test_far_apart_times_become_messages_that_can_hold_them() -> None:
    events = Events(
        np.array([1 << 50, 0, 5]), *(np.zeros(3, np.uint16),) * 2, np.zeros(3, np.uint8)
    )
    parts = list(udp_module._messages(events))
    assert [part.t.tolist() for part in parts] == [[0, 5], [1 << 50]]


def test_an_address_that_is_taken_is_an_error() -> None:
    source = UdpSource(port=0)
    with pytest.raises(OSError, match=r"(?i)in use"):
        UdpSource(port=source.port)
    source.close()
    with pytest.raises(ValueError, match="spif"):
        UdpSource(port=0, layout="morse")


def test_the_command_line_streams_records_and_ends_with_a_summary(
    threaded_server: Server, tmp_path
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    record = tmp_path / "seen.raw"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "spikeserve",
            "stream",
            f"udp://127.0.0.1:{port}",
            "--json",
            "--server",
            f"127.0.0.1:{threaded_server.grpc_port}",
            "--record",
            str(record),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        lines: list[str] = []
        sent = 0
        # It is not known when it listens: what comes too early is lost, as with a camera.
        os.set_blocking(process.stdout.fileno(), False)
        until = time.monotonic() + LONG
        while len(lines) < 5 and time.monotonic() < until:
            send(port, b"garbage", words(some_events(start=10_000 * sent)))
            sent += 1
            lines += process.stdout.readlines()
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        os.set_blocking(process.stdout.fileno(), True)
        _output, errors = process.communicate(timeout=LONG)
    finally:
        process.kill()
    assert process.returncode == 0
    assert len(lines) >= 5
    assert {"index", "lag_seconds", "predictions"} <= json.loads(lines[0]).keys()
    assert "datagrams" in errors
    assert "not understood" in errors
    events = read_recording(record)
    assert len(events) % 60 == 0
    assert len(events) >= 300
    first = int(events.t[0]) // 10_000
    assert events[:60].equals(some_events(start=10_000 * first))
