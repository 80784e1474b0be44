"""Filters: each against a loop over events that says its rule plainly, and whatever the cuts, the same is kept."""

from __future__ import annotations

import hashlib
import json
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from spiketrain.checkpoint import model_digest
from spiketrain.events import Events, Windows, filters, native, recording_frames
from spiketrain.events.filters import FilterChain
from spiketrain.manifest import (
    CountWindow,
    DurationWindow,
    EventInput,
    Manifest,
    NetworkSpec,
    NumberWindow,
)
from spiketrain.neurons import CLIFConfig
from spiketrain.stream_rules import (
    MAX_FILTERS,
    BackgroundActivity,
    DecisionRule,
    DownSample,
    FilterRule,
    HotPixels,
    InvertPolarity,
    Orient,
    RateLimit,
    Refractory,
    Region,
    size_after,
)

SENSOR = (7, 5)
RULES: list[FilterRule] = [
    HotPixels(rate_hz=300, period_us=1000, decay_us=4000),
    BackgroundActivity(support_us=700),
    Refractory(period_us=900),
    Region(x=1, y=1, width=4, height=3, crop=True),
    RateLimit(events_per_second=5000, period_us=2000),
    DownSample(factor=1),
    Orient(operation="rotate-90"),
    InvertPolarity(),
]


@pytest.fixture(scope="module", params=["compiled", "plain"], autouse=True)
def loops(request):
    """The filters with compiled loops, and with NumPy alone."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "plain":
            patch.setenv("SPIKETRAIN_KERNELS", "plain")
        elif native.loops() is None:
            pytest.skip("numba is not installed")
        yield


def noise(count: int, span_us: int, seed: int = 0, sensor: tuple[int, int] = SENSOR) -> Events:
    """Uneven activity: most of it on few pixels, with bursts."""
    random = np.random.default_rng(seed)
    t = np.sort((random.random(count) ** 2 * span_us).astype(np.int64)) - span_us // 3
    x = (random.random(count) ** 2 * sensor[0]).astype(np.uint16)
    y = (random.random(count) ** 2 * sensor[1]).astype(np.uint16)
    return Events(t, x, y, random.integers(0, 2, count).astype(np.uint8))


def one_by_one(rule: FilterRule, events: Events, sensor: tuple[int, int]) -> list[int]:
    """The numbers of the events that are kept, by the definition in the rule's docstring."""
    kept = []
    last: dict[tuple[int, int], int] = {}
    counts: dict[int, int] = {}
    hot: dict[tuple[int, int], tuple[int, float, int]] = {}
    rows = zip(events.t.tolist(), events.x.tolist(), events.y.tolist(), strict=True)
    for i, (t, x, y) in enumerate(rows):
        match rule:
            case Refractory():
                keep = t - last.get((x, y), -(10**18)) >= rule.period_us
                if keep:
                    last[x, y] = t
            case BackgroundActivity():
                around = [
                    (x + i, y + j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)
                ]
                keep = any(t - last.get(p, -(10**18)) <= rule.support_us for p in around)
                last[x, y] = t
            case HotPixels():
                period = t // rule.period_us
                at, rate, count = hot.get((x, y), (period, 0.0, 0))
                left = math.exp(-rule.period_us / rule.decay_us)
                while at < period:
                    rate, count, at = rate * left + count * (1 - left), 0, at + 1
                keep = rate / (rule.period_us * 1e-6) <= rule.rate_hz
                hot[x, y] = (at, rate, count + 1)
            case RateLimit():
                period = t // rule.period_us
                most = rule.events_per_period
                expected = max(counts.get(period - 1, 0), most)
                seen = counts.get(period, 0)
                keep = seen < expected and (seen + 1) * most // expected > seen * most // expected
                counts[period] = seen + 1
            case Region():
                keep = rule.x <= x < rule.x + rule.width and rule.y <= y < rule.y + rule.height
            case _:
                keep = True
        if keep:
            kept.append(i)
    return kept


def in_pieces(chain: FilterChain, events: Events, cuts: list[int]) -> Events:
    return Events.concatenate(
        [chain.apply(events[a:b]) for a, b in pairwise([0, *sorted(cuts), len(events)])]
    )


@pytest.mark.parametrize("rule", RULES[:5], ids=lambda rule: rule.kind)
@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 400), st.integers(1, 60_000), st.integers(0, 10**6), st.lists(st.floats(0, 1))
)
def test_each_keeps_what_its_rule_says_however_the_stream_is_cut(rule, count, span, seed, cuts):
    events = noise(count, span, seed)
    expected = events[np.array(one_by_one(rule, events, SENSOR), np.int64)]
    chain = FilterChain([rule], SENSOR)
    kept = in_pieces(chain, events, [int(cut * count) for cut in cuts])
    assert chain.dropped == count - len(kept)
    assert np.array_equal(kept.t, expected.t)
    shift = (rule.x, rule.y) if isinstance(rule, Region) else (0, 0)
    assert np.array_equal(kept.x + shift[0], expected.x)
    assert np.array_equal(kept.y + shift[1], expected.y)
    assert np.array_equal(kept.p, expected.p)


@pytest.mark.parametrize("rule", RULES[:5], ids=lambda rule: rule.kind)
def test_they_do_drop_and_do_keep(rule):
    events = noise(2000, 100_000)
    kept = FilterChain([rule], SENSOR).apply(events)
    assert 0.05 < len(kept) / len(events) < 0.95


@settings(max_examples=40, deadline=None)
@given(st.permutations(RULES), st.lists(st.floats(0, 1)), st.integers(0, 10**6))
def test_a_chain_in_any_order_does_not_depend_on_the_cuts(rules, cuts, seed):
    # The region is first, as it might not lie on a sensor that was turned.
    rules = sorted(rules, key=lambda rule: rule.kind != "region")
    events = noise(300, 20_000, seed)
    whole = FilterChain(rules, SENSOR).apply(events)
    assert in_pieces(FilterChain(rules, SENSOR), events, [int(c * 300) for c in cuts]).equals(whole)


def test_blocks_do_not_show(monkeypatch):
    events = noise(3000, 100_000)
    whole = FilterChain(RULES, SENSOR).apply(events)
    monkeypatch.setattr(filters, "BLOCK", 17)
    assert FilterChain(RULES, SENSOR).apply(events).equals(whole)


def test_long_pauses_and_far_times_overflow_nothing():
    t = np.array([-(1 << 60), -(1 << 60) + 5, 0, 3, 1 << 60, (1 << 60) + 1], np.int64)
    n = len(t)
    events = Events(
        t, np.arange(n, dtype=np.uint16) % 2, np.zeros(n, np.uint16), np.ones(n, np.uint8)
    )
    assert FilterChain([Refractory(period_us=10)], SENSOR).apply(events).equals(events)
    supported = FilterChain([BackgroundActivity(support_us=10)], SENSOR).apply(events)
    assert supported.t.tolist() == [t[1], t[3], t[5]]
    assert len(FilterChain([HotPixels()], SENSOR).apply(events)) == n
    assert len(FilterChain([RateLimit(events_per_second=1000)], SENSOR).apply(events)) == n


def test_a_neighbour_is_not_across_the_edge():
    at_edges = Events(
        np.array([0, 1], np.int64),
        np.array([6, 0], np.uint16),
        np.array([0, 1], np.uint16),
        np.zeros(2, np.uint8),
    )
    assert len(FilterChain([BackgroundActivity(support_us=100)], SENSOR).apply(at_edges)) == 0


def test_a_hot_pixel_is_silenced_and_comes_back():
    fast = np.arange(0, 100_000, 500)
    slow = 200_000 + np.arange(0, 100_000, 10_000)
    t = np.concatenate([fast, slow]).astype(np.int64)
    n = len(t)
    events = Events(t, np.ones(n, np.uint16), np.ones(n, np.uint16), np.ones(n, np.uint8))
    kept = FilterChain([HotPixels(rate_hz=500, period_us=5000, decay_us=20_000)], SENSOR).apply(
        events
    )
    assert kept.t[kept.t < 100_000].max() < 30_000, "2000 Hz is above 500 Hz once the mean is"
    assert np.isin(slow, kept.t).all(), "the rate has decayed"


def test_the_rate_limit_holds_in_every_period_and_thins_evenly():
    events = noise(20_000, 200_000)
    rule = RateLimit(events_per_second=20_000, period_us=5000)
    kept = FilterChain([rule], SENSOR).apply(events)
    counts = np.bincount(kept.t // 5000 - kept.t.min() // 5000)
    assert counts.max() == rule.events_per_period == 100
    steady = np.arange(0, 100_000, 10)
    n = len(steady)
    zeros = np.zeros(n, np.uint16)
    kept = FilterChain([rule], SENSOR).apply(
        Events(steady.astype(np.int64), zeros, zeros, np.zeros(n, np.uint8))
    )
    later = kept.t[kept.t >= 5000]
    assert set(np.diff(later)) == {50}, "every fifth event, once the rate is known"


def test_an_event_that_comes_late_is_taken_as_if_it_came_now():
    rule = Refractory(period_us=10)
    chain = FilterChain([rule], SENSOR)

    def one(t: int) -> Events:
        zero = np.zeros(1, np.uint16)
        return Events(np.array([t], np.int64), zero, zero, np.zeros(1, np.uint8))

    assert [len(chain.apply(one(t))) for t in (100, 95, 105, 104, 110)] == [1, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("operation", "turned"),
    [
        ("flip-x", lambda image: image[:, ::-1]),
        ("flip-y", lambda image: image[::-1]),
        ("transpose", lambda image: image.T),
        ("rotate-90", lambda image: np.rot90(image, -1)),
        ("rotate-180", lambda image: np.rot90(image, 2)),
        ("rotate-270", lambda image: np.rot90(image)),
    ],
)
def test_orientations(operation, turned):
    events = noise(200, 1000)
    chain = FilterChain([Orient(operation=operation)], SENSOR)

    def picture(events: Events, size: tuple[int, int]) -> np.ndarray:
        image = np.zeros(size[::-1], np.int64)
        np.add.at(image, (events.y, events.x), 1)
        return image

    expected = turned(picture(events, SENSOR))
    assert np.array_equal(picture(chain.apply(events), chain.sensor), expected)


def test_down_sampling_and_polarity():
    events = noise(50, 1000, sensor=(8, 6))
    chain = FilterChain([DownSample(factor=2), InvertPolarity()], (8, 6))
    assert chain.sensor == (4, 3)
    changed = chain.apply(events)
    assert np.array_equal(changed.x, events.x // 2)
    assert np.array_equal(changed.y, events.y // 2)
    assert np.array_equal(changed.p, 1 - events.p)
    assert chain.dropped == 0


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ((DownSample(factor=2),), "does not divide a sensor of 7x5"),
        (
            (Region(x=4, y=0, width=4, height=2),),
            "4x2 pixels at \\(4, 0\\) are not all on the sensor",
        ),
        ((Orient(operation="transpose"), Region(width=6, height=1)), "which has 5x7"),
    ],
)
def test_a_filter_that_does_not_fit_is_refused(rules, message):
    with pytest.raises(ValueError, match=message):
        FilterChain(rules, SENSOR)
    with pytest.raises(ValidationError, match=message):
        EventInput(
            sensor=SENSOR, shape=(2, 5, 7), window=DurationWindow(microseconds=1), filters=rules
        )


def test_what_a_client_could_ask_for_is_bounded():
    for rule in (HotPixels(), BackgroundActivity(), Refractory()):
        with pytest.raises(ValueError, match="too large"):
            size_after((rule,), (4096, 4096))
    with pytest.raises(ValidationError):
        EventInput(
            sensor=SENSOR,
            shape=(2, 5, 7),
            window=DurationWindow(microseconds=1),
            filters=(InvertPolarity(),) * (MAX_FILTERS + 1),
        )
    for bad in (
        {"kind": "refractory", "period_us": 0},
        {"kind": "nope"},
        {"kind": "hot-pixels", "x": 1},
    ):
        with pytest.raises(ValidationError):
            TypeAdapter(FilterRule).validate_python(bad)
    with pytest.raises(ValidationError, match="1 to 1000 times"):
        HotPixels(period_us=1000, decay_us=10_000_000)


SPECS = [
    EventInput(
        sensor=(10, 7),
        shape=(2, 2, 4),
        window=window,
        orientation="flip-y",
        filters=(
            Region(x=1, y=1, width=8, height=4, crop=True),
            Refractory(period_us=300),
            BackgroundActivity(support_us=2000),
            RateLimit(events_per_second=4000),
            DownSample(factor=2),
            InvertPolarity(),
        ),
    )
    for window in (
        DurationWindow(microseconds=3000),
        CountWindow(events=20, max_microseconds=5000),
        NumberWindow(windows=6),
    )
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.window.kind)
def test_the_filters_of_an_input_are_those_of_its_frames(spec):
    events = noise(2000, 100_000, sensor=(11, 8))
    inside = events[(events.x < 10) & (events.y < 7)]
    chain = FilterChain(spec.filters, spec.sensor)
    kept = chain.apply(inside)
    frames = recording_frames(events, spec)
    assert frames.shape[1:] == (2, 2, 4)
    assert frames.sum() == len(kept) < len(inside)
    assert np.array_equal(
        frames.sum((0, 2, 3)), [np.count_nonzero(kept.p == 0), np.count_nonzero(kept.p)]
    )


@pytest.mark.parametrize("spec", SPECS[:2], ids=lambda spec: spec.window.kind)
@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=12), st.integers(0, 10**6), st.booleans())
def test_a_filtered_stream_in_random_chunks_gives_the_frames_of_the_recording(
    spec, cuts, seed, shuffled
):
    events = noise(600, 50_000, seed, (11, 8))
    expected = recording_frames(events, spec)
    lateness = 0
    if shuffled:
        # Events out of order by less than the lateness: the filters see them in order all the same.
        delay = np.random.default_rng(seed).integers(0, 1000, len(events))
        events, lateness = events[np.argsort(events.t + delay, kind="stable")], 1000
        events = Events(events.t, events.x, events.y, events.p)
        expected = recording_frames(events, spec)
    # The first event in time begins the stream, and must not be late itself.
    windows = Windows(spec, lateness, start_us=int(events.t[_inside(events)].min()))
    frames, counted = [], 0
    for a, b in pairwise([0, *sorted(int(cut * 600) for cut in cuts), 600]):
        for window in windows.feed(events[a:b]):
            frames.append(window.frame)
            counted += window.events
    for window in windows.finish():
        frames.append(window.frame)
        counted += window.events
    assert windows.late == 0
    assert counted + windows.filtered + windows.outside == 600
    assert np.array_equal(np.stack(frames), expected)


def _inside(events: Events) -> np.ndarray:
    return (events.x < 10) & (events.y < 7)


def test_windows_count_what_was_filtered_and_forget_it_on_reset():
    spec = SPECS[0]
    events = noise(500, 20_000, sensor=spec.sensor)
    windows = Windows(spec)
    first = [w.frame for w in windows.feed(events) + windows.finish()]
    dropped = windows.filtered
    assert 0 < dropped < 500
    windows.reset()
    assert windows.filtered == 0
    again = [w.frame for w in windows.feed(events) + windows.finish()]
    assert np.array_equal(np.stack(first), np.stack(again))
    assert windows.filtered == dropped


def test_an_input_without_filters_is_written_as_it_always_was():
    plain = EventInput(sensor=SENSOR, shape=(2, 5, 7), window=DurationWindow(microseconds=1))
    assert "filters" not in plain.model_dump(mode="json")
    assert "filters" not in plain.model_dump_json()
    spec = SPECS[0]
    assert EventInput.model_validate_json(spec.model_dump_json()) == spec
    assert [each["kind"] for each in spec.model_dump(mode="json")["filters"]][:2] == [
        "region",
        "refractory",
    ]


def test_filters_and_decision_are_part_of_what_decides_an_answer():
    plain = EventInput(sensor=SENSOR, shape=(2, 5, 7), window=DurationWindow(microseconds=1))

    def digest(**changes) -> str:
        given = {
            "name": "m",
            "network": NetworkSpec(name="small-conv"),
            "neuron": CLIFConfig(),
            "timesteps": 1,
            "input": plain,
            "classes": ("a", "b"),
        }
        manifest = Manifest(**given | changes)
        assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
        return model_digest(manifest, {})

    filtered = plain.model_copy(update={"filters": (InvertPolarity(),)})
    assert len({digest(), digest(input=filtered), digest(decision=DecisionRule())}) == 3
    written = {
        "network": {"name": "small-conv", "arguments": {}},
        "neuron": CLIFConfig().model_dump(mode="json"),
        "layers": {},
        "timesteps": 1,
        "input": plain.model_dump(mode="json"),
        "classes": ["a", "b"],
        "readout": "mean",
    }
    # What checkpoints from before there were filters and decisions were sealed with.
    before = hashlib.sha256(json.dumps(written, sort_keys=True).encode()).hexdigest()
    assert digest() == before
