"""Events in UDP datagrams: SPIF and AEStream's words, and Event Stream."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from spiketrain.events.datagrams import Datagram, DatagramDecoder
from spiketrain.events.formats import es
from spiketrain.events.types import Events

EVENTS = Events(
    np.array([5, 7, 7, 300]),
    np.array([1, 2, 3, 639], np.uint16),
    np.array([5, 6, 7, 479], np.uint16),
    np.array([1, 0, 1, 0], np.uint8),
)


def words(events: Events, timed: bool) -> bytes:
    first = (events.x.astype(np.uint32) << 16) | (events.p.astype(np.uint32) << 15) | events.y
    if not timed:
        return (first | 0x80000000).astype("<u4").tobytes()
    return np.stack([first, events.t.astype(np.uint32)], axis=1).astype("<u4").tobytes()


def event_stream(events: Events, base_us: int) -> bytes:
    return struct.pack("<Q", base_us) + es.encode(events, (640, 480))


def test_words_with_their_time_continue_over_the_wrap():
    decoder = DatagramDecoder()
    near = Events(EVENTS.t + (1 << 32) - 400, EVENTS.x, EVENTS.y, EVENTS.p)
    assert decoder.feed([Datagram(words(near, True), 9)]).equals(near)
    later = Events(near.t + 400, EVENTS.x, EVENTS.y, EVENTS.p)
    assert decoder.feed([Datagram(words(later, True), 9)]).equals(later)
    assert not decoder.timeless


def test_words_without_time_have_that_of_their_arrival():
    decoder = DatagramDecoder()
    got = decoder.feed([Datagram(words(EVENTS, False), 1000), Datagram(words(EVENTS, False), 2000)])
    assert got.t.tolist() == [1000] * 4 + [2000] * 4
    for name in ("x", "y", "p"):
        assert getattr(got, name).tolist() == 2 * getattr(EVENTS, name).tolist()
    assert decoder.timeless


def test_event_stream_counts_from_the_datagram_s_time():
    decoder = DatagramDecoder("event-stream")
    got = decoder.feed([Datagram(event_stream(EVENTS, 10**15), 0)])
    assert got.equals(Events(EVENTS.t + 10**15, EVENTS.x, EVENTS.y, EVENTS.p))


def test_the_author_s_own_receiver_reads_the_same_datagrams():
    pytest.importorskip("event_stream")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind(("127.0.0.1", 0))
        port = sender.getsockname()[1]
    # In a process of its own: it holds the interpreter's lock while it waits.
    program = f"""
        import event_stream
        decoder = event_stream.UdpDecoder({port})
        print("listens", flush=True)
        print([tuple(map(int, event)) for event in next(decoder)], flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "listens\n"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(event_stream(EVENTS, 1000), ("127.0.0.1", port))
        line = process.stdout.readline()
    finally:
        process.kill()
        process.wait()
    columns = zip(EVENTS.t + 1000, EVENTS.x, EVENTS.y, EVENTS.p, strict=True)
    assert line == f"{[tuple(map(int, each)) for each in columns]}\n"


@pytest.mark.parametrize("layout", ["spif", "event-stream"])
def test_garbage_is_counted_and_passed_over(layout):
    decoder = DatagramDecoder(layout)
    good = words(EVENTS, True) if layout == "spif" else event_stream(EVENTS, 0)
    bad = [
        b"",
        b"\1",
        good[:-1],
        os.urandom(511),
        words(EVENTS, False) + words(EVENTS, True),
        words(EVENTS, True)[:-4] if layout == "spif" else good[:23],
        b"\xff" * 30 if layout == "event-stream" else b"\1\2\3",
        struct.pack("<Q", 1 << 63) + good[8:] if layout == "event-stream" else b"12345",
    ]
    datagrams = [Datagram(good, 0), *(Datagram(each, 0) for each in bad), Datagram(good, 0)]
    got = decoder.feed(datagrams)
    assert decoder.rejected == len(bad)
    assert got.equals(Events.concatenate([EVENTS, EVENTS]))


def test_an_unknown_layout_is_refused():
    with pytest.raises(ValueError, match="spif, event-stream"):
        DatagramDecoder("morse")
