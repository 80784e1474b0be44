"""EVT 3.0: what the words mean, cut anywhere, with numba, with the package evt3, and with neither."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spiketrain.events import Events, native
from spiketrain.events.formats import evt3_native
from spiketrain.events.formats.evt3 import Evt3Decoder


@pytest.fixture(scope="module", params=["compiled", "plain"], autouse=True)
def loops(request):
    """With a compiled loop, and with NumPy and the package evt3."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "plain":
            patch.setenv("SPIKETRAIN_KERNELS", "plain")
        elif native.loops() is None:
            pytest.skip("numba is not installed")
        yield


def high(value: int) -> int:
    return 0x8000 | value


def low(value: int) -> int:
    return 0x6000 | value


def x_word(x: int, p: int = 0) -> int:
    return 0x2000 | p << 11 | x


def base(x: int, p: int = 0) -> int:
    return 0x3000 | p << 11 | x


def decode(*words: int) -> list[tuple[int, int, int, int]]:
    return rows(Evt3Decoder().feed(np.array(words, "<u2").tobytes()))


def rows(events: Events) -> list[tuple[int, int, int, int]]:
    return list(zip(*(getattr(events, name).tolist() for name in "txyp"), strict=True))


def by_hand(words: list[int]) -> list[tuple[int, int, int, int]]:
    """Word by word, as the format's documentation says."""
    found = []
    upper = lower = y = x = p = None
    wraps = 0
    for word in words:
        kind, value = word >> 12, word & 0xFFF
        if kind == 8:
            if upper is not None:
                wraps += (value - upper < -2048) - (value - upper > 2048)
            lower = lower if upper == value else 0
            upper = value
        elif kind == 6:
            lower = value
        elif kind == 0:
            y = value & 0x7FF
        elif kind == 2:
            found.append((upper, lower, wraps, value & 0x7FF, y, value >> 11))
        elif kind == 3:
            x, p = value & 0x7FF, value >> 11
        elif kind in (4, 5) and x is not None:
            size = 12 if kind == 4 else 8
            found += [
                (upper, lower, wraps, x + bit, y, p) for bit in range(size) if value >> bit & 1
            ]
            x += size
    return [
        ((wraps << 24) + (upper << 12) + lower, x, y, p)
        for upper, lower, wraps, x, y, p in found
        if upper is not None and y is not None and x <= 2047
    ]


def test_words_by_hand():
    assert decode(high(5), low(7), 3, x_word(4, 1), x_word(9)) == [
        (5 * 4096 + 7, 4, 3, 1),
        (5 * 4096 + 7, 9, 3, 0),
    ]
    assert decode(high(0), low(0), 7, base(10, 1), 0x4001, 0x4802, 0x5F81, x_word(99), 0x4001) == [
        (0, 10, 7, 1),
        (0, 23, 7, 1),
        (0, 33, 7, 1),
        (0, 34, 7, 1),
        (0, 41, 7, 1),
        (0, 99, 7, 0),
        (0, 42, 7, 1),
    ]


def test_what_is_not_known_yet_is_left_out():
    assert decode(low(5), 3, x_word(4)) == []
    assert decode(high(1), x_word(4), 3, x_word(5)) == [(4096, 5, 3, 0)]
    assert decode(high(1), 3, 0x4FFF, base(1), 0x4001) == [(4096, 1, 3, 0)]


def test_a_vector_beyond_the_last_pixel_is_left_out():
    assert [x for _, x, _, _ in decode(high(0), 0, base(2040), 0x4FFF, 0x4FFF)] == list(
        range(2040, 2048)
    )


def test_new_upper_bits_clear_the_lower_ones_and_repeated_ones_do_not():
    words = (high(5), low(100), 3, x_word(1), high(5), x_word(2), high(6), x_word(3))
    assert [t for t, *_ in decode(*words)] == [5 * 4096 + 100, 5 * 4096 + 100, 6 * 4096]


def test_the_clock_runs_on_across_wraps_and_back_over_one():
    words = [3]
    for value in (4095, 0, 4095, 0, 2048, 4095, 1):
        words += [high(value), low(0), x_word(1)]
    assert [t >> 12 for t, *_ in decode(*words)] == [4095, 4096, 4095, 4096, 6144, 8191, 8193]


def test_other_words_are_passed_over():
    words = (high(0), 3, 0x1003, x_word(1), 0x7001, 0xA001, 0xE001, 0xF001, 0x9000, x_word(2))
    assert [x for _, x, _, _ in decode(*words)] == [1, 2]


streams = st.lists(
    st.one_of(
        st.builds(high, st.integers(0, 4095)),
        st.builds(high, st.integers(0, 3)),
        st.builds(low, st.integers(0, 4095)),
        st.integers(0, 0x7FF),
        st.integers(0x2000, 0x5FFF),
        st.integers(0, 0xFFFF),
    ),
    max_size=60,
)
SANE = [high(1), low(2), 3, base(4)]


@settings(deadline=None, max_examples=200)
@given(words=streams, cuts=st.lists(st.integers(0, 130)), sane=st.booleans())
def test_any_words_cut_anywhere(words, cuts, sane):
    words = SANE * sane + words
    data = np.array(words, "<u2").tobytes()
    decoder = Evt3Decoder()
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    parts = [decoder.feed(data[a:b]) for a, b in itertools.pairwise(edges)]
    assert rows(Events.concatenate(parts)) == by_hand(words)


@settings(deadline=None, max_examples=200)
@given(words=streams, later=streams)
def test_numpy_alone_finds_the_same(words, later):
    data = [np.array(SANE + words, "<u2").tobytes(), np.array(later, "<u2").tobytes()]
    either, numpy = Evt3Decoder(), Evt3Decoder()
    for block in data:
        found = either.feed(block)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(evt3_native, "_evt3", None)
            assert numpy.feed(block).equals(found)


def test_the_package_is_used_where_it_is_installed():
    pytest.importorskip("evt3")
    decoder = Evt3Decoder()
    decoder.feed(np.array(SANE, "<u2").tobytes())
    words = np.array([high(1), low(9), x_word(5)], "<u2")
    found = evt3_native.decode(words, (words >> 12).astype(np.uint8), 4098, 3, 4, 0)
    assert found is not None
    assert rows(found) == [(4096 + 9, 5, 3, 0)]
