"""The demo source: chunks in stream time, reproducible, without end."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from spiketrain.events import Events
from spiketrain.events.demo import demo_events


def test_chunks_follow_each_other_in_stream_time():
    chunks = list(demo_events(seed=3, digits=[7, 1], chunk_us=20_000, pause_us=50_000))
    ends = [chunk.until_us for chunk in chunks]
    assert ends == sorted(set(ends))
    assert ends[-1] == 2 * (310_000 + 50_000)
    begin = 0
    for chunk in chunks:
        if len(chunk.events):
            assert begin <= chunk.events.t.min()
            assert chunk.events.t.max() <= chunk.until_us
        begin = chunk.until_us
    labels = [label for label, _ in itertools.groupby(chunk.label for chunk in chunks)]
    assert labels == [7, None, 1, None]
    assert not any(len(chunk.events) for chunk in chunks if chunk.label is None)
    assert Events.concatenate([chunk.events for chunk in chunks]).is_sorted()


@pytest.mark.parametrize("chunk_us", [1000, 1500, 7000, 310_000, 10**9])
def test_the_events_do_not_depend_on_the_chunks(chunk_us):
    def whole(chunk_us: int) -> Events:
        return Events.concatenate([c.events for c in demo_events(5, [2], chunk_us=chunk_us)])

    assert whole(chunk_us).equals(whole(10_000))
    assert len(whole(chunk_us)) > 1000


def test_without_digits_it_never_ends_and_the_seed_says_which():
    def first(seed: int) -> list[int | None]:
        stream = itertools.islice(demo_events(seed, chunk_us=310_000, pause_us=0), 6)
        return [chunk.label for chunk in stream]

    assert first(0) == first(0)
    assert first(0) != first(1)
    assert len(set(first(0))) > 2


def test_every_digit_is_written_anew():
    one, two = (chunk.events for chunk in demo_events(0, [4, 4], chunk_us=310_000, pause_us=0))
    assert not np.array_equal(one.x, two.x)


def test_impossible_arguments_are_refused():
    with pytest.raises(ValueError, match="chunk_us 999"):
        next(demo_events(chunk_us=999))
    with pytest.raises(ValueError, match="pause_us -1"):
        next(demo_events(pause_us=-1))
    with pytest.raises(ValueError, match="no digit"):
        next(demo_events(digits=[12]))
