"""The wire: bytes by hand, there and back, and payloads that are refused."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiketrain.events import Events
from spiketrain.events.wire import Encoding, decode, encode

V1 = Encoding.COLUMNS_V1


def events_of(rows: list[tuple[int, int, int, int]]) -> Events:
    t, x, y, p = zip(*rows, strict=True)
    return Events(
        np.array(t, np.int64), np.array(x, np.uint16), np.array(y, np.uint16), np.array(p, np.uint8)
    )


def test_columns_by_hand():
    payload = struct.pack("<2I2H2H", 7, 0xFFFFFFFF, 3, 65535, 5 | 0x8000, 0x7FFF)
    events = decode(V1, payload, base_us=-10)
    assert events.equals(events_of([(-3, 3, 5, 1), (0xFFFFFFFF - 10, 65535, 0x7FFF, 0)]))
    assert decode(V1, b"", 5).equals(Events.empty())


rows = st.tuples(
    st.integers(0, 2**32 - 1), st.integers(0, 65535), st.integers(0, 32767), st.integers(0, 1)
)


@given(rows=st.lists(rows, min_size=1), base=st.integers(-(2**60), 2**60))
def test_there_and_back(rows, base):
    events = events_of([(t + base, x, y, p) for t, x, y, p in rows])
    payload, base_us = encode(V1, events)
    assert len(payload) == 8 * len(events)
    assert base_us == events.t.min()
    assert decode(V1, payload, base_us).equals(events)
    assert decode(Encoding(str(V1)), payload, base_us).equals(events)


def test_no_events_are_an_empty_payload():
    assert encode(V1, Events.empty()) == (b"", 0)


@pytest.mark.parametrize("length", [1, 7, 9, 12, 8001])
def test_a_payload_of_a_wrong_length_is_refused(length):
    with pytest.raises(ValueError, match=f"this one has {length}"):
        decode(V1, bytes(length), 0)


@pytest.mark.parametrize("base_us", [2**63 - 1, 2**63, -(2**63), 2**80])
def test_a_base_time_that_would_overflow_is_refused(base_us):
    with pytest.raises(ValueError, match="leaves no room"):
        decode(V1, bytes(8), base_us)


def test_events_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="send several"):
        encode(V1, events_of([(0, 0, 0, 0), (2**32, 0, 0, 0)]))
    with pytest.raises(ValueError, match="y 32768"):
        encode(V1, events_of([(0, 0, 32768, 0)]))


def test_an_unknown_encoding_is_refused():
    with pytest.raises(ValueError, match="unknown event encoding 'evt9'"):
        decode("evt9", b"", 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown event encoding 'evt9'"):
        encode("evt9", Events.empty())  # type: ignore[arg-type]
