"""A stream of events cut into windows, each one timestep of the network. Training and serving both use this code.

The rules, for windows of a fixed duration dt:

* Window k is [t0 + k dt, t0 + (k+1) dt). t0 is given, or the time of the first event.
* A window without events is a window like any other: its frame is zero, and the neurons leak. In a longer silence
  the first `max_empty` empty windows are given out, and the others are skipped and counted: index and time jump.
* A window closes when an event at or after its end + lateness arrives, or when `advance` says that time got there.
* An event whose window has closed is dropped and counted as late; it never counts in another window. So is an event
  before t0. An event outside the sensor is dropped and counted as outside; it does not move the time.

A window of a fixed count closes with its n-th event and ends at that event's time, where the next one begins; or it
closes without it, `max_microseconds` after it began. Events of the same microsecond count in the order they came in.

Events within one message may be in any order; they are taken in order of time.

The input's filters see the events that are neither late nor outside, in order of time, when they need not wait any
longer. An event that they drop is counted as filtered; it moves the time like any other, but counts in no window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from spiketrain.events.filters import FilterChain
from spiketrain.events.frames import FrameGrid, on_sensor
from spiketrain.events.memory import Memory, Remembers
from spiketrain.events.types import Events, Float32s, Int64s
from spiketrain.manifest import DurationWindow, EventInput, NumberWindow

BLOCK = 1 << 16
"""Events turned into cells at once: the working set stays in the processor's cache."""

MAX_HELD_BACK = 1 << 20
"""Events waiting for late ones, at most. Beyond it the oldest no longer wait."""

MAX_TIME = 1 << 60
"""Microseconds; times from -MAX_TIME to MAX_TIME are accepted, so that sums of a few fit into 64 bits."""


@dataclass(frozen=True, eq=False, slots=True)
class Window:
    """Stream time from `start_us` to before `end_us`, the number of events in it and their frame [2, H, W]."""

    index: int
    start_us: int
    end_us: int
    events: int
    frame: Float32s


class Windows(Remembers):
    """One stream's windows. Holds one frame of counts and at most MAX_HELD_BACK events.

    Counters: `late`, `outside`, `filtered` (events dropped) and `skipped` (empty windows not given out).
    Raises ValueError for a rule that needs the whole recording, or a sensor that does not fit the frame.
    """

    MEMORY: ClassVar[dict[str, Any]] = {
        "late": int,
        "outside": int,
        "skipped": int,
        "_begun": bool,
        "_now": int,
        "_start": int,
        "_index": int,
        "_silence": int,
        "_events": int,
        "_counts": np.ndarray | None,
        "_held": Events,
        "_filters": FilterChain,
    }

    def __init__(
        self,
        spec: EventInput,
        lateness_us: int = 0,
        start_us: int | None = None,
        max_empty: int = 100,
    ) -> None:
        if isinstance(spec.window, NumberWindow):
            raise ValueError(
                "windows by number need the whole recording, so a stream cannot have them; "
                "use recording_frames, or a model with windows by duration or count"
            )
        if lateness_us < 0 or max_empty < 0:
            raise ValueError(
                f"lateness_us {lateness_us} and max_empty {max_empty} must be 0 or more"
            )
        self._grid = FrameGrid(spec)
        self._sensor = spec.sensor
        self._filters = FilterChain(spec.filters, spec.sensor)
        if isinstance(spec.window, DurationWindow):
            self._span, self._limit = spec.window.microseconds, 0
        else:
            self._span, self._limit = spec.window.max_microseconds, spec.window.events
        _checked_time(self._span)
        self._lateness = _checked_time(lateness_us)
        self._start_us = None if start_us is None else _checked_time(start_us)
        self._max_empty = max_empty
        self.reset()

    @property
    def filtered(self) -> int:
        return self._filters.dropped

    @property
    def next_index(self) -> int:
        """Of the window in progress."""
        return self._index

    def reset(self) -> None:
        """Back to before the first event, with all counters at 0."""
        self._filters.reset()
        self.late = 0
        self.outside = 0
        self.skipped = 0
        self._begun = self._start_us is not None
        self._now = self._start = self._start_us or 0
        self._index = 0
        self._silence = 0
        self._events = 0
        self._counts: Int64s | None = None
        self._held = Events.empty()

    def remember(self, memory: Memory) -> None:
        super().remember(memory)
        counts = self._counts
        if counts is not None and (counts.dtype != np.int64 or counts.shape != (self._grid.cells,)):
            raise ValueError(f"memory: counts are {counts.dtype} {counts.shape}")
        if on_sensor(self._held, self._sensor) is not None:
            raise ValueError("memory: events that wait are outside the sensor")

    def feed(self, events: Events) -> list[Window]:
        """The windows that these events close. Raises ValueError, with nothing changed, for a time beyond MAX_TIME."""
        return list(self.stream(events))

    def stream(self, events: Events) -> Iterator[Window]:
        """As `feed`, one window at a time, for messages that may span many. It must be run to its end."""
        outside = 0
        if (inside := on_sensor(events, self._sensor)) is not None:
            outside = len(events) - int(np.count_nonzero(inside))
            events = events[inside]
        if len(events):
            first, last = _checked_time(int(events.t.min())), _checked_time(int(events.t.max()))
            self._now = max(self._now, last) if self._begun else last
            self._start = self._start if self._begun else first
            self._begun = True
        self.outside += outside
        if self._begun:
            yield from self._take(self._release(events.sorted()))
            yield from self._close_until(self._now - self._lateness)

    def advance(self, t_us: int) -> list[Window]:
        """Stream time has reached `t_us`: closes what ends by then. Nothing happens before the stream has begun."""
        return list(self.pass_to(t_us))

    def pass_to(self, t_us: int) -> Iterator[Window]:
        """As `advance`, one window at a time. It must be run to its end."""
        _checked_time(t_us)
        self._now = max(self._now, t_us) if self._begun else self._now
        yield from self.stream(Events.empty())

    def finish(self) -> list[Window]:
        """The end of the stream: nothing waits any longer, and the window in progress closes if it has begun."""
        return list(self.drain())

    def drain(self) -> Iterator[Window]:
        """As `finish`, one window at a time: each of the events that wait may be in one of its own."""
        held, self._held = self._held, Events.empty()
        yield from self._take(held)
        yield from self._close_until(self._now)
        if self._events or (self._now > self._start and self._silence < self._max_empty):
            yield self._close(self._now if self._limit else self._start + self._span)

    def _release(self, events: Events) -> Events:
        """Those of the new and the waiting events that need not wait for late ones, in order of time."""
        if not self._lateness:
            return events
        events = Events.concatenate([self._held, events]).sorted()
        ready = int(np.searchsorted(events.t, self._now - self._lateness, side="right"))
        ready = max(ready, len(events) - MAX_HELD_BACK)
        # A copy, so that a few waiting events do not keep a large message alive.
        self._held = events[np.arange(ready, len(events))]
        return events[:ready]

    def _take(self, events: Events) -> Iterator[Window]:
        """Counts events that are in order of time, closing windows on the way."""
        late = int(np.searchsorted(events.t, self._start))
        self.late += late
        # A block smaller than the frame would spend its time on empty cells.
        step = max(BLOCK, self._grid.cells)
        for begin in range(late, len(events), step):
            block = self._filters.apply(events[begin : begin + step])
            yield from self._take_block(block.t, self._grid.cells_of(block))

    def _take_block(self, t: Int64s, cells: Int64s) -> Iterator[Window]:
        i = 0
        while i < len(t):
            yield from self._close_until(int(t[i]))
            j = i + int(np.searchsorted(t[i:], self._start + self._span))
            if self._limit:
                j = min(j, i + self._limit - self._events)
            counts = self._grid.count(cells[i:j])
            self._counts = counts if self._counts is None else self._counts + counts
            self._events += j - i
            i = j
            if self._events == self._limit:
                yield self._close(int(t[i - 1]))

    def _close_until(self, t_us: int) -> Iterator[Window]:
        """Closes the windows that end by `t_us`."""
        if self._events and self._start + self._span <= t_us:
            yield self._close(self._start + self._span)
        empty = max(0, (t_us - self._start) // self._span)
        given = min(empty, self._max_empty - self._silence)
        for _ in range(given):
            yield self._close(self._start + self._span)
        self.skipped += empty - given
        self._index += empty - given
        self._start += (empty - given) * self._span

    def _close(self, end_us: int) -> Window:
        counts = self._counts
        frame = (
            np.zeros(self._grid.shape, np.float32) if counts is None else self._grid.frame(counts)
        )
        window = Window(self._index, self._start, end_us, self._events, frame)
        self._silence = 0 if self._events else self._silence + 1
        self._index += 1
        self._start, self._events, self._counts = end_us, 0, None
        return window


def recording_frames(
    events: Events, spec: EventInput, start_us: int | None = None, max_empty: int = 100
) -> Float32s:
    """A whole recording as float32 frames [T, 2, H, W], by the same code as a stream.

    With a NumberWindow T is its number, each window has N // T events and the last one takes the rest.
    Events outside the sensor are dropped; so are those before `start_us`.
    """
    if not isinstance(spec.window, NumberWindow):
        windows = Windows(spec, start_us=start_us, max_empty=max_empty)
        frames = [window.frame for window in windows.stream(events)]
        frames += [window.frame for window in windows.drain()]
        return np.stack(frames) if frames else np.empty((0, *spec.shape), np.float32)
    grid = FrameGrid(spec)
    if (inside := on_sensor(events, spec.sensor)) is not None:
        events = events[inside]
    events = events.sorted()
    if start_us is not None:
        events = events[int(np.searchsorted(events.t, start_us)) :]
    events = FilterChain(spec.filters, spec.sensor).apply(events)
    share = len(events) // spec.window.windows
    cuts = [share * k for k in range(spec.window.windows)] + [len(events)]
    return np.stack(
        [grid.frame(grid.count(grid.cells_of(events[begin:end]))) for begin, end in pairwise(cuts)]
    )


def _checked_time(t_us: int) -> int:
    if abs(t_us) > MAX_TIME:
        raise ValueError(f"time {t_us} us is beyond the largest that is accepted, {MAX_TIME} us")
    return t_us
