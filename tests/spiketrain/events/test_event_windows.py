"""Windows: the rules one by one, and that a stream in chunks gives a recording's frames."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spiketrain.events import Events, Windows, count_frame, recording_frames
from spiketrain.events import windows as windows_module
from spiketrain.manifest import CountWindow, DurationWindow, EventInput, NumberWindow

SENSOR = (4, 3)
SHAPE = (2, 3, 4)


def spec_with(window) -> EventInput:
    return EventInput(sensor=SENSOR, shape=SHAPE, window=window)


TEN = spec_with(DurationWindow(microseconds=10))


def at(*times: int, x: int = 0) -> Events:
    n = len(times)
    return Events(
        np.array(times, np.int64),
        np.full(n, x, np.uint16),
        np.zeros(n, np.uint16),
        np.ones(n, np.uint8),
    )


def bounds(windows) -> list[tuple[int, int, int, int]]:
    return [(w.index, w.start_us, w.end_us, w.events) for w in windows]


def test_windows_are_aligned_to_the_first_event_and_half_open():
    windows = Windows(TEN)
    assert windows.feed(at(103, 104, 112)) == []
    assert bounds(windows.feed(at(113))) == [(0, 103, 113, 3)]
    assert bounds(windows.feed(at(125))) == [(1, 113, 123, 1)]
    assert bounds(windows.finish()) == [(2, 123, 133, 1)]
    assert windows.finish() == []


def test_a_given_start_counts_empty_windows_before_the_first_event_and_drops_earlier_ones():
    windows = Windows(TEN, start_us=100)
    assert bounds(windows.feed(at(99, 121))) == [(0, 100, 110, 0), (1, 110, 120, 0)]
    assert windows.late == 1
    assert bounds(windows.finish()) == [(2, 120, 130, 1)]


def test_an_empty_window_is_a_window_with_a_zero_frame():
    windows = Windows(TEN)
    closed = windows.feed(at(0, 25))
    assert bounds(closed) == [(0, 0, 10, 1), (1, 10, 20, 0)]
    assert closed[0].frame.sum() == 1
    assert closed[1].frame.shape == SHAPE
    assert not closed[1].frame.any()


def test_time_closes_windows_without_events():
    windows = Windows(TEN)
    assert windows.advance(1000) == [], "before the first event there is nothing to close"
    windows.feed(at(1000))
    assert windows.advance(1009) == []
    assert bounds(windows.advance(1025)) == [(0, 1000, 1010, 1), (1, 1010, 1020, 0)]
    assert windows.advance(1000) == [], "time does not run backwards"
    assert bounds(windows.feed(at(1024, 1029))) == []
    assert bounds(windows.advance(1030)) == [(2, 1020, 1030, 2)]
    assert windows.finish() == [], "the window in progress holds neither events nor time"


def test_finish_closes_a_window_that_has_only_time():
    windows = Windows(TEN)
    windows.feed(at(0))
    windows.advance(15)
    assert bounds(windows.finish()) == [(1, 10, 20, 0)]


def test_finish_without_a_stream_gives_nothing():
    assert Windows(TEN).finish() == []
    assert Windows(TEN).feed(Events.empty()) == []


def test_late_events_are_dropped_and_counted_and_never_counted_elsewhere():
    windows = Windows(TEN)
    first = windows.feed(at(0, 12))
    second = windows.feed(at(3, 9, 11, 20))
    assert windows.late == 2
    assert [w.events for w in first + second] == [1, 2]
    assert [int(w.frame.sum()) for w in first + second] == [1, 2]


def test_lateness_keeps_a_window_open_for_late_events():
    windows = Windows(TEN, lateness_us=5)
    assert windows.feed(at(0, 14)) == []
    assert windows.feed(at(9)) == []
    assert bounds(windows.feed(at(15))) == [(0, 0, 10, 2)]
    assert windows.feed(at(9, 13)) == []
    assert windows.late == 1
    assert bounds(windows.advance(25)) == [(1, 10, 20, 3)]
    assert bounds(windows.finish()) == [(2, 20, 30, 0)]


def test_lateness_orders_events_across_messages_for_windows_by_count():
    spec = spec_with(CountWindow(events=2, max_microseconds=1000))
    windows = Windows(spec, lateness_us=100)
    closed = windows.feed(at(0, 30)) + windows.feed(at(10, 20)) + windows.advance(200)
    assert bounds(closed) == [(0, 0, 10, 2), (1, 10, 30, 2)]


def test_waiting_events_are_bounded(monkeypatch):
    monkeypatch.setattr(windows_module, "MAX_HELD_BACK", 3)
    windows = Windows(TEN, lateness_us=1000)
    closed = windows.feed(at(0, 5, 11, 12, 21, 22))
    assert bounds(closed) == [(0, 0, 10, 2)], "the oldest three no longer wait"
    assert bounds(windows.finish()) == [(1, 10, 20, 2), (2, 20, 30, 2)]


def test_events_outside_the_sensor_are_counted_and_do_not_move_time():
    windows = Windows(TEN)
    assert windows.feed(at(5_000_000, x=4)) == []
    assert windows.feed(at(0, 3)) == []
    assert windows.feed(Events.concatenate([at(4), at(9_999, x=65535)])) == []
    assert windows.outside == 2
    assert bounds(windows.finish()) == [(0, 0, 10, 3)]


def test_a_long_silence_gives_max_empty_windows_and_skips_the_rest():
    windows = Windows(TEN, max_empty=3)
    closed = windows.feed(at(0, 105))
    assert bounds(closed) == [(0, 0, 10, 1), (1, 10, 20, 0), (2, 20, 30, 0), (3, 30, 40, 0)]
    assert windows.skipped == 6
    assert bounds(windows.finish()) == [(10, 100, 110, 1)]


def test_without_empty_windows_those_with_events_are_all_given_out():
    windows = Windows(TEN, max_empty=0)
    closed = windows.feed(at(0, 25, 35)) + windows.advance(40) + windows.advance(100)
    assert bounds(closed) == [(0, 0, 10, 1), (2, 20, 30, 1), (3, 30, 40, 1)]
    assert windows.skipped == 1 + 6
    windows.advance(105)
    assert windows.finish() == []


def test_a_silence_is_cut_short_no_matter_how_time_is_told():
    windows = Windows(TEN, max_empty=3)
    windows.feed(at(0))
    closed = [w for t in range(1, 106) for w in windows.advance(t)] + windows.feed(at(105))
    assert [w.index for w in closed] == [0, 1, 2, 3]
    assert windows.skipped == 6
    assert [w.index for w in windows.finish()] == [10]


@pytest.mark.parametrize(
    "rule", [DurationWindow(microseconds=1), CountWindow(events=5, max_microseconds=1)]
)
def test_an_absurd_jump_in_time_costs_nothing(rule):
    windows = Windows(spec_with(rule), max_empty=2)
    far = windows_module.MAX_TIME
    closed = windows.feed(at(-far, far)) + windows.advance(far)
    assert len(closed) == 3
    assert windows.skipped == 2 * far - 3
    assert [w.start_us for w in windows.finish()] == [far]


@pytest.mark.parametrize("t", [2**63 - 1, -(2**63), 2**61])
def test_a_time_beyond_the_bound_is_refused_and_changes_nothing(t):
    windows = Windows(TEN)
    windows.feed(at(0))
    with pytest.raises(ValueError, match="beyond the largest"):
        windows.feed(Events.concatenate([at(1), at(t), at(1, x=9)]))
    with pytest.raises(ValueError, match="beyond the largest"):
        windows.advance(t)
    assert windows.outside == 0
    assert bounds(windows.finish()) == [(0, 0, 10, 1)]


def test_count_windows_close_at_n_events_or_after_the_longest_time():
    windows = Windows(spec_with(CountWindow(events=3, max_microseconds=100)))
    closed = windows.feed(at(0, 5, 9, 9, 50, 250))
    assert bounds(closed) == [(0, 0, 9, 3), (1, 9, 109, 2), (2, 109, 209, 0)]
    assert bounds(windows.feed(at(260, 270, 280))) == [(3, 209, 270, 3)]
    assert bounds(windows.finish()) == [(4, 270, 280, 1)]


def test_reset_forgets_everything():
    windows = Windows(TEN, lateness_us=5)
    windows.feed(at(0, 2, 500, 0, x=1))
    windows.feed(at(1, x=9))
    windows.feed(at(3))
    windows.reset()
    assert (windows.late, windows.outside, windows.skipped) == (0, 0, 0)
    windows.feed(at(7))
    assert bounds(windows.finish()) == [(0, 7, 17, 1)]


def test_the_stream_is_lazy():
    windows = Windows(TEN)
    stream = windows.stream(at(*range(0, 100_000, 10)))
    assert next(stream).index == 0
    assert next(stream).index == 1
    assert sum(1 for _ in stream) == 9_997


def test_rules_that_a_stream_cannot_have_are_refused():
    with pytest.raises(ValueError, match="whole recording"):
        Windows(spec_with(NumberWindow(windows=4)))
    with pytest.raises(ValueError, match="lateness_us -1"):
        Windows(TEN, lateness_us=-1)
    with pytest.raises(ValueError, match="max_empty -1"):
        Windows(TEN, max_empty=-1)
    with pytest.raises(ValueError, match="beyond the largest"):
        Windows(spec_with(DurationWindow(microseconds=2**64)))


@st.composite
def recordings(draw, unique_times: bool = False) -> Events:
    n = draw(st.integers(0, 60))
    gaps = st.one_of(st.integers(int(unique_times), 8), st.just(10), st.integers(0, 700))
    if unique_times:
        gaps = gaps.map(lambda gap: max(gap, 1))
    t = np.cumsum([draw(st.integers(-1000, 1000)), *(draw(gaps) for _ in range(n - 1))])[:n]
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    return Events(
        t.astype(np.int64),
        random.integers(0, 5, n).astype(np.uint16),  # column 4 is outside
        random.integers(0, 3, n).astype(np.uint16),
        random.integers(0, 2, n).astype(np.uint8),
    )


def chunks_of(events: Events, cuts: list[int]) -> list[Events]:
    edges = [0, *sorted(min(cut, len(events)) for cut in cuts), len(events)]
    return [events[a:b] for a, b in pairwise(edges)]


def streamed(spec: EventInput, chunks: list[Events]) -> np.ndarray:
    windows = Windows(spec)
    frames = [w.frame for chunk in chunks for w in windows.feed(chunk)]
    frames += [w.frame for w in windows.finish()]
    assert windows.late == 0
    return np.stack(frames) if frames else np.empty((0, *spec.shape), np.float32)


RULES = st.one_of(
    st.builds(DurationWindow, microseconds=st.integers(1, 40)),
    st.builds(CountWindow, events=st.integers(1, 12), max_microseconds=st.integers(1, 200)),
)
CUTS = st.lists(st.integers(0, 60), max_size=12)


@settings(deadline=None, max_examples=100)
@given(events=recordings(unique_times=True), rule=RULES, cuts=CUTS, seed=st.integers(0, 1000))
def test_a_stream_in_chunks_gives_the_frames_of_the_recording(events, rule, cuts, seed):
    spec = spec_with(rule)
    expected = recording_frames(events, spec)
    chunks = chunks_of(events, cuts)
    np.testing.assert_array_equal(streamed(spec, chunks), expected)

    random = np.random.default_rng(seed)
    shuffled = [chunk[random.permutation(len(chunk))] for chunk in chunks]
    np.testing.assert_array_equal(streamed(spec, shuffled), expected)
    np.testing.assert_array_equal(
        recording_frames(events[random.permutation(len(events))], spec), expected
    )


@settings(deadline=None, max_examples=100)
@given(
    events=recordings(),
    microseconds=st.integers(1, 40),
    lateness=st.integers(1, 50),
    data=st.data(),
)
def test_disorder_within_the_lateness_changes_nothing(events, microseconds, lateness, data):
    spec = spec_with(DurationWindow(microseconds=microseconds))
    if not len(events):
        return
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    delay = random.integers(0, lateness, len(events), endpoint=True)
    delay[0] = 0  # the first one says where windows begin
    arrival = np.argsort(events.t + delay, kind="stable")
    start = int(events[events.x < 4].t.min()) if (events.x < 4).any() else 0
    windows = Windows(spec, lateness_us=lateness, start_us=start)
    frames = []
    for chunk in chunks_of(events[arrival], data.draw(CUTS)):
        frames += [w.frame for w in windows.feed(chunk)]
    frames += [w.frame for w in windows.finish()]
    assert windows.late == 0
    expected = recording_frames(events, spec, start_us=start)
    np.testing.assert_array_equal(np.array(frames).reshape(-1, *SHAPE), expected)


@settings(deadline=None, max_examples=40)
@given(events=recordings(), microseconds=st.integers(3, 40))
def test_windows_of_a_duration_equal_frames_cut_by_hand(events, microseconds):
    spec = spec_with(DurationWindow(microseconds=microseconds))
    events = events[events.x < 4]
    frames = recording_frames(events, spec, max_empty=10**6)
    if not len(events):
        assert frames.shape == (0, *SHAPE)
        return
    k = (events.t - events.t[0]) // microseconds
    assert len(frames) == k.max() + 1
    for i, frame in enumerate(frames):
        np.testing.assert_array_equal(frame, count_frame(events[k == i], spec))


def test_large_messages_are_cut_into_blocks_without_a_trace():
    random = np.random.default_rng(0)
    n = 3 * windows_module.BLOCK + 17
    events = Events(
        np.sort(random.integers(0, 1000, n)),
        random.integers(0, 4, n).astype(np.uint16),
        random.integers(0, 3, n).astype(np.uint16),
        random.integers(0, 2, n).astype(np.uint8),
    )
    spec = spec_with(DurationWindow(microseconds=300))
    frames = recording_frames(events, spec, start_us=0)
    assert len(frames) == 4
    for i, frame in enumerate(frames):
        np.testing.assert_array_equal(frame, count_frame(events[events.t // 300 == i], spec))
    counted = Windows(spec_with(CountWindow(events=50_000, max_microseconds=10**6)))
    assert [w.events for w in counted.feed(events)] == [50_000] * (n // 50_000)


def test_windows_by_number_have_equally_many_events_and_the_last_takes_the_rest():
    events = at(*range(11), x=2)
    spec = spec_with(NumberWindow(windows=3))
    frames = recording_frames(events[np.random.default_rng(0).permutation(11)], spec)
    assert frames.sum((1, 2, 3)).tolist() == [3, 3, 5]
    outside = Events.concatenate([at(0, 1, x=4), events])
    assert recording_frames(outside, spec).sum((1, 2, 3)).tolist() == [3, 3, 5]
    assert recording_frames(events, spec, start_us=8).sum((1, 2, 3)).tolist() == [1, 1, 1]


def test_fewer_events_than_windows_all_come_in_the_last():
    frames = recording_frames(at(1, 2), spec_with(NumberWindow(windows=4)))
    assert frames.sum((1, 2, 3)).tolist() == [0, 0, 0, 2]
    assert recording_frames(Events.empty(), spec_with(NumberWindow(windows=4))).shape == (4, *SHAPE)
