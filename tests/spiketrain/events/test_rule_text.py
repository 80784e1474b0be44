import pytest

from spiketrain.events.rule_text import parse_decision, parse_filter, parse_size, parse_window
from spiketrain.manifest import CountWindow, DurationWindow
from spiketrain.stream_rules import (
    BackgroundActivity,
    DecisionRule,
    DownSample,
    HotPixels,
    InvertPolarity,
    LeakyEvidence,
    Orient,
    RateLimit,
    Refractory,
    Region,
    VoteEvidence,
)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("background-activity", BackgroundActivity()),
        ("background-activity:5ms", BackgroundActivity(support_us=5000)),
        ("refractory:period_us=300", Refractory(period_us=300)),
        ("hot-pixels:rate_hz=50,period_us=20ms", HotPixels(rate_hz=50, period_us=20_000)),
        ("rate-limit:1000", RateLimit(events_per_second=1000)),
        ("region:x=1,y=2,width=3,height=4", Region(x=1, y=2, width=3, height=4)),
        ("region:width=3, height=4, crop", Region(width=3, height=4, crop=True)),
        ("down-sample:factor=2", DownSample(factor=2)),
        ("orient:rotate-90", Orient(operation="rotate-90")),
        ("invert-polarity", InvertPolarity()),
    ],
)
def test_filters(text, rule):
    assert parse_filter(text) == rule


def test_windows_decisions_and_sizes():
    assert parse_window("10ms") == DurationWindow(microseconds=10_000)
    assert parse_window("duration:2s") == DurationWindow(microseconds=2_000_000)
    count = CountWindow(events=500, max_microseconds=100_000)
    assert parse_window("count:events=500,max_microseconds=100ms") == count
    assert parse_decision("leaky") == DecisionRule()
    assert parse_decision("leaky:time_constant_us=100ms,margin=0.4") == DecisionRule(
        evidence=LeakyEvidence(time_constant_us=100_000), margin=0.4
    )
    assert parse_decision("vote:5,min_events=3") == DecisionRule(
        evidence=VoteEvidence(windows=5), min_events=3
    )
    assert parse_size("640x480") == (640, 480)


@pytest.mark.parametrize(
    ("parse", "text", "says"),
    [
        (parse_filter, "blur", "there are hot-pixels"),
        (parse_filter, "", "there are"),
        (parse_filter, "down-sample", "factor"),
        (parse_filter, "down-sample:factor=x", "factor"),
        (parse_filter, "down-sample:2,3", "no field"),
        (parse_filter, "down-sample:2,factor=3", "twice"),
        (parse_filter, "region:wide=3", "no such field"),
        (parse_filter, "orient:sideways", "operation"),
        (parse_filter, "invert-polarity:x=1", "no such field"),
        (parse_window, "10", "10ms"),
        (parse_window, "0ms", "microseconds"),
        (parse_window, "count:events=5", "max_microseconds"),
        (parse_decision, "oracle", "leaky or vote"),
        (parse_decision, "leaky:margin=0.1,release=0.5", "release"),
        (parse_size, "0x5", "640x480"),
        (parse_size, "99999x5", "640x480"),
    ],
)
def test_what_cannot_be_is_said(parse, text, says):
    with pytest.raises(ValueError, match=says):
        parse(text)
