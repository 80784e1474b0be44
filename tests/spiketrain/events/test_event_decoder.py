"""A camera's words in messages: whatever the cuts, the events are those of the whole; clocks that wrap; lost messages."""

from __future__ import annotations

import struct
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spiketrain.events import Events
from spiketrain.events.wire import Decoder, Encoding, TooManyEventsError, encode

Row = tuple[int, int, int, int]


def events_of(rows: list[Row]) -> Events:
    t, x, y, p = np.array(rows, np.int64).reshape(-1, 4).T
    return Events(t.copy(), x.astype(np.uint16), y.astype(np.uint16), p.astype(np.uint8))


def evt2(events: Events) -> bytes:
    """Word by word, with a TIME_HIGH before each event."""
    words = []
    for t, x, y, p in zip(events.t, events.x, events.y, events.p, strict=True):
        t = int(t) % (1 << 34)
        words += [8 << 28 | t >> 6, int(p) << 28 | (t & 63) << 22 | int(x) << 11 | int(y)]
    return struct.pack(f"<{len(words)}I", *words)


def evt3(events: Events) -> bytes:
    words = []
    for t, x, y, p in zip(events.t, events.x, events.y, events.p, strict=True):
        t = int(t) % (1 << 24)
        words += [8 << 12 | t >> 12, 6 << 12 | t & 0xFFF, int(y), 2 << 12 | int(p) << 11 | int(x)]
    return struct.pack(f"<{len(words)}H", *words)


def aedat3(events: Events) -> bytes:
    words = []
    for t, x, y, p in zip(events.t, events.x, events.y, events.p, strict=True):
        words += [int(x) << 17 | int(y) << 2 | int(p) << 1 | 1, int(t) % (1 << 31)]
    return struct.pack(f"<{len(words)}I", *words)


CAMERAS = {
    Encoding.EVT2: (evt2, 1 << 34, 8),
    Encoding.EVT3: (evt3, 1 << 24, 8),
    Encoding.AEDAT3_WORDS: (aedat3, 1 << 31, 8),
}
each_camera = pytest.mark.parametrize("encoding", CAMERAS, ids=str)


def recording(count: int, span_us: int, start_us: int, seed: int = 0) -> Events:
    random = np.random.default_rng(seed)
    return Events(
        start_us + np.sort(random.integers(0, span_us, count)),
        random.integers(0, 1280, count).astype(np.uint16),
        random.integers(0, 720, count).astype(np.uint16),
        random.integers(0, 2, count).astype(np.uint8),
    )


@each_camera
@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.floats(0, 1), max_size=30), seed=st.integers(0, 1000))
def test_messages_may_be_cut_anywhere_and_clocks_wrap(encoding, cuts, seed):
    write, wrap, _ = CAMERAS[encoding]
    events = recording(60, 5_000_000, wrap - 3_000_000, seed)
    data = write(events)
    decoder = Decoder()
    ends = [0, *sorted(int(cut * len(data)) for cut in cuts), len(data)]
    parts = [decoder.feed(encoding, data[a:b]) for a, b in pairwise(ends)]
    assert Events.concatenate(parts).equals(events)


@each_camera
def test_many_wraps_are_counted(encoding):
    write, wrap, _ = CAMERAS[encoding]
    events = events_of([(n * wrap // 3, n, 0, 1) for n in range(20)])
    decoder = Decoder()
    parts = [decoder.feed(encoding, write(events[n : n + 1])) for n in range(20)]
    assert Events.concatenate(parts).equals(events)


@each_camera
def test_the_base_time_is_added(encoding):
    write = CAMERAS[encoding][0]
    events = recording(10, 1000, 5000)
    late = Decoder().feed(encoding, write(events), base_us=1 << 50)
    assert np.array_equal(late.t, events.t + (1 << 50))
    with pytest.raises(ValueError, match="leaves no room"):
        Decoder().feed(encoding, write(events), base_us=1 << 62)


@each_camera
def test_after_a_loss_no_event_is_wrong_and_time_goes_on(encoding):
    write, wrap, size = CAMERAS[encoding]
    events = recording(40, 4_000_000, 3 * wrap - 2_000_000)
    # Three wraps are not to be seen in the first event; they are known from the messages before.
    before = events_of([(n * wrap // 3, 1, 1, 1) for n in range(9)])
    decoder = Decoder()
    decoder.feed(encoding, write(before))
    data = write(events)
    decoder.feed(encoding, data[: size * 10 + 3])
    decoder.lost()
    # The lost part ends within an event: what is left of that is not taken for something else.
    rest = decoder.feed(encoding, data[size * 20 :])
    assert rest.equals(events[20:])


@pytest.mark.parametrize("encoding", [Encoding.EVT2, Encoding.EVT3], ids=str)
def test_words_without_a_known_time_are_left_out(encoding):
    data = CAMERAS[encoding][0](events_of([(100, 1, 2, 1), (200, 3, 4, 0)]))
    assert Decoder().feed(encoding, data[4:]).t.tolist() == [200]


def test_two_decoders_share_nothing_and_encodings_may_be_mixed():
    events = recording(10, 1000, 0)
    one, other = Decoder(), Decoder()
    half = one.feed(Encoding.EVT3, evt3(events)[:37])
    assert other.feed(Encoding.EVT3, evt3(events)).equals(events)
    payload, base_us = encode(Encoding.COLUMNS_V1, events)
    assert one.feed(Encoding.COLUMNS_V1, payload, base_us).equals(events)
    rest = one.feed(Encoding.EVT3, evt3(events)[37:])
    assert Events.concatenate([half, rest]).equals(events)


@each_camera
def test_nothing_in_nothing_out(encoding):
    assert Decoder().feed(encoding, b"").equals(Events.empty())


def test_more_events_than_allowed_are_refused_before_they_take_memory():
    vectors = (
        struct.pack("<4H", 8 << 12, 6 << 12, 5, 3 << 12)
        + struct.pack("<H", 4 << 12 | 0xFFF) * 10**6
    )
    with pytest.raises(TooManyEventsError, match="more than 1000 events"):
        Decoder().feed(Encoding.EVT3, vectors, max_events=1000)
    with pytest.raises(TooManyEventsError):
        Decoder().feed(Encoding.COLUMNS_V1, bytes(8 * 11), max_events=10)
    assert len(Decoder().feed(Encoding.COLUMNS_V1, bytes(8 * 10), max_events=10)) == 10


@each_camera
@given(data=st.binary(max_size=400))
def test_garbage_is_no_crash(encoding, data):
    events = Decoder().feed(encoding, data)
    assert len(events) <= 6 * len(data)


def test_wrong_encodings_are_named():
    with pytest.raises(ValueError, match="unknown event encoding 'evt9'"):
        Decoder().feed("evt9", b"", 0)
    with pytest.raises(ValueError, match="is what cameras write"):
        encode(Encoding.EVT3, recording(1, 1, 0))
    with pytest.raises(ValueError, match="3 bytes too many"):
        Decoder().feed(Encoding.COLUMNS_V1, bytes(11))
