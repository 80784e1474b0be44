"""Filters of a stream: events in, those that are kept out, with what they remember of the events before.

What a filter keeps depends on the events and their order alone, not on how they were cut into calls; so a recording
and a stream of it are filtered alike. There is no statistic of a whole recording. Events come in order of time; one
that is earlier than what a filter has seen is taken as if it came then. All events lie on the sensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Protocol

import numpy as np

from spiketrain.events.memory import Memory, Remembers, expect
from spiketrain.events.native import loops
from spiketrain.events.types import Events, Int64s
from spiketrain.stream_rules import (
    BackgroundActivity,
    DownSample,
    FilterRule,
    HotPixels,
    InvertPolarity,
    Orient,
    RateLimit,
    Refractory,
    Region,
    Size,
    size_after,
)

BLOCK = 1 << 16
"""Events filtered at once: bounds the memory, and keeps sums of times within 64 bits."""

_LONG_AGO = -(1 << 62)
_FORGOTTEN = 1e-12


class Filter(Protocol):
    def apply(self, events: Events) -> Events:
        """Those of the next events that are kept, in their order."""

    def memory(self) -> Memory: ...

    def remember(self, memory: Memory) -> None: ...


class FilterChain(Remembers):
    """Filters one after the other. `sensor` is the size that is left after them, `dropped` the events that were not kept.

    Raises ValueError for a filter that does not fit the sensor where it stands.
    """

    def __init__(self, rules: Sequence[FilterRule], sensor: Size) -> None:
        self._rules = tuple(rules)
        self._sensor = sensor
        self.sensor = size_after(self._rules, sensor)
        self.reset()

    def __bool__(self) -> bool:
        return bool(self._rules)

    def reset(self) -> None:
        """Back to before the first event."""
        self.dropped = 0
        # What they remember is taken when the first event comes.
        self._filters: list[Filter] = []

    def memory(self) -> Memory:
        return {"dropped": self.dropped, "filters": [each.memory() for each in self._filters]}

    def remember(self, memory: Memory) -> None:
        expect(memory, ("dropped", "filters"))
        self.reset()
        self.dropped = int(memory["dropped"])
        if not memory["filters"]:
            return
        if len(memory["filters"]) != len(self._rules):
            raise ValueError(
                f"memory of {len(memory['filters'])} filters, not of {len(self._rules)}"
            )
        self._make_filters()
        for each, remembered in zip(self._filters, memory["filters"], strict=True):
            each.remember(remembered)

    def apply(self, events: Events) -> Events:
        if not self._rules or not len(events):
            return events
        if not self._filters:
            self._make_filters()
        kept = []
        for begin in range(0, len(events), BLOCK):
            part = events[begin : begin + BLOCK]
            for each in self._filters:
                part = each.apply(part)
            kept.append(part)
        result = Events.concatenate(kept)
        self.dropped += len(events) - len(result)
        return result

    def _make_filters(self) -> None:
        size = self._sensor
        for rule in self._rules:
            self._filters.append(make_filter(rule, size))
            size = rule.size_after(size)


class _Clock(Remembers):
    """Times that never fall, and periods of stream time."""

    MEMORY: ClassVar[dict[str, Any]] = {"_now": int}

    def __init__(self) -> None:
        self._now = _LONG_AGO

    def times(self, events: Events) -> Int64s:
        t = events.t
        if int(t[0]) < self._now or not events.is_sorted():
            t = np.maximum(np.maximum.accumulate(t), self._now)
        self._now = int(t[-1])
        return t


def _periods(t: Int64s, period_us: int) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of each run of events in one period."""
    numbers = t // period_us
    cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(t)]
    for begin, end in pairwise(cuts):
        yield int(numbers[begin]), begin, end


def _pixels(events: Events, width: int) -> Int64s:
    pixels = np.multiply(events.y, width, dtype=np.int64)
    pixels += events.x
    return pixels


class HotPixelFilter(Remembers):
    MEMORY: ClassVar[dict[str, Any]] = {
        "_rate": np.ndarray,
        "_count": np.ndarray,
        "_period": np.ndarray,
        "_clock": _Clock,
    }

    def __init__(self, rule: HotPixels, size: Size) -> None:
        self._width = size[0]
        self._period_us = rule.period_us
        self._most = rule.rate_hz * rule.period_us * 1e-6
        keep = math.exp(-rule.period_us / rule.decay_us)
        self._gain = 1 - keep
        # From a table: a power of an array may differ in its last bit with the place in the array.
        length = math.ceil(math.log(_FORGOTTEN) / math.log(keep)) + 1
        self._left = np.array([keep**n for n in range(length)] + [0.0])
        pixels = size[0] * size[1]
        # Events a period, as of the end of the period before `_period`; and those in `_period` itself.
        self._rate = np.zeros(pixels)
        self._count = np.zeros(pixels, np.int64)
        self._period = np.zeros(pixels, np.int64)
        self._clock = _Clock()

    def apply(self, events: Events) -> Events:
        if not len(events):
            return events
        pixels = _pixels(events, self._width)
        kept = np.empty(len(events), bool)
        for period, begin, end in _periods(self._clock.times(events), self._period_us):
            part = pixels[begin:end]
            self._roll(part[self._period[part] != period], period)
            kept[begin:end] = self._rate[part] <= self._most
            if 8 * len(part) > len(self._count):
                self._count += np.bincount(part, minlength=len(self._count))
            else:
                np.add.at(self._count, part, 1)
        return events[kept]

    def _roll(self, pixels: Int64s, period: int) -> None:
        """Takes pixels to a later period. A pixel may be given several times."""
        passed = np.minimum(period - self._period[pixels] - 1, len(self._left) - 1)
        # A pixel that was never seen has a rate and a count of 0, whatever its period.
        passed = np.maximum(passed, 0)
        rate = self._rate[pixels] * self._left[1] + self._count[pixels] * self._gain
        self._rate[pixels] = rate * self._left[passed]
        self._count[pixels] = 0
        self._period[pixels] = period


class BackgroundActivityFilter(Remembers):
    MEMORY: ClassVar[dict[str, Any]] = {"_last": np.ndarray, "_clock": _Clock}

    def __init__(self, rule: BackgroundActivity, size: Size) -> None:
        self._width, self._height = size
        self._support_us = rule.support_us
        self._last: Int64s = np.full(size[0] * size[1], _LONG_AGO, np.int64)
        self._clock = _Clock()

    def apply(self, events: Events) -> Events:
        n = len(events)
        if not n:
            return events
        times = self._clock.times(events)
        if (compiled := loops()) is not None:
            kept = np.empty(n, bool)
            last = self._last.reshape(self._height, self._width)
            compiled.supported(times, events.x, events.y, last, self._support_us, kept)
            return events[np.flatnonzero(kept)]
        pixels = _pixels(events, self._width)
        order = np.argsort(pixels, kind="stable")
        pixel, t, x = pixels[order], times[order], events.x[order]
        # Sorted by pixel, then by place in the stream: a neighbour's last event before event i is found by bisection.
        place = pixel * n + order
        waiting = np.arange(n)
        for step_y in (0, -1, 1):
            for step_x in (-1, 1) if step_y == 0 else (0, -1, 1):
                step = step_y * self._width + step_x
                near = waiting
                if step_x:
                    near = near[x[near] != (0 if step_x < 0 else self._width - 1)]
                neighbour = pixel[near] + step
                if step_y:
                    there = (neighbour >= 0) & (neighbour < len(self._last))
                    near, neighbour = near[there], neighbour[there]
                found = np.searchsorted(place, neighbour * n + order[near]) - 1
                here = (found >= 0) & (pixel[found] == neighbour)
                before = np.where(here, t[found], self._last[neighbour])
                supported = near[t[near] - before <= self._support_us]
                rest = np.zeros(n, bool)
                rest[waiting] = True
                rest[supported] = False
                waiting = np.flatnonzero(rest)
        self._last[pixel] = t
        kept = np.ones(n, bool)
        kept[order[waiting]] = False
        return events[kept]


class RefractoryFilter(Remembers):
    MEMORY: ClassVar[dict[str, Any]] = {"_last": np.ndarray, "_clock": _Clock}

    def __init__(self, rule: Refractory, size: Size) -> None:
        self._width, self._height = size
        self._period_us = rule.period_us
        self._last: Int64s = np.full(size[0] * size[1], _LONG_AGO, np.int64)
        self._clock = _Clock()

    def apply(self, events: Events) -> Events:
        """Whether an event is kept depends on which one before it was. So by pixel, each event points to the first
        one that could be kept after it; what can be reached from the first kept one is kept, and is found in as many
        rounds as that way has binary digits."""
        n = len(events)
        if not n:
            return events
        period = self._period_us
        times = self._clock.times(events)
        if (compiled := loops()) is not None:
            passed = np.empty(n, bool)
            last = self._last.reshape(self._height, self._width)
            compiled.rested(times, events.x, events.y, last, period, passed)
            return events[np.flatnonzero(passed)]
        pixels = _pixels(events, self._width)
        order = np.argsort(pixels, kind="stable")
        pixel, t = pixels[order], times[order]
        fresh = np.ones(n, bool)
        fresh[1:] = pixel[1:] != pixel[:-1]
        # Pauses count as one period at most, which changes no comparison with it and keeps the sums small.
        pauses = np.minimum(np.diff(t, prepend=t[0]), period)
        pauses[fresh] = period
        clock = np.cumsum(pauses)
        follower = np.searchsorted(clock, clock + period)
        first = np.flatnonzero(fresh)
        wait = np.clip(self._last[pixel[first]] + period - t[first], 0, period)
        begin = np.searchsorted(clock, clock[first] + wait)
        ends = np.append(first[1:], n)
        kept = np.zeros(n + 1, bool)
        kept[begin[begin < ends]] = True
        end_of = np.repeat(ends, np.diff(np.append(first, n)))
        jump = np.append(np.where(follower < end_of, follower, n), n)
        while True:
            kept[jump[np.flatnonzero(kept)]] = True
            if int(jump.min()) == n:
                break
            jump = jump[jump]
        chosen = np.flatnonzero(kept[:n])
        self._last[pixel[chosen]] = t[chosen]
        return events[np.sort(order[chosen])]


class RegionFilter(Remembers):
    def __init__(self, rule: Region, size: Size) -> None:
        self._left, self._top = rule.x, rule.y
        self._right, self._bottom = rule.x + rule.width, rule.y + rule.height
        self._crop = rule.crop

    def apply(self, events: Events) -> Events:
        inside = (events.x >= self._left) & (events.x < self._right)
        inside &= (events.y >= self._top) & (events.y < self._bottom)
        if not inside.all():
            events = events[inside]
        if not self._crop:
            return events
        x, y = events.x - np.uint16(self._left), events.y - np.uint16(self._top)
        return Events(events.t, x, y, events.p)


class RateLimitFilter(Remembers):
    MEMORY: ClassVar[dict[str, Any]] = {
        "_period": int,
        "_before": int,
        "_seen": int,
        "_clock": _Clock,
    }

    def __init__(self, rule: RateLimit, size: Size) -> None:
        self._most = rule.events_per_period
        self._period_us = rule.period_us
        self._period = _LONG_AGO
        self._before = self._seen = 0
        self._clock = _Clock()

    def apply(self, events: Events) -> Events:
        if not len(events):
            return events
        kept = np.empty(len(events), bool)
        for period, begin, end in _periods(self._clock.times(events), self._period_us):
            if period != self._period:
                self._before = self._seen if period == self._period + 1 else 0
                self._period, self._seen = period, 0
            expected = max(self._before, self._most)
            number = np.arange(self._seen, self._seen + end - begin + 1)
            ticks = number * self._most // expected
            kept[begin:end] = (ticks[1:] > ticks[:-1]) & (number[1:] <= expected)
            self._seen += end - begin
        return events if kept.all() else events[kept]


class DownSampleFilter(Remembers):
    def __init__(self, rule: DownSample, size: Size) -> None:
        self._factor = np.uint16(rule.factor)

    def apply(self, events: Events) -> Events:
        return Events(events.t, events.x // self._factor, events.y // self._factor, events.p)


class OrientFilter(Remembers):
    def __init__(self, rule: Orient, size: Size) -> None:
        self._operation = rule.operation
        self._right, self._bottom = np.uint16(size[0] - 1), np.uint16(size[1] - 1)

    def apply(self, events: Events) -> Events:
        x, y = events.x, events.y
        match self._operation:
            case "flip-x":
                x = self._right - x
            case "flip-y":
                y = self._bottom - y
            case "transpose":
                x, y = y, x
            case "rotate-90":
                x, y = self._bottom - y, x
            case "rotate-180":
                x, y = self._right - x, self._bottom - y
            case "rotate-270":
                x, y = y, self._right - x
        return Events(events.t, x, y, events.p)


class InvertPolarityFilter(Remembers):
    def __init__(self, rule: InvertPolarity, size: Size) -> None:
        pass

    def apply(self, events: Events) -> Events:
        return Events(events.t, events.x, events.y, np.uint8(1) - events.p)


_FILTERS: dict[type[Any], Callable[[Any, Size], Filter]] = {
    HotPixels: HotPixelFilter,
    BackgroundActivity: BackgroundActivityFilter,
    Refractory: RefractoryFilter,
    Region: RegionFilter,
    RateLimit: RateLimitFilter,
    DownSample: DownSampleFilter,
    Orient: OrientFilter,
    InvertPolarity: InvertPolarityFilter,
}


def make_filter(rule: FilterRule, size: Size) -> Filter:
    """The filter of a rule, for a sensor of that size. Raises ValueError where it does not fit."""
    rule.size_after(size)
    return _FILTERS[type(rule)](rule, size)
