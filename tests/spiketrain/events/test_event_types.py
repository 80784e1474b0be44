"""Events: what is accepted, slicing, joining."""

from __future__ import annotations

import numpy as np
import pytest

from spiketrain.events import Events


def some(n: int) -> Events:
    return Events(
        np.arange(n, dtype=np.int64),
        np.arange(n, dtype=np.uint16),
        np.arange(n, dtype=np.uint16) + np.uint16(7),
        (np.arange(n) % 2).astype(np.uint8),
    )


def test_slices_masks_and_indices():
    events = some(10)
    assert len(events) == 10
    assert events[2:5].t.tolist() == [2, 3, 4]
    assert events[events.p == 1].x.tolist() == [1, 3, 5, 7, 9]
    assert events[np.array([3, 0])].y.tolist() == [10, 7]
    with pytest.raises(TypeError, match="slice"):
        events[3]  # type: ignore[index]


def test_concatenate():
    events = some(10)
    assert Events.concatenate([events[:4], events[4:]]).equals(events)
    assert Events.concatenate([events]) is events
    assert len(Events.concatenate([])) == 0
    assert Events.empty().equals(events[:0])
    assert not events.equals(events[::-1])


def test_sorted_keeps_the_order_of_the_same_microsecond():
    events = Events(
        np.array([5, 3, 5, 3]),
        np.array([0, 1, 2, 3], np.uint16),
        np.zeros(4, np.uint16),
        np.zeros(4, np.uint8),
    )
    assert events.sorted().x.tolist() == [1, 3, 0, 2]
    assert not events.is_sorted()
    assert events[:0].sorted().is_sorted()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"t": np.zeros(3)}, "t is float64"),
        ({"x": np.zeros(3, np.int64)}, "x is int64"),
        ({"y": np.zeros((3, 1), np.uint16)}, r"y is uint16 \[3, 1\]"),
        ({"p": [0, 0, 0]}, "p is list"),
        ({"y": np.zeros(2, np.uint16)}, "2 values in y, but 3 in t"),
        ({"p": np.array([0, 1, 2], np.uint8)}, "polarity 2"),
    ],
)
def test_wrong_columns_are_refused(change, message):
    columns = {name: getattr(some(3), name) for name in "txyp"} | change
    with pytest.raises(ValueError, match=message):
        Events(**columns)
