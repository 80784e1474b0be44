"""Counters of a few bits, continued to 64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiketrain.events.formats.clock import Clock


@given(
    steps=st.lists(st.integers(-100, 127), min_size=1),
    start=st.integers(0, 255),
    cuts=st.lists(st.integers(0, 50)),
)
def test_true_times_come_back(steps, start, cuts):
    true = start + np.concatenate([[0], np.cumsum(steps)])
    clock = Clock(8)
    edges = [0, *sorted(cuts), len(true)]
    raw = (true & 255).astype(np.uint8)
    found = np.concatenate([clock.extend(raw[a:b]) for a, b in itertools.pairwise(edges)])
    assert found.tolist() == true.tolist()


def test_many_wraps_go_beyond_32_bits():
    clock = Clock(31)
    raw = np.array([2**31 - 1, 0] * 1000, np.uint32)
    raw[1::2] = 2**30
    raw = np.insert(raw, np.arange(1, 2001, 2), 5)
    t = clock.extend(raw)
    assert (np.diff(t) > 0).all()
    assert t[-1] == 1000 * 2**31 + 2**30


@pytest.mark.parametrize(("forward", "expected"), [(False, [3, -6, 3]), (True, [3, 250, 259])])
def test_a_long_step_forward_is_a_pause_only_if_said(forward, expected):
    clock = Clock(8, forward)
    assert [int(clock.extend(np.array([value]))[0]) for value in (3, 250, 3)] == expected
    assert Clock(8, forward).extend(np.array([3, 250, 3])).tolist() == expected
